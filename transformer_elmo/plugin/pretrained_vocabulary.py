"""The vocabulary of a language model that is taken to other text."""

from pathlib import Path
from typing import Any, List, Mapping, Optional, Union

from allennlp.common import Params
from allennlp.data.dataset_readers.dataset_reader import DatasetReader
from allennlp.data.vocabulary import DEFAULT_OOV_TOKEN, DEFAULT_PADDING_TOKEN, Vocabulary

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.archiving import vocabulary_of_run
from transformer_elmo.plugin.loading import no_archive
from transformer_elmo.plugin.vocabulary import count_with_reader, word_list
from transformer_elmo.pretrained.archive import ADAPTED, own_names, resolved_config, small_parts
from transformer_elmo.pretrained.nested_models import is_language_model
from transformer_elmo.text.vocabulary import NAMESPACE, extended_words

WORDS = ("replace", "extend", "keep")


class PretrainedVocabulary(Vocabulary):
    """The home of the constructor "from_pretrained_lm"; what it makes are plain vocabularies."""

    @classmethod
    def from_pretrained_lm(
        cls,
        archive_file: str,
        data_path: Union[str, List[str], None] = None,
        words: str = "replace",
        reader: Optional[DatasetReader] = None,
        min_count: int = 3,
        max_vocab_size: Optional[int] = None,
        padding_token: Optional[str] = DEFAULT_PADDING_TOKEN,
        oov_token: Optional[str] = DEFAULT_OOV_TOKEN,
    ) -> Vocabulary:
        """
        The words to predict once a language model has been taken to new text, by falling frequency
        there, as sampled losses want them. Whatever else the archive's vocabulary has (the
        characters of some models) stays as it is.

        Registered as a `Vocabulary` with name "from_pretrained_lm".

        `archive_file`: the language model's: what its `Model` of the same name takes. `data_path`:
        the new text: what :func:`~transformer_elmo.text.corpus.find_shards` takes. Only "keep" can
        do without. `words`: "replace" takes the words of the new text; "extend" those and all of
        the archive's; "keep" the archive's, in their order. `reader`: what splits the new text into
        words. `min_count`: new words that occur less often are left out. `max_vocab_size`: the most
        words to take, with "replace". `padding_token`, `oov_token`: as in AllenNLP's `Vocabulary`.
        Raises `ConfigurationError` if there is no such archive, or no word is left.
        """
        section = f'The vocabulary "{ADAPTED}"'
        if words not in WORDS:
            raise ConfigurationError(
                f'{section}: "words" must be one of {", ".join(WORDS)}: got {words!r}.'
            )
        if words != "keep" and data_path is None:
            raise ConfigurationError(
                f'{section} with "words": "{words}" needs "data_path", the new text.'
            )
        if words != "replace" and max_vocab_size is not None:
            raise ConfigurationError(
                f'{section} takes "max_vocab_size" with "words": "replace" only: with "{words}", '
                "all words of the archive stay."
            )
        check_archive_path(archive_file)
        with small_parts(archive_file, archive_file) as folder:
            experiment = resolved_config(folder, archive_file)
            check_kind(experiment, archive_file)
            old = vocabulary_of_run(folder, archive_file)
        if words == "keep":
            return old
        if reader is None:
            reader = DatasetReader.from_params(Params(own_names(experiment)["dataset_reader"]))
        assert data_path is not None
        counts = count_with_reader(data_path, reader).get(NAMESPACE, {})
        vocab = Vocabulary(
            non_padded_namespaces=old._non_padded_namespaces,
            padding_token=padding_token,
            oov_token=oov_token,
        )
        for namespace in old.get_namespaces() - {NAMESPACE}:
            tokens = list(old.get_token_to_index_vocabulary(namespace))
            vocab.add_tokens_to_namespace(tokens, namespace)
        before = [word for word in word_list(old).words if word != old._oov_token]
        extended = extended_words(before if words == "extend" else [], counts, min_count)
        vocab.add_tokens_to_namespace(extended[:max_vocab_size], NAMESPACE)
        boundaries = [*getattr(reader, "start_tokens", ()), *getattr(reader, "end_tokens", ())]
        if vocab.get_vocab_size(NAMESPACE) <= 2 + len(boundaries):
            raise ConfigurationError(
                f"No word of {data_path} occurs {min_count} times or more: {len(counts)} distinct "
                'words were counted. Give more text, or a smaller "min_count" in the vocabulary.'
            )
        return vocab


Vocabulary.register(ADAPTED, constructor=ADAPTED, exist_ok=True)(PretrainedVocabulary)


def check_archive_path(archive_file: str) -> None:
    """Raises `ConfigurationError` if there is nothing at the path of a language model."""
    if "://" not in archive_file and not (archive_file and Path(archive_file).exists()):
        raise no_archive(archive_file)


def check_kind(experiment: Mapping[str, Any], archive_file: str) -> None:
    """Raises `ConfigurationError` if a config isn't that of a language model."""
    if not is_language_model(experiment):
        model = experiment.get("model")
        kind = model.get("type") if isinstance(model, dict) else model
        raise ConfigurationError(
            f"{archive_file} holds a model of type {kind!r}, but only a language model can be "
            "taken to other text: expected an archive whose model type is language_model or "
            "bidirectional_language_model."
        )
