"""`allennlp lm-report`: a training run to look at, in one file."""

import argparse
import base64
import html
import io
import json
import logging
import math
import os
import re
import sys
import tarfile
import tempfile
import warnings
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

import torch
from allennlp.commands.subcommand import Subcommand
from allennlp.common.checks import ConfigurationError
from allennlp.nn import util
from overrides import overrides

from transformer_elmo.commands.training_log import Point, TrainingLog, read_training_log
from transformer_elmo.data.corpus import find_shards, read_sentences
from transformer_elmo.embedding import TransformerElmo
from transformer_elmo.models.language_model import LanguageModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

DESCRIPTION = """
Show a training run in one HTML file: loss and perplexity, learning rate, speed, the essentials of
its config, and, for a language model, how surprising each word of a few held-out sentences is from
both sides; for a model on top of one, the layer weights it has learned.
"""

_SCALAR_MIX = re.compile(r"(?:(.*)\.)?_?scalar_mix[^.]*\.scalar_parameters\.(\d+)")

# Sentences shorter than that say little, longer ones need several rows each.
SHOWN_LENGTHS = range(6, 29)


@Subcommand.register("lm-report", exist_ok=True)
class LmReport(Subcommand):
    """`allennlp lm-report SERIALIZATION_DIR`; `--help` has the options."""

    @overrides
    def add_subparser(self, parser: argparse._SubParsersAction) -> argparse.ArgumentParser:
        subparser = parser.add_parser(
            self.name, description=DESCRIPTION, help="Show a training run in one HTML file."
        )
        subparser.add_argument(
            "serialization_dir", type=Path, help="the --serialization-dir of allennlp train"
        )
        subparser.add_argument(
            "-o",
            "--output-file",
            type=Path,
            help="the HTML file; by default report.html in the run's folder",
        )
        subparser.add_argument(
            "--png", action="store_true", help="the charts as PNG files beside it, too"
        )
        subparser.add_argument(
            "--sentences",
            help="text to take the sentences of the heat maps from, one a line; "
            "by default the config's validation data",
        )
        subparser.add_argument(
            "--num-sentences", type=int, default=3, help="how many sentences to show"
        )
        subparser.add_argument("--force", action="store_true", help="replace files that are there")
        subparser.add_argument("--cuda-device", type=int, default=-1, help="a GPU's number")
        subparser.set_defaults(func=report_from_args)
        return subparser


def report_from_args(args: argparse.Namespace) -> None:
    try:
        written = write_report(
            args.serialization_dir,
            args.output_file or args.serialization_dir / "report.html",
            png=args.png,
            sentences=args.sentences,
            num_sentences=args.num_sentences,
            force=args.force,
            device=args.cuda_device,
        )
    except (ConfigurationError, OSError) as error:
        sys.exit(f"allennlp lm-report: {getattr(error, 'message', error)}")
    for path in written:
        print(path)


@dataclass(frozen=True)
class Section:
    """A chart and what to say about it."""

    name: str
    title: str
    text: str
    chart: "Figure"


def write_report(
    folder: Path,
    output: Path,
    *,
    png: bool = False,
    sentences: Optional[str] = None,
    num_sentences: int = 3,
    force: bool = False,
    device: int = -1,
) -> List[Path]:
    """
    What `allennlp lm-report` does.

    # Returns

    `List[Path]`
        The files that were written.

    # Raises

    `ConfigurationError`
        If there is no run in `folder`, or there are files that would be replaced.
    """
    log = read_training_log(folder)
    if not output.parent.is_dir():
        raise ConfigurationError(f"There is no folder {output.parent} to write {output.name} to.")
    if output.exists() and not force:
        raise ConfigurationError(f"{output} exists. Give --force to replace it.")
    sections, remarks = curve_sections(log)
    weights = find_weights(folder)
    if weights is None:
        remarks.append("There are no weights in this folder yet (best.th or model.tar.gz).")
    elif _is_language_model(log.config):
        found, remark = _heat_maps(log, weights, sentences, num_sentences, device)
        sections += found
        remarks += remark
    else:
        sections += _layer_sections(weights)
    if not sections:
        raise ConfigurationError(
            f"There is nothing to show in {folder}: no metrics_epoch_*.json, no TensorBoard log, "
            "and no weights."
        )
    pictures = {section.name: _png(section.chart) for section in sections}
    files = {output: _page(log, sections, remarks, pictures).encode("utf-8")}
    if png:
        for name, picture in pictures.items():
            files[output.with_name(f"{output.stem}.{name}.png")] = picture
    taken = [path for path in files if path.exists()]
    if taken and not force:
        raise ConfigurationError(f"{taken[0]} exists. Give --force to replace it.")
    for path, content in files.items():
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return list(files)


def curve_sections(log: TrainingLog) -> Tuple[List[Section], List[str]]:
    """
    # Returns

    `Tuple[List[Section], List[str]]`
        The curves that the log has data for, and what to say of those that it hasn't.
    """
    from transformer_elmo.commands import charts

    sections: List[Section] = []
    remarks: List[str] = []

    def add(name: str, title: str, text: str, chart: "Figure") -> None:
        sections.append(Section(name, title, text, chart))

    def named(lines: Dict[str, List[Point]]) -> Dict[str, List[Point]]:
        return {label: points for label, points in lines.items() if points}

    by_epoch = named(
        {
            "training": log.by_epoch("training_perplexity"),
            "validation": log.by_epoch("validation_perplexity"),
            "validation, from the left": log.by_epoch("validation_forward_perplexity"),
            "validation, from the right": log.by_epoch("validation_backward_perplexity"),
        }
    )
    if by_epoch:
        add(
            "perplexity",
            "Perplexity by epoch",
            "Over all words of an epoch. In training it is that of the sampled softmax, if the "
            "model has one, and with dropout; in validation it is exact.",
            charts.curves(by_epoch, "epoch", "perplexity", log=True, best=log.best_epoch),
        )
    losses = {
        label: [Point(p.step, math.log(p.value), p.time) for p in points if p.value > 0]
        for label, points in by_epoch.items()
    } or named(
        {"training": log.by_epoch("training_loss"), "validation": log.by_epoch("validation_loss")}
    )
    if losses:
        add(
            "loss",
            "Loss by epoch",
            "The mean over words, in nats: the logarithm of the perplexity."
            if by_epoch
            else "The mean of batches.",
            charts.curves(losses, "epoch", "loss", best=log.best_epoch),
        )

    trainer = log.config.get("trainer") or {}
    metric = str(trainer.get("validation_metric", "")).lstrip("+-")
    if metric not in ("", "loss", "perplexity"):
        # A model on top of a language model is judged by something of its own.
        by_metric = named(
            {
                "training": log.by_epoch(f"training_{metric}"),
                "validation": log.by_epoch(f"validation_{metric}"),
            }
        )
        if by_metric:
            add(
                "metric",
                f"{metric} by epoch",
                "What chooses the best epoch.",
                charts.curves(by_metric, "epoch", metric, best=log.best_epoch),
            )

    scalars = log.scalars
    clock = scalars.get("train/batch_loss", [])
    if len(clock) > 1:
        steps = named(
            {
                "training, each batch": clock,
                "validation": _by_step(scalars.get("validation/loss", []), clock),
                "training, moving average": scalars.get("train/batch_loss_mov_avg", []),
            }
        )
        add(
            "loss_by_step",
            "Loss by step",
            "As it was logged: means of batches. Validation stands where it was when it ended.",
            charts.curves(steps, "step", "loss"),
        )
        perplexities = named(
            {
                "training": scalars.get("train/batch_perplexity", []),
                "validation": _by_step(scalars.get("validation/perplexity", []), clock),
            }
        )
        if perplexities:
            add(
                "perplexity_by_step",
                "Perplexity by step",
                "In training, over the words of the epoch so far.",
                charts.curves(perplexities, "step", "perplexity", log=True),
            )
        title, text, speed = _speed(log, clock)
        if speed:
            add("speed", title, text, charts.curves({title: speed}, "step", title, from_zero=True))
    elif scalars:
        remarks.append(
            "There are no curves by step: the run has logged too few of them. The callback "
            "tensorboard logs every 100 batches; its summary_interval changes that."
        )
    else:
        remarks.append(
            "There are no curves by step: train with the callback "
            '{"type": "tensorboard", "should_log_learning_rate": true} to have them.'
        )
    rates = [points for name, points in scalars.items() if name.startswith("learning_rate/")]
    if rates:
        # Parameters that are frozen have a rate of zero.
        rate = max(rates, key=lambda points: max(point.value for point in points))
        add(
            "learning_rate",
            "Learning rate",
            "",
            charts.curves({"learning rate": rate}, "step", "learning rate", from_zero=True),
        )
    return sections, remarks


def _by_step(points: List[Point], clock: List[Point]) -> List[Point]:
    """Points that were logged by epoch, put at the step of the same time."""
    result = []
    for point in points:
        before = [p for p in clock if p.time <= point.time]
        after = [p for p in clock if p.time > point.time]
        if not before or not after:
            # Beyond what was logged, the pace of the last steps.
            one, other = (clock[0], clock[1]) if not before else (clock[-2], clock[-1])
        else:
            one, other = before[-1], after[0]
        pace = (other.step - one.step) / max(other.time - one.time, 1e-6)
        step = one.step + pace * (point.time - one.time)
        result.append(Point(max(0, round(step)), point.value, point.time))
    return result


def _speed(log: TrainingLog, clock: List[Point]) -> Tuple[str, str, List[Point]]:
    logged = log.scalars.get("train/tokens_per_second")
    if logged:
        return "Tokens a second", "As it was logged.", logged
    per_batch = (log.config.get("data_loader") or {}).get("max_tokens")
    rates = [
        Point(after.step, (after.step - before.step) / (after.time - before.time), after.time)
        for before, after in pairwise(clock)
        if after.time > before.time
    ]
    if isinstance(per_batch, int):
        devices = (log.config.get("distributed") or {}).get("cuda_devices") or [0]
        most = per_batch * len(devices)
        return (
            "Tokens a second, at most",
            f"Steps a second between two that were logged, times the {most:,} tokens that a step "
            "has room for. Validation and checkpoints in between count as time.",
            [Point(p.step, p.value * most, p.time) for p in rates],
        )
    return "Steps a second", "Validation and checkpoints in between count as time.", rates


def _is_language_model(config: Dict[str, Any]) -> bool:
    from allennlp.models import Model

    kind: Any = (config.get("model") or {}).get("type")
    try:
        return issubclass(Model.resolve_class_name(kind)[0], LanguageModel)
    except (ConfigurationError, TypeError, AttributeError):
        return False


def find_weights(folder: Path) -> Optional[Path]:
    """The run's archive, or its best weights so far, if there are any."""
    for name in ("model.tar.gz", "best.th"):
        if (folder / name).exists():
            return folder / name
    return None


def _heat_maps(
    log: TrainingLog, weights: Path, sentences: Optional[str], count: int, device: int
) -> Tuple[List[Section], List[str]]:
    from transformer_elmo.commands import charts

    path = sentences or log.config.get("validation_data_path")
    if not path or count < 1:
        return [], ["There are no heat maps: name a text with --sentences."] if count > 0 else []
    try:
        shards = find_shards(path)
    except (ConfigurationError, OSError) as error:
        if sentences:
            raise
        return [], [f"There are no heat maps, because the validation data isn't here: {error}"]
    archive = weights if weights.name == "model.tar.gz" else weights.parent
    elmo = TransformerElmo.from_archive(archive, device=device)
    lines = (line for shard in shards for line in read_sentences(shard))
    words = (elmo.words(line) for line in islice(lines, 10_000))
    # What the user names is shown as it is.
    chosen = list(islice((w for w in words if sentences or _is_worth_showing(w)), count))
    sections = []
    for number, scores in enumerate(elmo.score(chosen), start=1):
        text = " ".join(scores.tokens[: charts.MOST_WORDS])
        if len(scores.tokens) > charts.MOST_WORDS:
            text += f" … (the first {charts.MOST_WORDS} of {len(scores.tokens)} words)"
        if number == 1:
            text += (
                " — Each number is a word's surprisal in bits, -log2 of its probability given all "
                "words on that side: 1 bit is one chance in two, 10 bits are one in a thousand. "
                "Words with a dagger are outside the vocabulary: theirs is that of any such word."
            )
        sections.append(
            Section(
                f"sentence_{number}",
                f"Sentence {number}: perplexity {scores.perplexity:.1f}",
                text,
                charts.surprisal_map(scores),
            )
        )
    return sections, []


def _is_worth_showing(words: List[str]) -> bool:
    return len(words) in SHOWN_LENGTHS and 2 * sum(map(str.isalpha, words)) > len(words)


def _layer_sections(weights: Path) -> List[Section]:
    from transformer_elmo.commands import charts

    mixtures = learned_mixtures(weights)
    if not mixtures:
        return []
    return [
        Section(
            "layers",
            "Layer weights",
            "How much of each of the language model's layers the model on top of it uses.",
            charts.layer_weights(mixtures),
        )
    ]


def learned_mixtures(weights: Path) -> List[Tuple[str, List[float], float]]:
    """
    The scalar mixes (`allennlp.modules.scalar_mix`) among a model's weights: for each its module's
    name, the softmax of its parameters, and its `gamma`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if weights.name == "model.tar.gz":
            with tarfile.open(weights) as archive:
                member = archive.extractfile("weights.th")
                assert member is not None
                weights = Path(folder) / "weights.th"
                with weights.open("wb") as file:
                    while block := member.read(2**24):
                        file.write(block)
        state: Dict[str, torch.Tensor] = dict(util.read_state_dict(str(weights)))
    found: Dict[str, Dict[int, float]] = {}
    names: Dict[str, str] = {}
    for key, value in state.items():
        match = _SCALAR_MIX.fullmatch(key)
        if match:
            prefix = key[: key.rindex(".scalar_parameters")]
            found.setdefault(prefix, {})[int(match[2])] = value.item()
            names[prefix] = (match[1] or prefix).replace("_text_field_embedder.", "")
    result = []
    for prefix, by_layer in found.items():
        scalars = torch.tensor([by_layer[number] for number in sorted(by_layer)])
        gamma = state.get(prefix + ".gamma", torch.ones(1)).item()
        result.append((names[prefix], torch.softmax(scalars, 0).tolist(), gamma))
    return result


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Where no font has a word's characters, there are boxes in their place.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        # Without the version, so that the same run gives the same file.
        figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


_ESSENTIALS = (
    "model.type",
    "model.num_samples",
    "model.precision",
    "model.contextualizer.type",
    "model.contextualizer.input_dim",
    "model.contextualizer.hidden_dim",
    "model.contextualizer.num_layers",
    "model.contextualizer.dropout",
    "data_loader.type",
    "data_loader.max_tokens",
    "data_loader.batch_size",
    "trainer.optimizer",
    "trainer.learning_rate_scheduler",
    "trainer.num_epochs",
    "train_data_path",
    "validation_data_path",
    "vocabulary",
    "distributed",
)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
img { width: 100%; height: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem 1.5rem .2rem 0; border-bottom: 1px solid #ddd;
         vertical-align: top; font-weight: normal; }
th { color: #555; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; }
.remark { color: #555; }
"""


def _page(
    log: TrainingLog, sections: List[Section], remarks: List[str], pictures: Dict[str, bytes]
) -> str:
    title = html.escape(f"Training run {log.folder.resolve().name}")
    body = [f"<h1>{title}</h1>", _table(_results(log))]
    for section in sections:
        picture = base64.b64encode(pictures[section.name]).decode("ascii")
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.text:
            body.append(f"<p>{html.escape(section.text)}</p>")
        body.append(
            f'<img alt="{html.escape(section.title)}" src="data:image/png;base64,{picture}">'
        )
    body += [f'<p class="remark">{html.escape(remark)}</p>' for remark in remarks]
    body += ["<h2>Config</h2>", _table(_essentials(log.config))]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _table(rows: List[Tuple[str, str]]) -> str:
    cells = "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>\n{cells}\n</table>"


def _results(log: TrainingLog) -> List[Tuple[str, str]]:
    last = {**(log.epochs[-1] if log.epochs else {}), **log.final}
    rows = [("epochs", str(len(log.epochs)))]
    if log.best_epoch is not None:
        rows.append(("best epoch", str(log.best_epoch)))
    for name, value in last.items():
        if name == "training_duration":
            rows.append(("duration", str(value).partition(".")[0]))
        elif name.startswith(("best_validation_", "test_")) and isinstance(value, (int, float)):
            rows.append((name.replace("_", " "), f"{value:.4f}"))
    return rows


def _essentials(config: Dict[str, Any]) -> List[Tuple[str, str]]:
    rows = []
    for path in _ESSENTIALS:
        value: Any = config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            rows.append((path, value if isinstance(value, str) else json.dumps(value)))
    return rows
