"""
The recipe as configs have it, and what it is worth to a tagger: language models of the quickstart's
size are trained on the Brown corpus, and a part-of-speech tagger on top of each, which stays as it
is.

    python scripts/benchmark/recipe_tagger.py --brown package --output OUT

adaptation.py says how to get Brown. Seed 0 tries all learning rates; the others use the one that
was best. Each run is a line of OUT/recipe_tagger.jsonl, and a second call goes on with what is
missing.
"""

import argparse
import json
import math
import statistics
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent))

# First: before anything starts threads.
from adaptation import (  # isort: skip
    append,
    brown,
    lines_of,
    quickstart_config,
    tagger_accuracy,
    write_split,
    write_tagged,
)

import torch
from allennlp.commands.train import train_model
from allennlp.common import Params
from recipe import BASELINE, compared, is_on

Row = Dict[str, Any]

RECIPES = (
    *(BASELINE, "relu_squared", "linear_decay", "relu_squared + linear_decay"),
    *("linear_decay + muon", "relu_squared + linear_decay + muon"),
)
RATES = (0.004, 0.008, 0.016)
DIM = 128
EPOCHS, WARMUP, DECAY = 1, 100, 0.6


def config_of(recipe: str, rate: float, seed: int, text: Dict[str, Path]) -> Dict[str, Any]:
    """The quickstart's, with another recipe and its highest learning rate."""
    config = quickstart_config(text)
    trainer = config["trainer"]
    trainer.update(num_epochs=EPOCHS, checkpointer=None, callbacks=[])
    if is_on("relu_squared", recipe):
        config["model"]["contextualizer"]["activation"] = "relu_squared"
    optimizer = "muon_sparse_adam" if is_on("muon", recipe) else "dense_sparse_adam"
    trainer["optimizer"] = {"type": optimizer}
    if is_on("linear_decay", recipe):
        trainer["optimizer"]["lr"] = rate
        trainer["learning_rate_scheduler"] = {
            **{"type": "warmup_stable_decay", "warmup": WARMUP, "decay": DECAY}
        }
    else:
        trainer["learning_rate_scheduler"] = {
            **{"type": "noam", "model_size": DIM, "warmup_steps": WARMUP},
            "factor": rate * (DIM * WARMUP) ** 0.5,
        }
    config.update(random_seed=seed, numpy_seed=seed, pytorch_seed=seed)
    return config


def language_model(
    recipe: str, rate: float, seed: int, text: Dict[str, Path], run: Path
) -> Dict[str, float]:
    """What came of it."""
    begin = time.process_time()
    train_model(Params(config_of(recipe, rate, seed, text)), str(run), force=True)
    seconds = time.process_time() - begin
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    return {"perplexity": metrics["validation_perplexity"], "seconds": seconds}


def best_rate(rows: List[Row], recipe: str, rates: Sequence[float]) -> Optional[float]:
    """Once seed 0 has tried all."""
    found = {
        row["rate"]: row["perplexity"]
        for row in rows
        if (row["recipe"], row["seed"]) == (recipe, 0) and "perplexity" in row
    }
    tried = {rate: found[rate] for rate in rates if rate in found}
    is_tuned = len(tried) == len(rates) > 0
    return min(tried, key=tried.__getitem__) if is_tuned else None


def make_missing(options: argparse.Namespace, file: Path) -> None:
    plain = write_split(brown(options.brown), options.output, "brown")
    tagged = write_tagged(options.brown, options.output)

    def is_done(name: str, recipe: str, rate: Optional[float], seed: int) -> bool:
        setting = (recipe, rate, seed)
        return any(
            name in row and (row["recipe"], row["rate"], row["seed"]) == setting
            for row in lines_of(file)
        )

    for seed, recipe in product(range(options.seeds), options.recipes):
        rates = options.rates if seed == 0 else [best_rate(lines_of(file), recipe, options.rates)]
        for rate in rates:
            assert rate is not None
            run = options.output / f"{recipe} {rate} {seed}"
            if not is_done("perplexity", recipe, rate, seed):
                found = language_model(recipe, rate, seed, plain, run)
                append(file, {"recipe": recipe, "rate": rate, "seed": seed, **found})
        rate = best_rate(lines_of(file), recipe, options.rates)
        if not is_done("accuracy", recipe, rate, seed):
            archive = options.output / f"{recipe} {rate} {seed}" / "model.tar.gz"
            accuracy = tagger_accuracy(archive, tagged, seed, options.output / "tagger", DIM)
            row = {"recipe": recipe, "rate": rate, "seed": seed, "accuracy": 100 * accuracy}
            append(file, row)


def table(rows: List[Row], rates: Sequence[float]) -> Iterator[str]:
    yield "| seed 0, held-out perplexity | " + " | ".join(f"{rate:g}" for rate in rates) + " |"
    yield "| --- |" + " ---: |" * len(rates)
    for recipe in RECIPES:
        found = {
            row["rate"]: f"{row['perplexity']:.1f}"
            for row in rows
            if (row["recipe"], row["seed"]) == (recipe, 0) and "perplexity" in row
        }
        yield f"| {recipe} | " + " | ".join(found.get(rate, "") for rate in rates) + " |"
    yield ""
    yield (
        "| each at the best of its rates | perplexity "
        "| nats against the baseline, and standard error | tagger's accuracy, % "
        "| against the baseline | CPU seconds |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    baseline: Dict[str, Dict[int, float]] = {}
    for recipe in RECIPES:
        tried = {row["rate"] for row in rows if (row["recipe"], row["seed"]) == (recipe, 0)}
        rate = best_rate(rows, recipe, [rate for rate in rates if rate in tried])
        its = [row for row in rows if (row["recipe"], row["rate"]) == (recipe, rate)]
        perplexities, accuracies, seconds = (
            {row["seed"]: row[name] for row in its if name in row}
            for name in ("perplexity", "accuracy", "seconds")
        )
        if not accuracies:
            continue
        cells = [f"{recipe}, {rate:g}"]
        losses = {seed: math.log(value) for seed, value in perplexities.items()}
        for values, shown, digits in ((losses, perplexities, 1), (accuracies, accuracies, 2)):
            _, mean, error = compared(values, baseline.setdefault(str(digits), values))
            cells.append(", ".join(f"{value:.{digits}f}" for value in shown.values()))
            cells.append(f"{mean:+.3f} ({error:.3f})")
        cells.append(f"{statistics.fmean(seconds.values()):.0f}")
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Makes what is missing, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--brown", type=Path, required=True, help="the unpacked npm package")
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "recipe_tagger.jsonl"
    make_missing(options, file)
    print("\n" + "\n".join(table(lines_of(file), options.rates)))


if __name__ == "__main__":
    main()
