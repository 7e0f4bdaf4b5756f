"""
What each change of the recipe is worth: small language models trained in pairs that differ in one
thing and share their seed, and so their first weights and their order of batches.

    python scripts/benchmark/recipe.py OUT --text TEXT       a sentence a line, tokenized; .gz, too
    python scripts/benchmark/recipe.py OUT --table
    python scripts/benchmark/recipe.py --step-times --text TEXT --variants baseline muon

Each run is a line of OUT/runs.jsonl with its held-out loss, exact, at several steps. A second call
goes on with what is missing. The baseline and the recipe are run over a grid of learning rates
first, then each change alone at the baseline's best rate. It needs the core alone.
"""

import argparse
import collections
import gzip
import json
import math
import multiprocessing
import multiprocessing.connection
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
import torch
from numpy.typing import NDArray

from transformer_elmo.model_config import (
    CharactersConfig,
    ContextualizerConfig,
    ModelConfig,
    SoftmaxConfig,
    TextConfig,
)
from transformer_elmo.nn.batch import BatchReader, WordBatch
from transformer_elmo.nn.kernels.adam import update_group
from transformer_elmo.nn.kernels.muon import update_matrices
from transformer_elmo.nn.language_model import LanguageModel, losses_of_directions, predicted
from transformer_elmo.nn.packing import Packing
from transformer_elmo.nn.precision import computing
from transformer_elmo.text.batching import cut_into_batches, random_order
from transformer_elmo.text.vocabulary import UNKNOWN, WordList

Arrays = Dict[str, NDArray[Any]]

SCHEDULES = ("noam", "warmup_stable_decay")
# What can be on or off, and a variant's name is what is on, joined by " + ".
FACTORS = ("relu_squared", "linear_decay", "no_dropout", "muon")
BASELINE = "baseline"
RECIPE = "relu_squared + linear_decay"
VARIANTS = (
    *(BASELINE, "relu_squared", "linear_decay", RECIPE),
    *("no_dropout", "relu_squared + no_dropout", "linear_decay + no_dropout"),
    *(f"{RECIPE} + no_dropout", "muon", "linear_decay + muon", f"{RECIPE} + muon"),
)
# All combinations of the first three: each thing's effect is measured in all eight runs.
DESIGN = VARIANTS[:8]


def is_on(factor: str, variant: str) -> bool:
    return factor in variant.split(" + ")


# As a share of the steps: warm-up, and the fall to zero where there is one.
WARMUP, DECAY = 0.1, 0.6
# The shares of the run that the averages of weights look back on.
AVERAGES = (0.02, 0.06)
HELDOUT_TOKENS_PER_BATCH = 6000


@dataclass(frozen=True)
class Run:
    """
    # Attributes

    size : `str`
        Layers and width: "4x384".
    variant : `str`
    rate : `float`
        The highest learning rate.
    seed : `int`
    steps : `int`
    tokens : `int`
        Of a batch, padding included.
    """

    size: str
    variant: str
    rate: float
    seed: int
    steps: int
    tokens: int


@dataclass(frozen=True)
class Data:
    """Batches as arrays: those to train on by their size, and the held-out ones."""

    training: Dict[int, List[Arrays]]
    heldout: List[Arrays]
    num_words: int
    num_training_tokens: int
    num_heldout_tokens: int


def read_data(path: Path, sizes: Sequence[int], heldout: int, longest: int = 100) -> Data:
    """Every so many-th sentence is held out; longer ones than so many words are left out."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        lines = [words for words in map(str.split, file) if 0 < len(words) <= longest]
    train = [words for number, words in enumerate(lines) if number % heldout]
    kept_out = lines[::heldout]
    if not train:
        raise SystemExit(
            f"{path} has {len(lines)} sentences of at most {longest} words: too few to train on "
            f"some and hold out every {heldout}th. Expected text, a tokenized sentence a line."
        )
    counts = collections.Counter(word for words in train for word in words)
    common = sorted((w for w, n in counts.items() if n >= 3), key=lambda w: (-counts[w], w))
    vocabulary = WordList(["</S>", "<S>", UNKNOWN, *common])
    reader = BatchReader(vocabulary, ["<S>"], ["</S>"])

    def batches(sentences: List[List[str]], tokens: int) -> List[Arrays]:
        lengths = np.array([len(words) + 2 for words in sentences])
        return [
            reader.arrays([reader.with_boundaries(sentences[i]) for i in indices.tolist()])
            for indices in cut_into_batches(lengths, tokens, None, (0,))
        ]

    return Data(
        {tokens: batches(train, tokens) for tokens in sizes},
        batches(kept_out, HELDOUT_TOKENS_PER_BATCH),
        len(vocabulary) + 1,
        sum(len(words) + 2 for words in train),
        sum(len(words) + 2 for words in kept_out),
    )


def build(run: Run, num_words: int) -> LanguageModel:
    num_layers, dim = map(int, run.size.split("x"))
    dropout = 0.0 if is_on("no_dropout", run.variant) else 0.1
    activation = "relu_squared" if is_on("relu_squared", run.variant) else "relu"
    shares = ((1, 16), (2, 16), (3, 8), (4, 4), (5, 2))
    config = ModelConfig(
        CharactersConfig(
            262, 16, [(width, dim // part) for width, part in shares], 1, dim, do_layer_norm=True
        ),
        ContextualizerConfig(dim, 4 * dim, num_layers, dropout, dropout, activation),
        TextConfig(),
        SoftmaxConfig(num_words, min(2048, num_words // 4), True),
        dropout,
    )
    return config.build()


def factor(schedule: str, step: int, steps: int) -> float:
    """Of the highest learning rate, at a step counted from 1."""
    warmup = max(1, round(WARMUP * steps))
    if step <= warmup:
        return step / warmup
    if schedule == "noam":
        return math.sqrt(warmup / step)
    return min(1.0, (steps - step) / (DECAY * steps))


class Trainee:
    """A model in training, with averages of its weights."""

    def __init__(self, run: Run, data: Data, device: torch.device, precision: str) -> None:
        torch.manual_seed(run.seed)
        self.run, self.device, self.precision = run, device, precision
        self.model = build(run, data.num_words).to(device).train()
        named = dict(self.model.named_parameters())
        self.parameters: List[torch.Tensor] = list(named.values())
        self.averages = [[p.detach().clone() for p in self.parameters] for _ in AVERAGES]
        by_muon = [
            p
            for name, p in named.items()
            if is_on("muon", run.variant) and name.startswith("contextualizer.") and p.dim() == 2
        ]
        self.muon: Dict[str, Any] = {"params": by_muon, "momentum": 0.95}
        theirs = set(map(id, by_muon))
        self.adam: Dict[str, Any] = {
            "params": [p for p in self.parameters if id(p) not in theirs],
            "betas": (0.9, 0.999),
            "eps": 1e-8,
        }
        self.states: Dict[Any, Dict[str, Any]] = collections.defaultdict(dict)

    def step(self, batch: WordBatch, packing: Packing, number: int) -> torch.Tensor:
        self.model.zero_grad()
        losses = self.losses(batch, packing, self.precision)
        loss = torch.stack([direction.mean() for direction in losses]).mean()
        loss.backward()
        schedule = SCHEDULES[is_on("linear_decay", self.run.variant)]
        rate = self.run.rate * factor(schedule, number, self.run.steps)
        with torch.no_grad():
            update_group({**self.adam, "lr": rate}, self.states)
            update_matrices({**self.muon, "lr": rate}, self.states)
            for share, average in zip(AVERAGES, self.averages):
                torch._foreach_lerp_(average, self.parameters, 1 / max(1.0, share * self.run.steps))
        return loss.detach()

    def losses(self, batch: WordBatch, packing: Packing, precision: str) -> List[torch.Tensor]:
        model = self.model
        assert batch.token_ids is not None and model.softmax is not None
        with computing(precision, False, self.device):
            rows = model.contextualizer.rows(model.words(batch), packing)
            predicting = [
                model.dropout(packing.forward.tokens_of_rows(rows[0][-1], packing.with_next)),
                model.dropout(packing.backward.tokens_of_rows(rows[1][-1], packing.with_previous)),
            ]
            targets = predicted(packing, batch.token_ids, True)
            return losses_of_directions(model.softmax, predicting, targets)

    @torch.no_grad()
    def heldout(self, batches: "Batches", weights: Optional[List[torch.Tensor]] = None) -> float:
        """The mean loss in nats over words and directions, exact, in float32."""
        kept = None
        if weights is not None:
            kept = [p.detach().clone() for p in self.parameters]
            torch._foreach_copy_(self.parameters, weights)
        self.model.eval()
        total, number = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for batch, packing in batches.all():
            for direction in self.losses(batch, packing, "float32"):
                total += direction.double().sum()
                number += direction.numel()
        self.model.train()
        if kept is not None:
            torch._foreach_copy_(self.parameters, kept)
        return float(total) / number


class Batches:
    """Batches on a device, each moved there when it is first used."""

    def __init__(self, arrays: List[Arrays], device: torch.device) -> None:
        self._arrays, self._device = arrays, device
        self._made: Dict[int, Tuple[WordBatch, Packing]] = {}

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, number: int) -> Tuple[WordBatch, Packing]:
        if number not in self._made:
            batch = WordBatch.from_arrays(self._arrays[number], self._device)
            self._made[number] = batch, Packing(batch.mask, batch.lengths)
        return self._made[number]

    def all(self) -> Iterator[Tuple[WordBatch, Packing]]:
        return (self[number] for number in range(len(self)))

    def in_order(self, seed: int) -> Iterator[Tuple[WordBatch, Packing]]:
        """All of them again and again, each time in another order."""
        epoch = 0
        while True:
            for number in random_order(len(self), seed, epoch).tolist():
                yield self[number]
            epoch += 1


class OutOfTimeError(Exception):
    """The deadline came in the middle of a run."""


def train(
    run: Run,
    data: Data,
    training: Batches,
    heldout: Batches,
    device: torch.device,
    precision: str,
    deadline: float,
    points: int = 5,
) -> Dict[str, Any]:
    """A run's result."""
    trainee = Trainee(run, data, device, precision)
    order = training.in_order(run.seed)
    curve: List[Tuple[int, float, float]] = []
    measured = {round(run.steps * (n + 1) / points) for n in range(points)}
    seconds, since = 0.0, time.monotonic()
    for number in range(1, run.steps + 1):
        loss = trainee.step(*next(order), number)
        if number in measured:
            is_finite = math.isfinite(float(loss))
            seconds += time.monotonic() - since
            curve.append((number, seconds, trainee.heldout(heldout) if is_finite else math.inf))
            since = time.monotonic()
            if not is_finite:
                break
        if time.monotonic() > deadline:
            raise OutOfTimeError
    final = curve[-1][2]
    return {
        **asdict(run),
        "loss": final,
        "averaged": [
            trainee.heldout(heldout, average) if math.isfinite(final) else math.inf
            for average in trainee.averages
        ],
        "curve": curve,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in trainee.parameters),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "precision": precision,
        "torch": torch.__version__,
        "vocabulary": data.num_words,
        "training_tokens": data.num_training_tokens,
        "heldout_tokens": data.num_heldout_tokens,
    }


def work(connection: Any, data: Data, options: argparse.Namespace, deadline: float) -> None:
    """Of a process: runs until there are no more."""
    # Side by side, they have a core each.
    torch.set_num_threads(1)
    device, precision = torch.device(options.device), options.precision
    training = {tokens: Batches(arrays, device) for tokens, arrays in data.training.items()}
    heldout = Batches(data.heldout, device)
    while True:
        run = connection.recv()
        if run is None:
            return
        try:
            result: Any = train(
                run,
                data,
                training[run.tokens],
                heldout,
                device,
                precision,
                deadline,
                options.points,
            )
            if device.type == "cuda":
                # The others want memory, too.
                torch.cuda.empty_cache()
        except OutOfTimeError:
            result = None
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        connection.send(result)


def step_times(options: argparse.Namespace) -> Iterator[str]:
    """
    Of each variant's steps over the first one's: in pairs, on the same batch, one right after the
    other. CPU time on a CPU, where other programs don't count.
    """
    device = torch.device(options.device)
    torch.set_num_threads(1)

    def now() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    yield "| | tokens | median step, ms | over the first one's: median (quarters) |"
    yield "| --- | ---: | ---: | ---: |"
    for tokens in sorted({options.tokens, options.large_batch}):
        data = read_data(options.text, [tokens], options.heldout)
        batches = Batches(data.training[tokens], device)
        for size in options.sizes:
            seconds: Dict[str, List[float]] = collections.defaultdict(list)
            trainees = {
                variant: Trainee(
                    Run(size, variant, 0.001, 0, 1000, tokens), data, device, options.precision
                )
                for variant in options.variants
            }
            order = batches.in_order(0)
            # The first steps are slower.
            for number in range(1, options.steps + 3):
                batch = next(order)
                for variant, trainee in trainees.items():
                    begin = now()
                    trainee.step(*batch, number)
                    seconds[variant].append(now() - begin)
            of_first = seconds[options.variants[0]][2:]
            for variant in options.variants:
                its = seconds[variant][2:]
                low, middle, high = np.quantile(np.divide(its, of_first), (0.25, 0.5, 0.75))
                yield (
                    f"| {size} {variant} | {tokens} | {1000 * statistics.median(its):.0f} "
                    f"| {middle:.3f} ({low:.3f} to {high:.3f}) |"
                )


def key(result: Dict[str, Any]) -> Run:
    return Run(**{name: result[name] for name in Run.__dataclass_fields__})


class Plan:
    """
    Which runs are to be made, the most informative ones first. What comes later depends on what
    came before.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options

    def runs(self, results: Dict[Run, Dict[str, Any]]) -> Iterator[Run]:
        options = self._options
        rates = options.rates
        sizes: List[str] = options.sizes

        def run(size: str, variant: str, rate: float, seed: int, share: float = 1.0) -> Run:
            steps = round(options.steps * share)
            return Run(size, variant, rate, seed, steps, options.tokens)

        if options.factorial:
            for seed in range(options.seeds):
                for variant in DESIGN:
                    for size in sizes:
                        for rate in rates:
                            yield run(size, variant, rate, seed)
            return
        if options.variants:
            for seed in range(options.seeds):
                for size in sizes:
                    for variant in options.variants:
                        # There is nothing to wait for where there is nothing to choose.
                        chosen = (
                            rates[0]
                            if len(rates) == 1
                            else self._best(results, run(size, variant, 0.0, 0), rates)
                        )
                        for rate in rates if seed == 0 else [] if chosen is None else [chosen]:
                            yield run(size, variant, rate, seed)
                            if options.share is not None and rate == chosen and variant != BASELINE:
                                yield run(size, variant, rate, seed, options.share)
            return
        tuned = (BASELINE, RECIPE)
        # The largest models take longest.
        for size in reversed(sizes):
            for variant in tuned:
                for rate in rates:
                    yield run(size, variant, rate, 0)
        best = {
            (size, variant): self._best(results, run(size, variant, 0.0, 0), rates)
            for size in sizes
            for variant in tuned
        }
        for seed in range(options.seeds):
            for size in sizes:
                base, of_recipe = (best[size, variant] for variant in tuned)
                if base is None or of_recipe is None:
                    continue
                yield run(size, BASELINE, base, seed)
                yield run(size, RECIPE, of_recipe, seed)
                for variant in DESIGN:
                    yield run(size, variant, base, seed)
                # With a fall to zero the best rate may be another one.
                yield run(size, "linear_decay", 2 * base, seed)
                yield run(size, RECIPE, of_recipe, seed, 0.6)
            if seed == min(1, options.seeds - 1):
                yield from self._large_batches(sizes[-1], results)

    def _large_batches(self, size: str, results: Dict[Run, Dict[str, Any]]) -> Iterator[Run]:
        options = self._options
        tokens, rates = options.large_batch, options.rates
        steps = max(1, round(options.steps * options.tokens / tokens))
        variants = (BASELINE, "muon")
        for rate in rates:
            for variant in variants:
                yield Run(size, variant, rate, 0, steps, tokens)
        for seed in range(1, options.seeds):
            for variant in variants:
                best = self._best(results, Run(size, variant, 0.0, 0, steps, tokens), rates)
                if best is not None:
                    yield Run(size, variant, best, seed, steps, tokens)

    @staticmethod
    def _best(
        results: Dict[Run, Dict[str, Any]], run: Run, rates: Sequence[float]
    ) -> Optional[float]:
        """The rate of the lowest loss, once all of them have been tried."""
        found = {rate: results.get(replace(run, rate=rate)) for rate in rates}
        losses = {rate: result["loss"] for rate, result in found.items() if result is not None}
        return min(losses, key=losses.__getitem__) if len(losses) == len(found) else None


def read_results(path: Path) -> Dict[Run, Dict[str, Any]]:
    if not path.exists():
        return {}
    # The last line may have been cut off.
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return {key(result): result for result in map(json.loads, lines)}


def run_all(options: argparse.Namespace, begun: float) -> None:
    deadline = begun + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "runs.jsonl"
    results = read_results(path)
    data = read_data(options.text, [options.tokens, options.large_batch], options.heldout)
    print(
        f"{data.num_training_tokens} tokens to train on, {data.num_heldout_tokens} held out, "
        f"{data.num_words} words; read after {time.monotonic() - begun:.1f} s",
        flush=True,
    )
    plan = Plan(options)
    context = multiprocessing.get_context("fork")
    workers = []
    for _ in range(options.jobs):
        here, there = context.Pipe()
        process = context.Process(
            target=work,
            args=(there, data, options, deadline),
            daemon=True,
        )
        process.start()
        workers.append((here, process))
    in_flight: Dict[Any, Tuple[Run, float]] = {}
    failed: Set[Run] = set()
    idle = [here for here, _ in workers]
    # Seconds a step and size took, with all workers busy.
    pace: Dict[Tuple[str, int], float] = {}

    def next_run() -> Optional[Run]:
        left = deadline - time.monotonic()
        under_way = {run for run, _ in in_flight.values()}
        for run in plan.runs(results):
            if run in results or run in failed or run in under_way:
                continue
            if run.steps * pace.get((run.size, run.tokens), 0.0) < left:
                return run
        return None

    with path.open("a", encoding="utf-8") as file:
        while time.monotonic() < deadline:
            while idle and (run := next_run()) is not None:
                worker = idle.pop()
                in_flight[worker] = run, time.monotonic()
                worker.send(run)
            if not in_flight:
                break
            left = max(0.0, deadline - time.monotonic())
            ready: Any
            for ready in multiprocessing.connection.wait(list(in_flight), timeout=left):
                run, since = in_flight.pop(ready)
                took = time.monotonic() - since
                try:
                    result = ready.recv()
                    idle.append(ready)
                except EOFError:
                    result = "its process ended"
                if isinstance(result, str):
                    # The others may work all the same.
                    failed.add(run)
                    print(f"FAILED {run}: {result}", flush=True)
                    continue
                if result is not None:
                    pace[run.size, run.tokens] = took / run.steps
                    results[run] = result
                    file.write(json.dumps(result) + "\n")
                    file.flush()
                    print(
                        f"{time.monotonic() - begun:6.1f} s  {run.size} {run.variant} "
                        f"{run.rate:g} seed {run.seed}, {run.steps} steps of {run.tokens}: "
                        f"{result['loss']:.4f} in {took:.1f} s",
                        flush=True,
                    )
    for _, process in workers:
        process.terminate()
        process.join()
    print(f"{len(results)} runs, {time.monotonic() - begun:.0f} s.")


def compared(losses: Dict[int, float], baseline: Dict[int, float]) -> Tuple[int, float, float]:
    """Of losses by seed: the number of pairs, their mean difference and its standard error."""
    differences = [loss - baseline[seed] for seed, loss in losses.items() if seed in baseline]
    error = math.nan
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
    return len(differences), statistics.fmean(differences) if differences else math.nan, error


def table(results: Dict[Run, Dict[str, Any]]) -> Iterator[str]:
    groups = collections.defaultdict(list)
    for run in results:
        groups[run.size, run.tokens].append(run)
    for (size, tokens), runs in sorted(groups.items()):
        full = max(run.steps for run in runs)
        by_setting = collections.defaultdict(list)
        for run in runs:
            by_setting[run.variant, run.steps, run.rate].append(run)
        first = results[runs[0]]
        yield ""
        yield (
            f"### {size}, batches of {tokens} tokens, {full} steps ({first['parameters']:,} "
            f"parameters, {first['vocabulary']:,} words; {first['device']}, {first['precision']})"
        )
        yield ""
        yield "Seed 0, held-out loss by learning rate:"
        yield ""
        grid = sorted({run.rate for run in runs if run.seed == 0 and run.variant == BASELINE})
        yield "| | " + " | ".join(f"{rate:g}" for rate in grid) + " |"
        yield "| --- |" + " ---: |" * len(grid)
        for variant in VARIANTS:
            cells = [results.get(Run(size, variant, rate, 0, full, tokens)) for rate in grid]
            if sum(cell is not None for cell in cells) > 1:
                row = ["" if cell is None else f"{cell['loss']:.4f}" for cell in cells]
                yield f"| {variant} | " + " | ".join(row) + " |"
        yield from effects([run for run in runs if run.steps == full], results)
        yield from curves(by_setting, results, full)
        base = _best_setting(by_setting, results, BASELINE, full)
        if base is None:
            continue
        baseline = {run.seed: results[run]["loss"] for run in by_setting[base]}
        yield ""
        yield (
            f"Against the baseline at {base[2]:g}, whose loss is "
            f"{statistics.fmean(baseline.values()):.4f} ({len(baseline)} seeds):"
        )
        yield ""
        yield "| | rate | seeds | difference | standard error | seconds a step |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: |"
        for variant in VARIANTS:
            for name in sorted(name for name in by_setting if name[0] == variant):
                _, steps, rate = name
                title = variant if steps == full else f"{variant}, {steps} steps"
                of_setting = {run.seed: results[run] for run in by_setting[name]}
                losses = {title: {seed: r["loss"] for seed, r in of_setting.items()}}
                if name == _best_setting(by_setting, results, variant, steps):
                    for number, share in enumerate(AVERAGES):
                        losses[f"{title}, weights averaged over {share:.0%}"] = {
                            seed: r["averaged"][number] for seed, r in of_setting.items()
                        }
                seconds = statistics.fmean(r["seconds"] / steps for r in of_setting.values())
                for what, of_seeds in losses.items():
                    pairs, mean, error = compared(of_seeds, baseline)
                    yield (
                        f"| {what} | {rate:g} | {pairs} | {mean:+.4f} | {error:.4f} "
                        f"| {seconds:.4f} |"
                    )


def curves(
    by_setting: Dict[Tuple[str, int, float], List[Run]],
    results: Dict[Run, Dict[str, Any]],
    steps: int,
) -> Iterator[str]:
    """Each variant at its best rate, on the mean over its seeds."""
    rows = {}
    for variant in VARIANTS:
        setting = _best_setting(by_setting, results, variant, steps)
        if setting is not None:
            points = zip(*(results[run]["curve"] for run in by_setting[setting]))
            rows[variant] = [[statistics.fmean(numbers) for numbers in zip(*p)] for p in points]
    if not rows:
        return
    # One that came to nothing has fewer.
    most = max(rows.values(), key=len)
    yield ""
    yield "Held-out loss, and the seconds of training until then, by steps:"
    yield ""
    yield "| | " + " | ".join(f"{number:.0f}" for number, *_ in most) + " |"
    yield "| --- |" + " ---: |" * len(most)
    for variant, row in rows.items():
        cells = [f"{loss:.3f} ({seconds:.0f})" for _, seconds, loss in row]
        yield f"| {variant} | " + " | ".join(cells + [""] * (len(most) - len(cells))) + " |"


def effects(runs: Sequence[Run], results: Dict[Run, Dict[str, Any]]) -> Iterator[str]:
    """What each change does on the mean over the others, by least squares over a design."""
    for rate in sorted({run.rate for run in runs}):
        whole = collections.Counter(
            run.seed for run in runs if run.rate == rate and run.variant in DESIGN
        )
        seeds = [seed for seed, number in whole.items() if number == len(DESIGN)]
        made = [r for r in runs if r.rate == rate and r.variant in DESIGN and r.seed in seeds]
        if not made:
            continue
        factors = [name for name in FACTORS if any(is_on(name, run.variant) for run in made)]
        matrix = np.array(
            [
                [float(is_on(name, run.variant)) for name in factors]
                + [float(run.seed == seed) for seed in seeds]
                for run in made
            ]
        )
        losses = np.array([results[run]["loss"] for run in made])
        found = np.linalg.lstsq(matrix, losses, rcond=None)[0]
        residuals = losses - matrix @ found
        variance = residuals @ residuals / (len(made) - matrix.shape[1])
        errors = np.sqrt(variance * np.diag(np.linalg.inv(matrix.T @ matrix)))
        yield ""
        yield f"Each on the mean over the others, {len(made)} runs, {len(seeds)} seeds at {rate:g}:"
        yield ""
        yield "| | difference | standard error |"
        yield "| --- | ---: | ---: |"
        for name, value, error in zip(factors, found, errors):
            yield f"| {name} | {value:+.4f} | {error:.4f} |"


def _best_setting(
    by_setting: Dict[Tuple[str, int, float], List[Run]],
    results: Dict[Run, Dict[str, Any]],
    variant: str,
    steps: int,
) -> Optional[Tuple[str, int, float]]:
    """That of the lowest mean loss among those with most seeds."""
    found = [name for name in by_setting if name[:2] == (variant, steps)]
    return min(
        found,
        key=lambda name: (
            -len(by_setting[name]),
            statistics.fmean(results[run]["loss"] for run in by_setting[name]),
        ),
        default=None,
    )


def main() -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", help="folder of the results")
    parser.add_argument(
        "--step-times", action="store_true", help="what a step of the --variants takes, and no runs"
    )
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--text", type=Path, help="a sentence a line, tokenized")
    parser.add_argument("--sizes", nargs="+", default=["2x256", "4x384"], help="small ones first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=4000, help="of a batch, padding included")
    parser.add_argument("--large-batch", type=int, default=16000, help="tokens, for Muon")
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[0.0005, 0.001, 0.002, 0.004, 0.008]
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        help="these alone: at all rates with seed 0, at each one's best with the others",
    )
    parser.add_argument(
        "--share",
        type=float,
        help="the --variants but the baseline in this share of the steps, too, at their best rates",
    )
    parser.add_argument(
        "--factorial",
        action="store_true",
        help="all combinations of the first three changes, at all rates, seed by seed",
    )
    parser.add_argument("--points", type=int, default=5, help="held-out losses of a run's curve")
    parser.add_argument("--heldout", type=int, default=60, help="every so many-th sentence")
    parser.add_argument("--seconds", type=float, default=170.0, help="of all, reading included")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    # Not asked of torch: processes can't be forked once it has looked for a GPU.
    parser.add_argument("--device", default="cpu", help="cuda for a GPU")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    if options.text is None and not options.table:
        parser.error("--text names the text to train on")
    if options.text is not None and not options.text.is_file():
        parser.error(f"--text: there is no file {options.text}")
    if options.step_times:
        if not options.variants:
            parser.error("--step-times needs --variants")
        for line in step_times(options):
            print(line, flush=True)
        return
    if options.out is None:
        parser.error("name a folder for the results")
    if not options.table:
        run_all(options, begun)
    print("\n".join(table(read_results(options.out / "runs.jsonl"))))


if __name__ == "__main__":
    main()
