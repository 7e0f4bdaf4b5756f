"""`allennlp predict` with a tagger: sentences that are split already, and texts."""

from functools import cached_property
from typing import Any, Dict, List, Union

from allennlp.common.util import JsonDict
from allennlp.data import DatasetReader, Instance, Token, Tokenizer
from allennlp.models import Model
from allennlp.predictors import Predictor
from allennlp.predictors.sentence_tagger import SentenceTaggerPredictor
from overrides import overrides

from transformer_elmo.plugin.keys import unknown_keys
from transformer_elmo.plugin.predictor import SentencePredictor
from transformer_elmo.plugin.tokenizers import WordSplittingSpacyTokenizer, tokenizer_named
from transformer_elmo.text.corpus import Sentence, parse_line
from transformer_elmo.text.reader import checked_sentence

# What taggers put out for each word.
OF_WORDS = {"tags", "logits", "class_probabilities", "mask"}


@Predictor.register("lm_sentence_tagger", exist_ok=True)
class TaggerPredictor(SentencePredictor, SentenceTaggerPredictor):
    """
    AllenNLP's `SentenceTaggerPredictor`, which takes sentences that are split already as well. A
    line of the input is one of

    - `{"words": [...]}` or `{"tokens": [...]}`, or a plain list of words in JSON;
    - words with spaces between them;
    - `{"sentence": "..."}` or `{"text": "..."}`, a text for spaCy, as AllenNLP has it.

    Only the last one needs a spaCy model. A sentence without words gets no tags.

    Registered as a `Predictor` with name "lm_sentence_tagger", which taggers with a language
    model in them get for "sentence_tagger".

    - `dataset_reader`: Its `text_to_instance` takes a list of tokens.
    - `language`: The spaCy model for `{"sentence": ...}`.
    - `tokenizer`: What splits `{"sentence": ...}` and lines of text instead: a name, such as
      "just_spaces", or a tokenizer's config, such as `{"type": "spacy", "language": "fi"}`.
    - `input_format`: "text", "json", or decided for each line: what begins with `{"` or `["` is
      JSON.

    Raises `ConfigurationError` if there is no such argument, tokenizer or format.
    """

    def __init__(
        self,
        model: Model,
        dataset_reader: DatasetReader,
        language: str = "en_core_web_sm",
        tokenizer: Union[str, Dict[str, Any], None] = None,
        input_format: str = "auto",
        frozen: bool = True,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise unknown_keys(unknown, ["language", "tokenizer", "input_format"])
        # Not the parent's, which loads spaCy's model whether it is needed or not.
        Predictor.__init__(self, model, dataset_reader, frozen)
        self._language = language
        self._input_format = input_format
        self._splits_lines = tokenizer is not None
        if tokenizer is not None:
            self._text_tokenizer = tokenizer_named(tokenizer)

    @cached_property
    def _text_tokenizer(self) -> Tokenizer:
        """spaCy's model is loaded when there is a text."""
        return WordSplittingSpacyTokenizer(self._language)

    @overrides
    def load_line(self, line: str) -> JsonDict:
        line = line.rstrip("\r\n")
        sentence = parse_line(line, self._input_format)
        if not isinstance(sentence, str):
            return {"words": sentence}
        if sentence != line:
            # The text of a JSON object.
            return {"sentence": sentence}
        # Nothing says what language a line is in, so it isn't split by one's rules.
        if not self._splits_lines:
            return {"words": line.split()}
        return {"words": [str(token.text) for token in self._text_tokenizer.tokenize(line)]}

    @overrides(check_signature=False)
    def predict_batch_json(self, inputs: List[Sentence]) -> List[JsonDict]:
        sentences = list(map(self._tokens, inputs))
        # An encoder has nothing to say of no words.
        filled = [self._dataset_reader.text_to_instance(tokens) for tokens in sentences if tokens]
        outputs = iter(self.predict_batch_instance(filled) if filled else ())
        return [next(outputs) if tokens else {"words": [], "tags": []} for tokens in sentences]

    @overrides
    def predict_batch_instance(self, instances: List[Instance]) -> List[JsonDict]:
        """`SimpleTagger` tags the padding behind a sentence, too: that is left out."""
        outputs = super().predict_batch_instance(instances)
        lengths = [len(instance["tokens"]) for instance in instances]
        for output, length in zip(outputs, lengths):
            for key in OF_WORDS & output.keys():
                if len(output[key]) == max(lengths):
                    output[key] = output[key][:length]
        return outputs

    @overrides
    def _json_to_instance(self, json_dict: JsonDict) -> Instance:
        return self._dataset_reader.text_to_instance(self._tokens(json_dict))

    def _tokens(self, inputs: Sentence) -> List[Token]:
        sentence = checked_sentence(inputs)
        if not isinstance(sentence, str):
            return [Token(word) for word in sentence]
        return self._text_tokenizer.tokenize(sentence)
