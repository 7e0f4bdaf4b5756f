"""A trained language model that begins again on other text, as AllenNLP's configs name it."""

import copy
import json
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import torch
from allennlp.common import Params
from allennlp.common.util import is_global_primary
from allennlp.data import DatasetReader, Vocabulary
from allennlp.models import Model
from allennlp.models.archival import CONFIG_NAME, Archive, load_archive
from allennlp.modules.text_field_embedders import BasicTextFieldEmbedder
from allennlp.modules.token_embedders import Embedding, EmptyEmbedder

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import json_text, read_json, written_whole
from transformer_elmo.nn.softmax_transfer import (
    SAMPLE,
    adapt_softmax,
    calibrate,
    old_rows_of,
    shares_of,
)
from transformer_elmo.plugin.data_loader import LanguageModelingDataLoader
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.pretrained_vocabulary import check_archive_path, check_kind
from transformer_elmo.plugin.sentences import DatasetSentenceReader
from transformer_elmo.plugin.text_fields import embed_text_field
from transformer_elmo.plugin.vocabulary import count_with_reader, word_list
from transformer_elmo.pretrained import hub
from transformer_elmo.pretrained.archive import (
    ADAPTED,
    WHOLE_SECTION,
    merged_section,
    with_its_model,
)
from transformer_elmo.text.corpus import DataPath
from transformer_elmo.text.vocabulary import NAMESPACE

logger = logging.getLogger(__name__)

# What of a dataset reader's config a model has got used to.
_HABITS = ("tokenizer", "start_tokens", "end_tokens", "token_indexers")


class PretrainedLanguageModel(Model):
    """
    The home of the constructor "from_pretrained_lm"; what it makes are models of the archive's
    kind.
    """

    @classmethod
    def from_pretrained_lm(
        cls,
        vocab: Vocabulary,
        archive_file: str,
        data_path: Union[str, List[str], None] = None,
        serialization_dir: Optional[str] = None,
        **changes: Any,
    ) -> LanguageModel:
        """
        A language model that has learned from one text and goes on with another, and with another
        vocabulary. The word encoder and the contextualizer come over as they are. So do rows of the
        softmax, and of word embeddings, whose words both vocabularies have, whatever their places;
        rows of new words begin where words that look like them are: see
        `transformer_elmo.nn.softmax_transfer`. The optimizer begins anew.

        What training leaves stands alone: nothing in it names the archive any more.

        Registered as a `Model` with name "from_pretrained_lm".

        `vocab`: the words to predict. That of the same name counts them in the new text.
        `archive_file`: a `model.tar.gz` of any age, a model folder, the folder of a training run,
        or a URL. `data_path`: the new text. The softmax's biases are set by a sample of it, so that
        on average each word is predicted as often as it occurs. By default they stay as they are:
        right for more of the same text. `serialization_dir`: training gives it. `changes`: anything
        else that the archive's own `model` section may have, such as `dropout` or `num_samples`,
        goes in its place there. Within `contextualizer` and `text_field_embedder`, what isn't named
        stays. Raises `ConfigurationError` if there is no language model with a softmax, or a change
        would need other weights.
        """
        run = None if serialization_dir is None else Path(serialization_dir)
        check_archive_path(archive_file)
        # Neither AllenNLP's loading nor ours changes it.
        archive = load_archive(hub.local(archive_file))
        experiment = with_its_model(archive.config.as_dict(quiet=True), archive_file)
        check_kind(experiment, archive_file)
        old = archive.model
        assert isinstance(old, LanguageModel)
        if old.softmax is None:
            raise ConfigurationError(
                f"{archive_file} has no softmax (no _softmax_loss among its weights): it was saved "
                "for vectors alone. To train further, take the archive that was trained, or a "
                "model folder that was exported with its softmax."
            )
        before = _section_without_words(experiment["model"], old.vocab)
        section = merged_section(before, _plain(changes))
        if "num_samples" not in changes and _too_many(section.get("num_samples"), vocab):
            logger.warning(
                "%s was trained with num_samples = %s; with the %s words of the new vocabulary, "
                "the full softmax is trained.",
                archive_file,
                section["num_samples"],
                f"{vocab.get_vocab_size():,}",
            )
            section = {**section, "num_samples": None, "sparse_embeddings": False}
        _check_memory(old, vocab)
        model = _built(section, vocab, archive_file, serialization_dir)
        _bring_over(archive, model, archive_file)
        if data_path is not None:
            set_biases(archive.dataset_reader, model, data_path)
        if run is not None and run.is_dir() and is_global_primary():
            _tell_other_habits(experiment, run, archive_file)
            with written_whole(run / WHOLE_SECTION) as file:
                file.write(json_text(section, indent=2).encode())
        return model


Model.register(ADAPTED, constructor=ADAPTED, exist_ok=True)(PretrainedLanguageModel)


def _plain(value: Any) -> Any:
    """AllenNLP's `Params` as dictionaries."""
    if isinstance(value, Params):
        return value.as_dict(quiet=True)
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _section_without_words(section: Mapping[str, Any], vocab: Vocabulary) -> Dict[str, Any]:
    """A model's section for any vocabulary, and without the files that it once began with."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            namespace = value.get("vocab_namespace", "tokens")
            return {
                k: cleaned(v)
                for k, v in value.items()
                if k not in ("pretrained_file", "initializer")
                and not (
                    k == "num_embeddings"
                    and value.get("type") == "embedding"
                    and v == vocab.get_vocab_size(namespace)
                )
            }
        return value

    result: Dict[str, Any] = cleaned(section)
    return result


def _too_many(num_samples: Any, vocab: Vocabulary) -> bool:
    return isinstance(num_samples, int) and num_samples >= vocab.get_vocab_size()


def _check_memory(old: LanguageModel, vocab: Vocabulary) -> None:
    assert old.softmax is not None
    available = _available_memory()
    num_words, dim = vocab.get_vocab_size(), old.softmax.word_weights()[0].size(1)
    gigabytes = num_words * (dim + 1) * 4 / 1e9
    if available is None:
        return
    message = (
        f"The softmax of {num_words:,} words takes {gigabytes:.1f} GB, and Adam's moments twice as "
        f"much; {available:.1f} GB of memory are free. Take fewer words: a larger min_count, "
        '"max_vocab_size", or "words": "replace" in the vocabulary.'
    )
    if gigabytes > available:
        raise ConfigurationError(message)
    if 3 * gigabytes > available and not torch.cuda.is_available():
        logger.warning("%s", message)


def _available_memory() -> Optional[float]:
    """In gigabytes, where the system tells."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024 / 1e9


def _built(
    section: Mapping[str, Any], vocab: Vocabulary, source: str, serialization_dir: Optional[str]
) -> LanguageModel:
    model = Model.from_params(
        Params(copy.deepcopy(dict(section))), vocab=vocab, serialization_dir=serialization_dir
    )
    if not isinstance(model, LanguageModel):
        raise ConfigurationError(
            f"A change makes a {type(model).__name__} of the language model in {source}. Leave its "
            '"type" as it is.'
        )
    return model


def _bring_over(archive: Archive, model: LanguageModel, source: str) -> None:
    old = archive.model
    assert isinstance(old, LanguageModel)
    assert old.softmax is not None and model.softmax is not None
    tables = _word_tables(old)
    own = model.state_dict()
    state: Dict[str, torch.Tensor] = {}
    for name, tensor in old.state_dict().items():
        if name.startswith("_softmax_loss.") or name.removesuffix(".weight") in tables:
            continue
        if name not in own or own[name].shape != tensor.shape:
            raise ConfigurationError(
                f"The weight {name} of {source} has shape {tuple(tensor.shape)}, and "
                + ("none" if name not in own else f"{tuple(own[name].shape)}")
                + " after the changes to the model. Sizes must stay as they are."
            )
        state[name] = tensor
    missing = [
        name
        for name in own
        if name not in state
        and not name.startswith("_softmax_loss.")
        and name.removesuffix(".weight") not in tables
    ]
    if missing:
        raise ConfigurationError(
            f"The changes to the model want a weight {missing[0]}, which {source} doesn't have. "
            "Sizes must stay as they are."
        )
    torch.nn.Module.load_state_dict(model, state, strict=False)
    for name, table in tables.items():
        _bring_rows_over(name, table, old.vocab, model)

    words, old_words = word_list(model.vocab), word_list(old.vocab)
    report = adapt_softmax(
        old.softmax.word_weights(),
        model.softmax.word_weights(),
        old_rows_of(old_words, words),
        _word_vectors(archive, words.words),
    )
    logger.info("From %s to %s words: %s.", f"{len(old_words):,}", f"{len(words):,}", report)
    boundaries = {*_texts(archive.dataset_reader, "start"), *_texts(archive.dataset_reader, "end")}
    if report.num_kept <= 1 + len(boundaries):
        logger.warning(
            "No word of the new vocabulary is in that of %s: all rows of the softmax begin alike. "
            "Word vectors and context come over all the same.",
            source,
        )


@torch.no_grad()
def set_biases(reader: DatasetReader, model: LanguageModel, data_path: DataPath) -> None:
    """
    Sets the biases of a model's softmax by a sample of text: see
    `transformer_elmo.nn.softmax_transfer.calibrate`.
    """
    assert model.softmax is not None
    words = word_list(model.vocab)
    counts = dict(count_with_reader(data_path, reader)[NAMESPACE])
    boundaries = [*_texts(reader, "start"), *_texts(reader, "end")]
    if not model.is_bidirectional:
        # Nothing comes before the first token, to predict it from.
        counts.update(dict.fromkeys(_texts(reader, "start"), 0))
    loader = LanguageModelingDataLoader(reader, data_path, max_tokens=1000, quiet=True)
    loader.index_with(model.vocab)
    training, contexts, found = model.training, [], 0
    model.eval()
    for batch in loader:
        encoded = model.encode(batch["source"])  # type: ignore[arg-type]
        contexts += encoded.predicting(model.is_bidirectional)
        found = sum(part.size(0) for part in contexts)
        if found >= SAMPLE:
            break
    model.train(training)
    shares = shares_of(words, counts, boundaries if model.is_bidirectional else ())
    calibrate(model.softmax.word_weights(), torch.cat(contexts), shares)
    logger.info("Biases are set by %s predictions in %s.", f"{found:,}", data_path)


def _texts(reader: DatasetReader, side: str) -> List[str]:
    return [str(token) for token in getattr(reader, f"{side}_tokens", None) or ()]


def _word_tables(model: LanguageModel) -> Dict[str, Embedding]:
    """Embeddings of entries of the vocabulary, by their names in the model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Embedding) and module._vocab_namespace is not None
    }


@torch.no_grad()
def _bring_rows_over(name: str, old: Embedding, vocab: Vocabulary, model: LanguageModel) -> None:
    """
    Rows of entries that both vocabularies have; the others begin as that of the unknown entry,
    which is how the model has seen them so far.
    """
    namespace = str(old._vocab_namespace)
    weight = model.get_parameter(f"{name}.weight")
    numbers = vocab.get_token_to_index_vocabulary(namespace)
    entries = model.vocab.get_index_to_token_vocabulary(namespace)
    if vocab.get_vocab_size(namespace) != old.weight.size(0):
        # Not one row an entry: the size stood in the config.
        weight.copy_(old.weight)
        return
    unknown = numbers.get(vocab._oov_token, 0)
    names = {model.vocab._oov_token: unknown, model.vocab._padding_token: 0}
    rows = [names.get(entries[i], numbers.get(entries[i], unknown)) for i in range(weight.size(0))]
    weight.copy_(old.weight[torch.tensor(rows)])


def _word_vectors(archive: Archive, words: List[str]) -> Any:
    """
    For the softmax: from rows to word vectors. `None` where a vector says nothing about a new word,
    because words are known by their numbers alone.
    """
    model = archive.model
    assert isinstance(model, LanguageModel)
    embedder = model._text_field_embedder
    if isinstance(embedder, BasicTextFieldEmbedder) and all(
        isinstance(module, (Embedding, EmptyEmbedder))
        for module in embedder._token_embedders.values()
    ):
        return None
    reader = DatasetSentenceReader(archive.dataset_reader, model)
    return partial(_vectors, model, reader, words)


@torch.no_grad()
def _vectors(
    model: LanguageModel, reader: DatasetSentenceReader, words: List[str], rows: Sequence[int]
) -> torch.Tensor:
    sentences = [[words[row]] for row in rows]
    source = reader.batch(sentences, torch.device("cpu"), with_ids=False).source
    return embed_text_field(model._text_field_embedder, source)[:, 0]


def _tell_other_habits(experiment: Mapping[str, Any], run: Path, source: str) -> None:
    """Warns of a dataset reader that reads otherwise than the archive's."""
    try:
        config = read_json(run / CONFIG_NAME)
    except ConfigurationError:
        # The model was built by other hands than `allennlp train`.
        return
    old, new = experiment.get("dataset_reader"), config.get("dataset_reader")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return
    for key in _HABITS:
        before, now = _habit(old.get(key)), _habit(new.get(key))
        if before != now:
            logger.warning(
                "dataset_reader.%s is %s, but %s was trained with %s: its weights expect text that "
                "was read so. Unless you mean to change it, take the archive's.",
                key,
                json.dumps(new.get(key)),
                source,
                json.dumps(old.get(key)),
            )


def _habit(value: Any) -> Any:
    """What a value means: a name is short for an object, and nothing is an empty list."""
    if isinstance(value, str):
        value = {"type": value}
    if isinstance(value, dict):
        # Two names of the same.
        same = {"whitespace": "just_spaces"}
        return {
            k: same.get(v, v) if k == "type" and isinstance(v, str) else _habit(v)
            for k, v in value.items()
        }
    return value or []
