"""`transformer-elmo export`: a model folder out of an archive."""

import argparse
from pathlib import Path

from transformer_elmo.commands.arguments import MODEL_HELP, add
from transformer_elmo.files import check_can_make_folder
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.pretrained.folder import DTYPES
from transformer_elmo.pretrained.onnx import check_packages

DESCRIPTION = """
Write a language model as a folder that opens without AllenNLP: config.json, model.safetensors,
vocabulary.txt and a model card; with --onnx, model.onnx as well, for onnxruntime: the vectors of
all layers, in float32. Without its softmax, for vectors alone, the billion-word model has an eighth
of the size.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP + "; or an archive of a model on top of one")
    parser.add_argument("folder", type=Path, help="the folder to write")
    parser.add_argument("--without-softmax", action="store_true", help="for vectors alone")
    written = "how weights are written (default: float32)"
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help=written)
    parser.add_argument("--onnx", action="store_true", help="write model.onnx as well")
    parser.add_argument("--license", help="for the model card, as the Hub knows it: apache-2.0")
    parser.add_argument("--language", help="for the model card: en")
    add(parser, "--force")


def run(args: argparse.Namespace) -> None:
    if args.onnx:
        # Opening a large archive takes half a minute.
        check_packages()
    check_can_make_folder(args.folder, args.force)
    elmo = TransformerElmo.open(args.model, device="cpu")
    card = {"license": args.license, "language": args.language}
    options = {"with_softmax": not args.without_softmax, "dtype": args.dtype, "onnx": args.onnx}
    options["card"] = {name: value for name, value in card.items() if value}
    elmo.save(args.folder, replace=args.force, **options)
    print(f"wrote {args.folder}")
