"""
`transformer-elmo report` and `allennlp lm-report`: a training run to look at, in one file: the run
in a few numbers and its curves, how surprising each word of a few held-out sentences is, and
learned layer weights. Several runs are compared.
"""

import argparse
import json
import logging
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch

from transformer_elmo.commands.arguments import add, check_output, file_of
from transformer_elmo.commands.report.curves import charts_of, compared, epochs_table
from transformer_elmo.commands.report.facts import (
    Fact,
    config_of,
    read_training_log,
    results_of,
)
from transformer_elmo.commands.report.page import Mixture, Report, page
from transformer_elmo.commands.report.sentences import MissingPartError, else_missing, passages_of
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import write_text
from transformer_elmo.inference.elmo import device_of
from transformer_elmo.pretrained import folder as model_folder
from transformer_elmo.pretrained import hub
from transformer_elmo.pretrained.archive import (
    ARCHIVE,
    WEIGHTS,
    in_place_of_archive,
    last_checkpoint,
    unpacked,
)
from transformer_elmo.pretrained.nested_models import is_language_model
from transformer_elmo.pretrained.weights import read_weights

logger = logging.getLogger(__name__)

DESCRIPTION = """
Show a training run in one HTML file: its results, its perplexity, learning rate and time by epoch,
the essentials of its config, and, for a language model, how surprising each word of a few held-out
sentences is from both sides; for a model on top of one, the layer weights it has learned. Of
several runs, the results, the curves and the differences between their configs.
"""

# What only a language model has at the beginning of its weights' names: below another model they
# stand further on.
_PARTS = {"_contextualizer", "_softmax_loss"}

# AllenNLP's `ScalarMix` in a token embedder; the original ELMo numbers its own.
_SCALAR_MIX = re.compile(r"((?:(.+)\.)?_?scalar_mix[^.]*)\.scalar_parameters\.(\d+)")

EXPECTED = "Expected the --serialization-dir of allennlp train, or a model.tar.gz."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "the --serialization-dir of allennlp train, a model.tar.gz, or a model folder"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"{what}, also hf://user/model")
    output = "the HTML file; by default report.html in the first run's folder"
    parser.add_argument("-o", "--output-file", type=Path, help=output)
    parser.add_argument(
        "--sentences",
        help="text to take the sentences of the heat maps from, one a line (- for standard input); "
        "by default some are chosen from the config's validation data",
    )
    count = "how many sentences to show (default: 3)"
    parser.add_argument("--num-sentences", type=int, default=3, help=count)
    add(parser, "--force", "--cuda-device")


def run(args: argparse.Namespace) -> None:
    runs = [Path(hub.local(run)) for run in args.runs]
    folder = runs[0].parent if runs[0].is_file() else runs[0]
    # Not among what huggingface_hub keeps.
    folder = Path() if "://" in args.runs[0] else folder
    output = args.output_file or folder / "report.html"
    if args.num_sentences < 0:
        raise ConfigurationError(f"--num-sentences can't be negative: {args.num_sentences}.")
    if args.sentences is not None and args.runs[1:]:
        raise ConfigurationError("Of several runs no sentences are shown: leave out --sentences.")
    if len(args.runs) > len(ascii_uppercase):
        raise ConfigurationError(f"At most 26 runs are compared: got {len(args.runs)}.")
    device_of(args.cuda_device)
    runs = list(map(in_place_of_archive, runs))
    for source in runs:
        if not source.exists():
            raise ConfigurationError(f"There is no folder {source}. {EXPECTED}")
    check_output(output, args.force)
    with nullcontext((None, None)) if args.sentences is None else file_of(args.sentences) as text:
        options = text[0], args.num_sentences, args.cuda_device
        if runs[1:]:
            report = _of_several(runs)
        elif model_folder.is_model_folder(source):
            report = _of_model_folder(source, *options)
        else:
            with unpacked(source) as folder:
                report = _of_run(folder, source, *options)
    for remark in report.remarks:
        logger.warning(remark)
    write_text(output, page(report))
    print(output)


def _of_several(runs: list[Path]) -> Report:
    logs, facts = {}, []
    for letter, run in zip(ascii_uppercase, runs):
        with unpacked(run) as folder:
            logs[letter] = log = read_training_log(folder, run)
        if not log.epochs:
            raise ConfigurationError(f"{run} has no metrics_epoch_*.json to compare. {EXPECTED}")
        facts.append(Fact(letter, str(run), "" if log.final else "hasn't ended"))
    epochs = [epochs_table(f"{letter} by epoch", log) for letter, log in logs.items()]
    title, tables = f"{len(runs)} training runs", compared(logs)
    return Report(title, facts, comparison=tables, charts=charts_of(logs), epochs=epochs)


def _of_model_folder(
    folder: Path, sentences: str | None, num_sentences: int, device: int
) -> Report:
    config, card = model_folder.read_config(folder)
    known = {"dimension": 2 * config.contextualizer.input_dim, **card}
    facts = [Fact(name.replace("_", " "), str(value)) for name, value in known.items()]
    report = Report(f"Training run {folder.resolve().name}", facts, passages_from=sentences or "")
    if sentences is None:
        remark = "A model folder holds no text. Name one with --sentences for heat maps."
        report.remarks.append(remark)
    elif num_sentences:
        try:
            report.passages.extend(passages_of(folder, sentences, True, num_sentences, device))
        except MissingPartError as error:
            report.remarks.append(str(error))
    return report


def _of_run(
    run: Path, source: Path, sentences: str | None, num_sentences: int, device: int
) -> Report:
    """Of a run's folder; `source`: itself, or the archive that was unpacked to it."""
    log = read_training_log(run, source)
    known = (run / name for name in (*WEIGHTS, ARCHIVE) if (run / name).is_file())
    weights = next(known, None) or last_checkpoint(run)
    if weights is None and not log.latest:
        raise ConfigurationError(
            f"There is nothing to show in {source}: no metrics_epoch_*.json, no metrics.json, and "
            "no weights."
        )
    path = source.resolve()
    # Archives are all called the same.
    name = f"Training run {path.name}" if run == source else f"Model {path.parent.name}/{path.name}"
    text = sentences or log.config.get("validation_data_path")
    shown = text if isinstance(text, str) else json.dumps(text)
    report = Report(name, results_of(log), config_of(log.config), passages_from=shown)
    report.charts.extend(charts_of({name: log}))
    if log.epochs:
        report.epochs.append(epochs_table("", log))
    if log.epochs and not log.final:
        report.remarks.append(
            "There is no metrics.json, so training hasn't ended: these are the numbers after epoch "
            f"{log.epochs[-1]['epoch']}."
        )
    try:
        if weights is None:
            raise MissingPartError(f"There are no weights yet ({', '.join((*WEIGHTS, ARCHIVE))}).")
        is_model_of_language, mixtures = _looked_into(weights, log.config)
        report.mixtures.extend(mixtures)
        if is_model_of_language and num_sentences:
            # The folder needs no unpacking, if it has all of the model.
            archive = weights.with_name(ARCHIVE)
            is_whole = weights != archive and (run / "vocabulary").is_dir()
            model = archive if archive.is_file() and not is_whole else run
            asked = sentences is not None
            report.passages.extend(passages_of(model, text, asked, num_sentences, device))
        elif sentences is not None and not is_model_of_language:
            report.remarks.append("There are no heat maps: this isn't a language model.")
    except MissingPartError as error:
        report.remarks.append(str(error))
    return report


def _looked_into(weights: Path, config: dict[str, Any]) -> tuple[bool, list[Mixture]]:
    """
    Whether these are the weights of a language model, and the mixtures of layers among them. The
    config's word is taken for it that they are; where it has another, the weights have the last
    one: `from_archive` goes on with a model of any kind, and users have classes of their own.
    """
    if is_language_model(config):
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


def mixtures_in(weights: Mapping[str, torch.Tensor]) -> list[Mixture]:
    """
    `weights`: a model's, by name. Returns the mixtures of layers among them; none for a model that
    uses one layer only.
    """
    scalars: dict[str, dict[int, float]] = {}
    names: dict[str, str] = {}
    for name, tensor in weights.items():
        match = _SCALAR_MIX.fullmatch(name)
        if match and tensor.numel() == 1:
            scalars.setdefault(match[1], {})[int(match[3])] = tensor.item()
            names[match[1]] = (match[2] or match[1]).replace("_text_field_embedder.", "")
    found = []
    for path, by_layer in scalars.items():
        ordered = torch.tensor([by_layer[layer] for layer in sorted(by_layer)])
        factor = weights.get(f"{path}.gamma", torch.ones(1))
        factor = factor if factor.numel() == 1 else torch.ones(1)
        found.append(Mixture(names[path], torch.softmax(ordered, dim=0).tolist(), factor.item()))
    return found
