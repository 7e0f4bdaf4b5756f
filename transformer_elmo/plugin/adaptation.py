"""A trained language model that begins again on other text, as AllenNLP's configs name it."""

import copy
import json
import logging
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Union

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
from transformer_elmo.nn.softmax import SoftmaxLoss
from transformer_elmo.nn.softmax_transfer import (
    SAMPLE,
    WordVectors,
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
    merged,
    with_its_model,
)
from transformer_elmo.text.corpus import DataPath
from transformer_elmo.text.vocabulary import NAMESPACE

logger = logging.getLogger(__name__)


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
        plain = {
            key: value.as_dict(quiet=True) if isinstance(value, Params) else value
            for key, value in changes.items()
        }
        section = merged(before, plain)
        model = Model.from_params(
            Params(copy.deepcopy(section)), vocab=vocab, serialization_dir=serialization_dir
        )
        if not isinstance(model, LanguageModel):
            raise ConfigurationError(
                f"A change makes a {type(model).__name__} of the language model in {archive_file}. "
                'Leave its "type" as it is.'
            )
        if isinstance(model.softmax, SoftmaxLoss):
            # So that allennlp-models opens it, which wants more words than samples.
            section = {**section, "num_samples": None, "sparse_embeddings": False}
        _bring_over(archive, model, archive_file)
        if data_path is not None:
            set_biases(archive.dataset_reader, model, data_path)
        if run is not None and run.is_dir() and is_global_primary():
            _tell_other_habits(experiment, run, archive_file)
            with written_whole(run / WHOLE_SECTION) as file:
                file.write(json_text(section, indent=2).encode())
        return model


Model.register(ADAPTED, constructor=ADAPTED, exist_ok=True)(PretrainedLanguageModel)


def _section_without_words(section: Any, vocab: Vocabulary) -> Any:
    """A model's section for any vocabulary, and without the files that it once began with."""
    if not isinstance(section, dict):
        return section
    dropped = {"pretrained_file", "initializer"}
    num_entries = vocab.get_vocab_size(section.get("vocab_namespace", "tokens"))
    if section.get("type") == "embedding" and section.get("num_embeddings") == num_entries:
        dropped.add("num_embeddings")
    return {k: _section_without_words(v, vocab) for k, v in section.items() if k not in dropped}


def _bring_over(archive: Archive, model: LanguageModel, source: str) -> None:
    old = archive.model
    assert isinstance(old, LanguageModel)
    assert old.softmax is not None and model.softmax is not None
    tables = {
        f"{name}.weight": module
        for name, module in old.named_modules()
        if isinstance(module, Embedding) and module._vocab_namespace is not None
    }
    state, own = (
        {n: t for n, t in m.state_dict().items() if not n.startswith("_softmax_loss.")}
        for m in (old, model)
    )
    for name in sorted((state.keys() | own.keys()) - tables.keys()):
        shapes = [
            list(weights[name].shape) if name in weights else None for weights in (state, own)
        ]
        if shapes[0] != shapes[1]:
            raise ConfigurationError(
                f"The weight {name} has shape {shapes[0]} in {source}, and {shapes[1]} after the "
                "changes to the model. Sizes must stay as they are."
            )
    for name, table in tables.items():
        state[name] = _rows_of(table, old.vocab, model.vocab)
    torch.nn.Module.load_state_dict(model, state, strict=False)

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


def _rows_of(table: Embedding, vocab: Vocabulary, new: Vocabulary) -> torch.Tensor:
    """Shape `(num_new_entries, dim)`: entries without a row of their own begin as the unknown."""
    namespace = str(table._vocab_namespace)
    if vocab.get_vocab_size(namespace) != table.weight.size(0):
        # Not one row an entry: the size stood in the config.
        return table.weight
    numbers = vocab.get_token_to_index_vocabulary(namespace)
    entries = new.get_index_to_token_vocabulary(namespace)
    unknown = numbers.get(vocab._oov_token, 0)
    names = {**numbers, new._oov_token: unknown, new._padding_token: 0}
    return table.weight[[names.get(entries[i], unknown) for i in range(len(entries))]]


@torch.no_grad()
def set_biases(reader: DatasetReader, model: LanguageModel, data_path: DataPath) -> None:
    """Sets the softmax's biases by a sample of text: see `nn.softmax_transfer.calibrate`."""
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


def _word_vectors(archive: Archive, words: List[str]) -> Optional[WordVectors]:
    """From rows to word vectors; `None` where words are known by their numbers alone."""
    model = archive.model
    assert isinstance(model, LanguageModel)
    embedder = model._text_field_embedder
    if isinstance(embedder, BasicTextFieldEmbedder) and all(
        isinstance(module, (Embedding, EmptyEmbedder))
        for module in embedder._token_embedders.values()
    ):
        return None
    reader = DatasetSentenceReader(archive.dataset_reader, model)

    @torch.no_grad()
    def vectors(rows: Sequence[int]) -> torch.Tensor:
        sentences = [[words[row]] for row in rows]
        source = reader.batch(sentences, torch.device("cpu"), with_ids=False).source
        return embed_text_field(embedder, source)[:, 0]

    return vectors


def _tell_other_habits(experiment: Mapping[str, Any], run: Path, source: str) -> None:
    """Warns of a dataset reader that reads otherwise than the archive's."""
    path = run / CONFIG_NAME
    # Without one, the model was built by other hands than `allennlp train`.
    new = read_json(path).get("dataset_reader") if path.exists() else None
    old = experiment["dataset_reader"]
    if not isinstance(new, dict):
        return
    for key in ("tokenizer", "start_tokens", "end_tokens", "token_indexers"):
        if _meaning(old.get(key)) != _meaning(new.get(key)):
            logger.warning(
                "dataset_reader.%s is %s, but %s was trained with %s: its weights expect text that "
                "was read so. Unless you mean to change it, take the archive's.",
                key,
                json.dumps(new.get(key)),
                source,
                json.dumps(old.get(key)),
            )


def _meaning(value: Any, is_name: bool = False) -> Any:
    """Of a value in a config: a name is short for an object, and nothing is an empty list."""
    if isinstance(value, dict):
        return {key: _meaning(of, key == "type") for key, of in value.items()}
    if is_name:
        return "just_spaces" if value == "whitespace" else value
    return _meaning({"type": value}) if isinstance(value, str) else value or []
