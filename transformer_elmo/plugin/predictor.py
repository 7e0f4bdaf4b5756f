"""
`allennlp predict` with a language model: the probability of every word. And the names that
predictors had in AllenNLP 0.x.
"""

import json
import locale
import logging
import sys
from typing import Any, List, Optional

from allennlp.common.util import JsonDict
from allennlp.data import DatasetReader, Instance
from allennlp.models import Model
from allennlp.predictors import Predictor
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import json_text
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.plugin.keys import unknown_keys
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.text.corpus import Sentence, parse_line

logger = logging.getLogger(__name__)


class SentencePredictor(Predictor):
    """What predictors of sentences have in common: a subclass has `predict_batch_json`."""

    def predict(self, sentence: Sentence) -> JsonDict:
        """`sentence`: a text for the tokenizer, or its words."""
        (output,) = self.predict_batch_json([sentence])  # type: ignore[list-item]
        return output

    @overrides(check_signature=False)
    def predict_json(self, inputs: Sentence) -> JsonDict:
        return self.predict(inputs)

    @overrides
    def predict_instance(self, instance: Instance) -> JsonDict:
        (output,) = self.predict_batch_instance([instance])
        return output

    @overrides
    def dump_line(self, outputs: JsonDict) -> str:
        """With letters as they are where files and the screen take them."""
        line = json_text(outputs)
        try:
            for encoding in (locale.getpreferredencoding(False), sys.stdout.encoding):
                line.encode(encoding or "utf-8")
        except UnicodeEncodeError:
            line = json.dumps(outputs)
        return f"{line}\n"


@Predictor.register("language_model", exist_ok=True)
class LanguageModelPredictor(SentencePredictor):
    """
    Scores sentences: one object a sentence, in the input's order, with what
    `SentenceScores.to_json` documents.

    The input has one sentence a line: text for the reader's tokenizer, or JSON as
    `transformer_elmo.text.corpus.parse_line` has it. `allennlp predict` passes over blank lines.
    It reads `--batch-size` lines at a time, one by default: set it to some 64.

    Registered as a `Predictor` with name "language_model", the default one of language models.

    - `model`: A `LanguageModel` with its softmax.
    - `dataset_reader`: The one that it was trained with.
    - `top_k`: Name so many of the likeliest words in each place: from the left, from the right, and
      from both combined. `--predictor-args '{"top_k": 5}'`.
    - `max_tokens`: Tokens of a batch, padding included.
    - `tokenizer`: The name of another tokenizer for text.
    - `input_format`: "text", "json", or decided for each line: what begins with `{"` or `["` is
      JSON.

    Raises `ConfigurationError` if the model is another kind of model, or an argument has no such
    value.
    """

    def __init__(
        self,
        model: Model,
        dataset_reader: DatasetReader,
        top_k: int = 0,
        max_tokens: int = 2000,
        tokenizer: Optional[str] = None,
        input_format: str = "auto",
        frozen: bool = True,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise unknown_keys(unknown, ["top_k", "max_tokens", "tokenizer", "input_format"])
        if not isinstance(model, LanguageModel):
            raise ConfigurationError(
                'The predictor "language_model" needs an archive of a language model, and this is '
                f"a {type(model).__name__}."
            )
        if not isinstance(top_k, int) or top_k < 0:
            raise ConfigurationError(f"top_k must be 0 or more words, got {top_k!r}.")
        super().__init__(model, dataset_reader, frozen)
        self._elmo = TransformerElmo(
            model, dataset_reader, tokenizer=tokenizer, max_tokens=max_tokens
        )
        self._top_k = top_k
        self._input_format = input_format

    @overrides
    def load_line(self, line: str) -> JsonDict:
        sentence = parse_line(line.rstrip("\r\n"), self._input_format)
        return {"sentence" if isinstance(sentence, str) else "tokens": sentence}

    @overrides(check_signature=False)
    def predict_batch_json(self, inputs: List[Sentence]) -> List[JsonDict]:
        return [scores.to_json() for scores in self._elmo.score(inputs, self._top_k)]

    @overrides
    def predict_batch_instance(self, instances: List[Instance]) -> List[JsonDict]:
        """Instances of the model's dataset reader have their boundary tokens already."""
        sources: List[Any] = [instance["source"] for instance in instances]
        sentences = [[token.text or "" for token in source.tokens] for source in sources]
        return [s.to_json() for s in self._elmo.score_tokens(sentences, self._top_k)]


_DASHED = (
    "constituency-parser biaffine-dependency-parser coreference-resolution next-token-lm "
    "masked-language-model open-information-extraction sentence-tagger semantic-role-labeling "
    "text-classifier textual-entailment"
)
RENAMED = {
    "machine-comprehension": "reading_comprehension",
    "simple_seq2seq": "seq2seq",
    **{name: name.replace("-", "_") for name in _DASHED.split()},
}


def modern_name(name: Optional[str]) -> Optional[str]:
    """A predictor's name; of one that it had in AllenNLP 0.x only, what it is now."""
    if name is None or name in Predictor.list_available() or name not in RENAMED:
        return name
    logger.info("The predictor %s of AllenNLP 0.x is %s now.", name, RENAMED[name])
    return RENAMED[name]
