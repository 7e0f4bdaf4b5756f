"""
How long, how fast and with how much dropout a small language model is best adapted: the shipped
`fine_tune_language_model.jsonnet` with other numbers in their places.

    python scripts/benchmark/adaptation_settings.py --brown package --kjv kjv.txt --output OUT

Texts and model are those of adaptation.py, which says how to get them. Each run is a line of
OUT/settings.jsonl with the exact perplexity of the text held out after every epoch; a second call
goes on with what is missing.
"""

import argparse
import json
import os
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any, Dict, List

sys.path.insert(0, str(Path(__file__).resolve().parent))

# First: before anything starts threads.
from adaptation import CONFIGS, append, kjv, lines_of, prepared, write_split  # isort: skip

import torch
from allennlp.commands.train import train_model
from allennlp.common import Params

from transformer_elmo.config_files import evaluated_file

WORDS = (100_000, 800_000)
EPOCHS = {100_000: 6, 800_000: 1}
RATES = (0.0006, 0.002)
DROPOUTS = (0.1, 0.2, 0.3)
WARMUP = 200


def perplexities(
    archive: Path, text: Dict[str, Path], settings: Dict[str, Any], run: Path
) -> List[float]:
    """After each epoch."""
    os.environ["BIDIRECTIONAL_LM_ARCHIVE_PATH"] = str(archive)
    os.environ["BIDIRECTIONAL_LM_TRAIN_PATH"] = str(text["train"])
    config: Dict[str, Any] = evaluated_file(str(CONFIGS / "fine_tune_language_model.jsonnet"), None)
    config["validation_data_path"] = str(text["heldout"])
    config["model"]["dropout"] = settings["dropout"]
    config["model"]["contextualizer"]["dropout"] = settings["dropout"]
    trainer = config["trainer"]
    trainer.update(num_epochs=settings["epochs"], checkpointer=None, callbacks=[])
    schedule = trainer["learning_rate_scheduler"]
    schedule["warmup_steps"] = settings["warmup"]
    # The highest rate is factor / sqrt(model_size * warmup_steps).
    schedule["factor"] = settings["rate"] * (schedule["model_size"] * settings["warmup"]) ** 0.5
    train_model(Params(config), str(run), force=True)
    epochs = sorted(run.glob("metrics_epoch_*.json"), key=lambda path: int(path.stem[14:]))
    return [json.loads(path.read_text("utf-8"))["validation_perplexity"] for path in epochs]


def main() -> None:
    """Prints the table, and keeps what it is made of."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--brown", type=Path, required=True, help="the unpacked npm package")
    parser.add_argument("--kjv", type=Path, required=True, help="what bible prints")
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    parser.add_argument("--words", type=int, nargs="+", default=list(WORDS))
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--dropouts", type=float, nargs="+", default=list(DROPOUTS))
    parser.add_argument("--warmup", type=int, default=WARMUP)
    options = parser.parse_args()
    torch.set_num_threads(1)
    archive = prepared(options, "brown", "kjv")["archive"]
    file = options.output / "settings.jsonl"
    rows = lines_of(file)
    for words, rate, dropout in product(options.words, options.rates, options.dropouts):
        settings = {
            "words": words,
            "epochs": EPOCHS.get(words, 3),
            "rate": rate,
            "warmup": options.warmup,
            "dropout": dropout,
        }
        if any(settings.items() <= row.items() for row in rows):
            continue
        begin = time.perf_counter()
        text = write_split(kjv(options.kjv), options.output, f"kjv-{words}", words)
        found = perplexities(archive, text, settings, options.output / "settings")
        seconds = round(time.perf_counter() - begin)
        rows.append({**settings, "perplexities": found, "seconds": seconds})
        append(file, rows[-1])
    print("\n| words | highest rate | warm-up | dropout | perplexity after each epoch |")
    print("| ---: | ---: | ---: | ---: | --- |")
    for row in rows:
        shown = ", ".join(f"{value:.1f}" for value in row["perplexities"])
        print(
            f"| {row['words']:,} | {row['rate']} | {row['warmup']} | {row['dropout']} | {shown} |"
        )


if __name__ == "__main__":
    main()
