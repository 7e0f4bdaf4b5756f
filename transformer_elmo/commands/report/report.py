"""
What is in the report of a training run, beside the curves, which are TensorBoard's: the run in a
few numbers, how surprising each word of a few held-out sentences is, and learned layer weights.
"""

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from transformer_elmo.commands.report.facts import Fact, config_of, results_of
from transformer_elmo.commands.report.heat_map import Passage
from transformer_elmo.commands.report.layers import Mixture, mixtures_in
from transformer_elmo.commands.report.page import Report, page
from transformer_elmo.commands.report.remarks import MissingPartError, else_missing
from transformer_elmo.commands.report.sentences import Wanted, passages_of
from transformer_elmo.commands.report.training_log import TrainingLog, read_training_log
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import check_can_write, write_text
from transformer_elmo.pretrained import folder as model_folder
from transformer_elmo.pretrained.archive import in_place_of_archive, last_checkpoint, unpacked
from transformer_elmo.pretrained.weights import read_weights

logger = logging.getLogger(__name__)

LANGUAGE_MODELS = (
    "language_model",
    "bidirectional_language_model",
    "bidirectional-language-model",
)
# What only a language model has at the beginning of its weights' names: below another model they
# stand further on.
_PARTS = {"_contextualizer", "_softmax_loss"}

CONFIG, ARCHIVE = "config.json", "model.tar.gz"
# In the order in which AllenNLP looks for them.
WEIGHTS = ("weights.th", "best.th", ARCHIVE)

EXPECTED = "Expected the --serialization-dir of allennlp train, or a model.tar.gz."


def write_report(
    folder: Path,
    output: Path,
    *,
    sentences: str | None = None,
    num_sentences: int = 3,
    force: bool = False,
    device: int = -1,
) -> Path:
    """
    What `transformer-elmo report` and `allennlp lm-report` do.

    `folder`: the `--serialization-dir` of `allennlp train`, an archive (`model.tar.gz`), or a model
    folder. `output`: the HTML file to write. `sentences`: text to take the sentences of the heat
    maps from, one a line, as they come. By default they are chosen from the config's validation
    data. `num_sentences`: how many sentences to show. `force`: whether `output` may be replaced.
    `device`: a GPU's number, or -1 for the CPU. Returns the file. Raises `ConfigurationError` if
    there is no run in `folder` or nothing to show of it, `output` is there already or can't be
    written, or `sentences` can't be read.
    """
    if num_sentences < 0:
        raise ConfigurationError(f"The number of sentences can't be negative: {num_sentences}.")
    if device >= torch.cuda.device_count():
        raise ConfigurationError(
            f"There is no GPU {device}: torch finds {torch.cuda.device_count() or 'none'} here. "
            "The CPU is -1."
        )
    folder = in_place_of_archive(folder)
    if not folder.exists():
        raise ConfigurationError(f"There is no folder {folder}. {EXPECTED}")
    check_can_write(output)
    if output.exists() and not force:
        raise ConfigurationError(f"{output} exists. Give --force to replace it.")
    if model_folder.is_model_folder(folder):
        report = _of_model_folder(folder, sentences, num_sentences, device)
    else:
        with unpacked(folder) as run:
            if not (run / CONFIG).is_file():
                raise ConfigurationError(f"{folder} has no {CONFIG}. {EXPECTED}")
            report = _report(run, folder, sentences, num_sentences, device)
    for remark in report.remarks:
        logger.warning(remark)
    write_text(output, page(report))
    return output


def _of_model_folder(
    folder: Path, sentences: str | None, num_sentences: int, device: int
) -> Report:
    config, card = model_folder.read_config(folder)
    remarks: list[str] = []
    passages: list[Passage] = []
    if sentences is None:
        remarks.append("A model folder holds no text. Name one with --sentences for heat maps.")
    elif num_sentences:
        try:
            passages = passages_of(folder, Wanted(sentences, True, num_sentences), device)
        except MissingPartError as error:
            remarks.append(str(error))
    known = {"dimension": 2 * config.contextualizer.input_dim, **card}
    facts = [Fact(name.replace("_", " "), str(value)) for name, value in known.items()]
    return Report(_title(folder, folder), facts, [], remarks, passages, sentences or "")


def _report(
    run: Path, source: Path, sentences: str | None, num_sentences: int, device: int
) -> Report:
    """
    `run`: a folder. `source`: itself, or the archive that was unpacked to it. `sentences`,
    `num_sentences`, `device`: those of :func:`write_report`.
    """
    log = read_training_log(run)
    known = (run / name for name in WEIGHTS if (run / name).is_file())
    weights = next(known, None) or last_checkpoint(run)
    if weights is None and not log.latest:
        raise ConfigurationError(
            f"There is nothing to show in {source}: no metrics_epoch_*.json, no metrics.json, and "
            "no weights."
        )
    remarks = _state_of_training(log)
    passages: list[Passage] = []
    mixtures: list[Mixture] = []
    text = sentences or log.config.get("validation_data_path")
    try:
        if weights is None:
            raise MissingPartError(f"There are no weights yet ({', '.join(WEIGHTS)}).")
        is_language_model, mixtures = _looked_into(weights, log.config)
        if is_language_model and num_sentences:
            wanted = Wanted(text, sentences is not None, num_sentences)
            passages = passages_of(_model_of(weights), wanted, device)
        elif sentences is not None and not is_language_model:
            remarks.append("There are no heat maps: this isn't a language model.")
    except MissingPartError as error:
        remarks.append(str(error))
    return Report(
        _title(run, source),
        results_of(log),
        config_of(log.config),
        remarks,
        passages,
        text if isinstance(text, str) else json.dumps(text),
        mixtures,
    )


def _title(run: Path, source: Path) -> str:
    path = source.resolve()
    if run == source:
        return f"Training run {path.name}"
    # Archives are all called the same.
    return f"Model {path.parent.name}/{path.name}"


def _state_of_training(log: TrainingLog) -> list[str]:
    if log.final or not log.epochs:
        return []
    return [
        "There is no metrics.json, so training hasn't ended: these are the numbers after epoch "
        f"{log.epochs[-1]['epoch']}."
    ]


def _looked_into(weights: Path, config: dict[str, Any]) -> tuple[bool, list[Mixture]]:
    """
    Whether these are the weights of a language model, and the mixtures of layers among them. The
    config's word is taken for it that they are; where it has another, the weights have the last
    one: `from_archive` goes on with a model of any kind, and users have classes of their own.
    """
    model = config.get("model")
    if isinstance(model, dict) and model.get("type") in LANGUAGE_MODELS:
        return True, []
    unreadable = else_missing("The weights can't be read", ConfigurationError)
    with unreadable, unpacked(weights) if weights.name == ARCHIVE else nullcontext(weights) as path:
        state = read_weights(path / WEIGHTS[0] if path.is_dir() else path, shown=weights.name)
        parts = {name.partition(".")[0] for name in state}
        mixtures = mixtures_in(state)
    if not (mixtures or parts >= _PARTS):
        raise MissingPartError(
            "There are no layer weights: this model has no mixture of a language model's layers."
        )
    return parts >= _PARTS, mixtures


def _model_of(weights: Path) -> Path:
    """What to open: the run's folder, which needs no unpacking, if it has all of the model."""
    folder, archive = weights.parent, weights.with_name(ARCHIVE)
    is_whole = weights != archive and (folder / "vocabulary").is_dir()
    return archive if archive.is_file() and not is_whole else folder
