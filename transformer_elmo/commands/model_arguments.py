"""How a command is told of a model."""

import argparse

from transformer_elmo.elmo import TransformerElmo
from transformer_elmo.nn.precision import PRECISIONS

MODEL_HELP = "a model folder, a model.tar.gz, the folder of a training run, or a URL"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and how it is opened."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument(
        "--max-tokens", type=int, default=2000, help="tokens of a batch, padding included"
    )
    parser.add_argument(
        "--tokenizer", help="by name, for lines of text; by default the one of the model"
    )
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        help="how numbers are multiplied; by default as the model has it",
    )
    parser.add_argument(
        "--cuda-device", type=int, default=-1, help="a GPU's number; by default the CPU"
    )


def open_model(args: argparse.Namespace) -> TransformerElmo:
    """The model that the arguments name."""
    return TransformerElmo.open(
        args.model,
        device=args.cuda_device,
        precision=args.precision,
        tokenizer=args.tokenizer,
        max_tokens=args.max_tokens,
    )
