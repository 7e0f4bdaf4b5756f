"""`transformer-elmo report` and `allennlp lm-report`: a training run to look at, in one file."""

import argparse
from contextlib import nullcontext
from pathlib import Path

from transformer_elmo.commands.arguments import file_of
from transformer_elmo.commands.report.report import write_report

DESCRIPTION = """
Show a training run in one HTML file: its results and the essentials of its config, and, for a
language model, how surprising each word of a few held-out sentences is from both sides; for a model
on top of one, the layer weights it has learned. Curves are in the run's TensorBoard log.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "serialization_dir",
        type=Path,
        help="the --serialization-dir of allennlp train, a model.tar.gz, or a model folder",
    )
    parser.add_argument(
        "-o",
        "--output-file",
        type=Path,
        help="the HTML file; by default report.html in the run's folder",
    )
    parser.add_argument(
        "--sentences",
        help="text to take the sentences of the heat maps from, one a line (- for standard input); "
        "by default some are chosen from the config's validation data",
    )
    parser.add_argument(
        "--num-sentences", type=int, default=3, help="how many sentences to show (default: 3)"
    )
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    parser.add_argument(
        "--cuda-device", type=int, default=-1, help="a GPU's number; by default the CPU"
    )


def run(args: argparse.Namespace) -> None:
    """What the command does."""
    source: Path = args.serialization_dir
    with nullcontext((None, None)) if args.sentences is None else file_of(args.sentences) as text:
        written = write_report(
            source,
            args.output_file or (source.parent if source.is_file() else source) / "report.html",
            sentences=text[0],
            num_sentences=args.num_sentences,
            force=args.force,
            device=args.cuda_device,
        )
    print(written)
