"""What accelerator.py measures: rows of tables, and the order of their importance."""

import argparse
import contextlib
import gc
import itertools
import re
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional

import torch
import workload

STEPS = [
    "environment",
    "tests",
    "training",
    "loop",
    "embedding",
    "evaluation",
    "profile",
    "curves",
    "text",
]
PRECISIONS = ["float32", "tf32", "bfloat16"]
SIZES = [2000, 8000, 32000, 64000]
# Batches of each size: small ones are over before the clock has settled.
BATCHES = {2000: 12, 8000: 8, 32000: 6}
OTHER_BATCHES = 4
# How long a training row repeats its steps, once it is warm.
SECONDS_A_ROW = 1.5


class Row(NamedTuple):
    """
    A row of a table.

    # Attributes

    step : `str`
        The table.
    name : `str`
    seconds : `float`
        How long it should take on an H100, with what it may have to make first.
    measure : `Callable[[], Any]`
    """

    step: str
    name: str
    seconds: float
    measure: Callable[[], Any]


@dataclass
class Sample:
    """The same sentences for both sides, on the device."""

    ours: workload.Batch
    peers: workload.Batch
    num_tokens: int
    # Floating-point operations of a forward pass with the sampled softmax.
    flops: float


class Side:
    """One implementation that trains."""

    def __init__(self, model: torch.nn.Module, optimizer: Any, batch_of: Callable[[Sample], Any]):
        self.model, self.optimizer, self.batch_of = model, optimizer, batch_of
        self.context: Callable[[], Any] = contextlib.nullcontext
        self.trained = False
        self.loss: Optional[torch.Tensor] = None

    def step_on(self, batch: Any) -> None:
        self.trained = True
        self.optimizer.zero_grad()
        with self.context():
            loss = self.model(batch)["loss"]
        loss.backward()
        self.optimizer.step()
        self.loss = loss.detach()

    def steps(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            self.step_on(self.batch_of(sample))


class Session:
    """What the rows share: options, text, vocabulary, batches, models."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.device = torch.device(options.device)
        self._vocab: Any = None
        self._text: List[List[str]] = []
        self._samples: Dict[int, List[Sample]] = {}
        self._sides: Dict[str, Side] = {}

    @property
    def small(self) -> bool:
        return bool(self.options.small)

    @property
    def sizes(self) -> List[int]:
        """Tokens a batch."""
        return [200, 400] if self.small else self.options.sizes

    @property
    def section(self) -> Dict[str, Any]:
        section = workload.model_section()
        if self.small:
            section["num_samples"] = 64
            section["contextualizer"].update(input_dim=32, hidden_dim=64, num_layers=2)
            encoder = section["text_field_embedder"]["token_embedders"]["token_characters"]
            encoder["encoder"].update(filters=[[1, 8], [2, 8], [3, 16]], projection_dim=32)
        return section

    @property
    def text(self) -> List[List[str]]:
        self.make_text()
        return self._text

    @property
    def vocab(self) -> Any:
        self.make_text()
        return self._vocab

    def make_text(self) -> Dict[str, Any]:
        """A folder `text` with a vocabulary and a shard, if there is none."""
        if self._vocab is None:
            import data

            folder = self.out / "text"
            if not (folder / "complete").exists():
                folder.mkdir(exist_ok=True)
                if self.small:
                    data.VOCABULARY_SIZE = 30_000
                data.make_corpus(folder, 1, 300 if self.small else 30_000)
                (folder / "complete").touch()
            from allennlp.data import Vocabulary

            self._vocab = Vocabulary.from_files(folder / "vocabulary")
            lines = (folder / "shards" / "shard-000").read_text(encoding="utf-8").splitlines()
            self._text = [line.split() for line in lines]
        return {"words": self._vocab.get_vocab_size(), "sentences": len(self._text)}

    def samples(self, tokens: int) -> List[Sample]:
        if tokens not in self._samples:
            most = BATCHES.get(tokens, OTHER_BATCHES)
            # The more there are, the less the sentences of a batch differ in length.
            text = self.text[: max(400, 4 * most * tokens // 25)]
            self._samples[tokens] = [
                self._sample(batch)
                for batch in workload.batches(text, self.vocab, tokens, most=most)
            ]
        return self._samples[tokens]

    def _sample(self, batch: workload.Batch) -> Sample:
        ours = workload.with_distinct_words(batch)
        flops = workload.arithmetic(self.section, ours, self.section["num_samples"]).total
        return Sample(
            workload.on_device(ours, self.device),
            workload.on_device(batch, self.device),
            workload.num_tokens(batch),
            flops,
        )

    def side(self, name: str, precision: str) -> Side:
        """
        # Parameters

        name : `str`
            "ours", "ours compiled" or "peer".
        precision : `str`
        """
        with self.device:
            # Made on the device: 400 million random numbers take seconds elsewhere.
            if "ours" not in self._sides:
                self._sides["ours"] = self._our_side()
            if name == "peer" and "peer" not in self._sides:
                self._sides["peer"] = self._peer_side()
        side = self._sides[name.split()[0]]
        if name == "peer":
            side.context = partial(peer_context, precision, self.device)
        else:
            model: Any = side.model
            model.precision = "bfloat16" if precision == "bfloat16" else "float32"
            model.compiles = name == "ours compiled"
        return side

    def fresh_side(self, name: str, precision: str) -> Side:
        """With the weights that both begin with."""
        if any(side.trained for side in self._sides.values()):
            self.forget_models()
        return self.side(name, precision)

    def _our_side(self) -> Side:
        from transformer_elmo import DenseSparseAdam

        torch.manual_seed(13)
        model = workload.our_model(self.section, self.vocab, "float32").to(self.device)
        optimizer = DenseSparseAdam(list(model.named_parameters()), lr=1e-4)
        return Side(model, optimizer, lambda sample: sample.ours)

    def _peer_side(self) -> Side:
        from allennlp.training.optimizers import DenseSparseAdam as PeerAdam

        like = self._sides["ours"].model
        model = workload.peer_model(self.section, self.vocab, like).to(self.device)
        optimizer = PeerAdam(list(model.named_parameters()), lr=1e-4)
        return Side(model, optimizer, lambda sample: sample.peers)

    def forget_models(self) -> None:
        self._sides.clear()
        self.free()

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def products_in(self, precision: str) -> Iterator[None]:
        """Matrix products and convolutions of float32 numbers with TF32 inside, or with none."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = precision != "float32"
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before

    def seconds_of(self, function: Callable[[], Any]) -> float:
        return workload.timed(function, self.device)


def peer_context(precision: str, device: torch.device) -> Any:
    """The peer has no precision of its own. Under AllenNLP's `use_amp` it runs in float16, and its
    layer norm refuses bfloat16."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.float16)
    return contextlib.nullcontext()


# The rows


def gemm(session: Session, precision: str) -> float:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    with session.products_in(precision):
        rate = workload.gemm_rate(session.device, dtype, 64 if session.small else 32000)
    return rate / 1e12


def copying(session: Session) -> float:
    numbers = torch.randn(2**22 if session.small else 2**29, device=session.device)
    copy = torch.empty_like(numbers)
    best = min(session.seconds_of(lambda: copy.copy_(numbers)) for _ in range(6))
    return 2 * numbers.numel() * 4 / best / 1e12


def tests(session: Session) -> str:
    """The tests that need a GPU. Their output is in `tests.txt`."""
    command = [sys.executable, "-m", "pytest", "tests/device", "-q", "--no-header"]
    if session.small:
        # All are skipped without a GPU.
        command += ["-k", "test_optimizer_is_the_cpus"]
    found = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (session.out / "tests.txt").write_text(found.stdout, encoding="utf-8")
    if found.returncode:
        raise RuntimeError(f"a test failed:\n{found.stdout[-4000:]}")
    return found.stdout.strip().splitlines()[-1].strip("= ")


def training(session: Session, precision: str, tokens: int, name: str) -> Dict[str, Any]:
    """Steps one after the other, without waiting between them, in blocks."""
    samples = session.samples(tokens)
    side = session.side(name, precision)
    side.model.train()
    sequence = itertools.cycle(samples)
    a_block = 2 if session.small else len(samples)
    rates: List[float] = []
    with session.products_in(precision):
        first = session.seconds_of(lambda: side.steps([next(sequence)]))
        side.steps(itertools.islice(sequence, a_block - 1))
        workload.reset_peak_memory(session.device)
        before = workload.current_memory(session.device)
        begin = time.perf_counter()
        while len(rates) < 2 or (
            not session.small and time.perf_counter() - begin < SECONDS_A_ROW and len(rates) < 12
        ):
            chosen = [next(sequence) for _ in range(a_block)]
            took = session.seconds_of(partial(side.steps, chosen))
            rates.append(sum(sample.num_tokens for sample in chosen) / took)
    assert side.loss is not None
    rate = statistics.median(rates)
    num_tokens = sum(sample.num_tokens for sample in samples)
    return {
        "tokens/s": rate,
        "lowest": min(rates),
        "highest": max(rates),
        "ms a step": 1000 * num_tokens / len(samples) / rate,
        "s of the first": first,
        "TFLOP/s": 3 * sum(sample.flops for sample in samples) / num_tokens * rate / 1e12,
        "beyond the models, GB": workload.peak_memory(session.device) - before,
        "loss": float(side.loss),
    }


@contextlib.contextmanager
def all_layers(model: Any) -> Iterator[None]:
    """The contextualizer gives all its layers inside, as token embedders ask for them."""
    found = model._contextualizer
    stacks = [found, *(s for s in found.children() if hasattr(s, "return_all_layers"))]
    names = ["_return_all_layers", *["return_all_layers"] * (len(stacks) - 1)]
    before = [getattr(stack, name) for stack, name in zip(stacks, names)]
    for stack, name in zip(stacks, names):
        setattr(stack, name, True)
    try:
        yield
    finally:
        for stack, name, value in zip(stacks, names, before):
            setattr(stack, name, value)


def embed(side: Side, samples: List[Sample]) -> None:
    for sample in samples:
        batch = {n: entry for n, entry in side.batch_of(sample).items() if n != "tokens"}
        with side.context():
            side.model(batch)


def embedding(session: Session, precision: str, tokens: int, name: str) -> Dict[str, Any]:
    """All layers of a model that stands still: over the same batches again and again."""
    samples = session.samples(tokens)[: 2 if session.small else None]
    side = session.side(name, precision)
    side.model.eval()
    times = []
    with session.products_in(precision), torch.no_grad(), all_layers(side.model):
        embed(side, samples[:1])
        _forget_words()
        for _ in range(2 if session.small else 5):
            times.append(session.seconds_of(lambda: embed(side, samples)))
    num_tokens = sum(sample.num_tokens for sample in samples)
    return {
        "tokens/s": num_tokens / statistics.median(times[1:]),
        "first pass tokens/s": num_tokens / times[0],
    }


def _forget_words() -> None:
    from transformer_elmo.plugin.text_fields import _caches

    for cache in _caches.values():
        cache.clear()


def evaluation(session: Session, precision: str, tokens: int, name: str) -> Dict[str, Any]:
    """Exact losses over the whole vocabulary."""
    side = session.fresh_side(name, precision)
    side.model.eval()
    all_samples = session.samples(tokens)
    samples = all_samples[:2] if session.small else all_samples[:6]
    num_words = session.vocab.get_vocab_size()
    more = [workload.arithmetic(session.section, s.ours, num_words).total for s in samples]
    losses: List[float] = []
    session.free()
    workload.reset_peak_memory(session.device)
    before = workload.current_memory(session.device)
    with session.products_in(precision), torch.no_grad():
        for _ in range(2):
            losses.clear()
            took = session.seconds_of(
                lambda: losses.extend(
                    float(side.model(side.batch_of(s))["forward_loss"]) for s in samples
                )
            )
    return {
        "tokens/s": sum(sample.num_tokens for sample in samples) / took,
        "TFLOP/s": sum(more) / took / 1e12,
        "forward loss": statistics.mean(losses),
        "beyond the model, GB": workload.peak_memory(session.device) - before,
    }


def loop(session: Session, tokens: int) -> Dict[str, Any]:
    """The data loader and the training step together, as `allennlp train` has them."""
    from allennlp.data.token_indexers import ELMoTokenCharactersIndexer, SingleIdTokenIndexer
    from allennlp.data.tokenizers import WhitespaceTokenizer

    from transformer_elmo import LanguageModelingDataLoader, SimpleLanguageModelingDatasetReader

    side = session.side("ours", "bfloat16")
    side.model.train()
    reader = SimpleLanguageModelingDatasetReader(
        WhitespaceTokenizer(),
        {"tokens": SingleIdTokenIndexer(), "token_characters": ELMoTokenCharactersIndexer()},
        start_tokens=["<S>"],
        end_tokens=["</S>"],
    )
    vocab = session.vocab
    loader = LanguageModelingDataLoader(
        reader, session.out / "text" / "shards", max_tokens=tokens, distinct_words=True, quiet=True
    )
    loader.index_with(vocab)
    loader.set_target_device(session.device)
    warm_up = 2 if session.small else 4
    most = 4 if session.small else max(8, min(100, 500_000 // tokens))
    counts: List[torch.Tensor] = []
    with session.products_in("bfloat16"):
        for number, batch in enumerate(itertools.islice(iter(loader), warm_up + most)):
            source: Any = batch["source"]
            if number == warm_up:
                workload.synchronize(session.device)
                begin, waited = time.perf_counter(), loader.seconds_waited
            if number >= warm_up:
                # Read at the end: the host would wait for it here.
                counts.append(source["tokens"]["tokens"].count_nonzero())
            side.step_on(source)
        workload.synchronize(session.device)
    took = time.perf_counter() - begin
    return {
        "tokens/s": float(torch.stack(counts).sum()) / took,
        "waited for the loader": f"{(loader.seconds_waited - waited) / took:.2%}",
        "steps": len(counts),
    }


def profiled(session: Session, tokens: int, name: str, embeds: bool = False) -> Dict[str, Any]:
    """What a step in bfloat16 sends to the device, and where the host waits for it."""
    from torch.profiler import ProfilerActivity, profile

    side = session.side(name, "bfloat16")
    side.model.train(not embeds)
    samples = session.samples(tokens)
    run = partial(embed, side) if embeds else side.steps
    on_gpu = session.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    inside = contextlib.ExitStack()
    with inside:
        inside.enter_context(session.products_in("bfloat16"))
        if embeds:
            inside.enter_context(torch.no_grad())
            inside.enter_context(all_layers(side.model))
        run(samples[:3])
        waits = _waits(lambda: run(samples[:1])) if on_gpu else None
        workload.synchronize(session.device)
        begin = time.perf_counter()
        with profile(activities=activities) as profiler:
            run(samples[:2])
            workload.synchronize(session.device)
        took = time.perf_counter() - begin
    events = profiler.key_averages()
    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [e for e in kernels if not e.key.startswith(("Memcpy", "Memset"))]
    asked = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]

    def longest(found: List[Any], key: str, most: int) -> List[Any]:
        rows = sorted(found, key=lambda e: -getattr(e, key))[:most]
        return [[e.key[:150], e.count / 2, getattr(e, key) / 2000] for e in rows]

    return {
        "kernels": sum(e.count for e in kernels) / 2,
        "waits": None if waits is None else sum(waits.values()),
        "busy ms": sum(e.self_device_time_total for e in kernels) / 2000,
        "host ms": sum(e.self_cpu_time_total for e in asked) / 2000,
        "ms with the profiler": 500 * took,
        "waits at": waits,
        "calls": {e.key: e.count / 2 for e in events if e.key.startswith("cu")},
        "longest kernels": longest(kernels, "self_device_time_total", 45),
        "operators": longest(asked, "device_time_total", 45),
        "slowest on the host": longest(asked, "self_cpu_time_total", 25),
    }


def _waits(function: Callable[[], Any]) -> Dict[str, int]:
    """Where the host waits for the GPU, as PyTorch's own check sees it."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    found: Dict[str, int] = {}
    for warning in caught:
        if re.search("synchronizing CUDA operation", str(warning.message)):
            place = f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}"
            found[place] = found.get(place, 0) + 1
    return found


def curve(session: Session, device: torch.device, precision: str) -> Dict[str, Any]:
    """A small model, the same text and the same seed wherever it trains."""
    from transformer_elmo import DenseSparseAdam

    steps = 10 if session.small else 300
    text = workload.sentences(None)
    vocab = workload.vocabulary(text, 8000)
    section = workload.model_section()
    section["num_samples"] = 512
    section["contextualizer"].update(input_dim=64, hidden_dim=256, num_layers=2)
    embedder = section["text_field_embedder"]["token_embedders"]["token_characters"]
    embedder["encoder"].update(filters=[[1, 16], [2, 16], [3, 32], [4, 64]], projection_dim=64)
    made = [workload.on_device(b, device) for b in workload.batches(text, vocab, 1000)]
    held_out, made = made[:4], made[4:]
    torch.manual_seed(13)
    model = workload.our_model(section, vocab, precision).to(device).train()
    optimizer = DenseSparseAdam(list(model.named_parameters()), lr=1e-3)
    losses = []
    with session.products_in("float32"):
        for step in range(steps):
            optimizer.zero_grad()
            loss = model(made[step % len(made)])["loss"]
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        model.eval()
        with torch.no_grad():
            outputs = [model(batch) for batch in held_out]
    weights = [float(output["batch_weight"]) for output in outputs]
    total = sum(float(o["loss"]) * w for o, w in zip(outputs, weights))
    numbers = torch.stack(losses).tolist()
    return {
        "held-out loss": total / sum(weights),
        "training loss, last 20": statistics.mean(numbers[-20:]),
        "every ten": [round(statistics.mean(numbers[i : i + 10]), 4) for i in range(0, steps, 10)],
    }


def plan(session: Session) -> List[Row]:
    """All rows, the most important ones first."""
    rows: List[Row] = []
    peers = [] if session.options.without_peer else ["peer"]
    on_gpu = session.device.type == "cuda"
    small, *middle, large = session.sizes if len(session.sizes) > 1 else session.sizes * 2
    # The largest batches are about memory; speed is at its best before.
    fast = middle[-1] if middle else large

    def add(step: str, name: str, seconds: float, measure: Callable[..., Any], *more: Any) -> None:
        if (step, name) not in {(row.step, row.name) for row in rows}:
            rows.append(Row(step, name, seconds, partial(measure, session, *more)))

    def train(precision: str, tokens: int, name: str) -> None:
        if precision in session.options.precisions:
            seconds = 4 + tokens / 8000 * (2 if name == "peer" else 1)
            seconds += 15 if name == "ours compiled" else 0
            add(
                "training",
                f"{precision}, {tokens}, {name}",
                seconds,
                training,
                *(precision, tokens, name),
            )

    def other(measure: Callable[..., Any], precision: str, tokens: int, name: str) -> None:
        if precision in session.options.precisions:
            row = f"{precision}, {tokens}, {name}"
            add(measure.__name__, row, 6, measure, precision, tokens, name)

    add("environment", "device", 1, _device)
    for precision in session.options.precisions:
        add("environment", f"GEMM TFLOP/s, {precision}", 2, gemm, precision)
    add("environment", "copy TB/s", 1, copying)
    add("text", "synthetic", 15, Session.make_text)
    for tokens in (fast, small):
        train("bfloat16", tokens, "ours")
    for tokens in (fast, small):
        for name in peers:
            train("bfloat16", tokens, name)
    if on_gpu or session.small:
        add("tests", "tests/device", 50, tests)
    for tokens in (fast, small):
        add("profile", f"{tokens}, ours", 6, profiled, tokens, "ours")
    for precision in ("bfloat16", "tf32", "float32"):
        for name in ["ours", *peers]:
            other(embedding, precision, fast, name)
            if precision == "bfloat16":
                other(embedding, precision, small, name)
        if precision == "bfloat16":
            train(precision, fast, "ours compiled")
            for tokens in session.sizes:
                train(precision, tokens, "ours")
            other(evaluation, precision, small, "ours")
            other(evaluation, precision, small, "ours compiled")
        else:
            for name in ["ours", *peers]:
                other(evaluation, precision, small, name)
    places = [("device", "float32"), ("device", "bfloat16")] if on_gpu or session.small else []
    for where, precision in (*places, ("CPU", "float32")):
        device = session.device if where == "device" else torch.device("cpu")
        seconds = 15 if where == "device" else 40
        add("curves", f"{where}, {precision}", seconds, curve, device, precision)
    for tokens in session.sizes:
        add("loop", str(tokens), 5, loop, tokens)
    for precision in ("tf32", "float32"):
        for name in ["ours", *peers]:
            train(precision, fast, name)
    for tokens in (small, fast):
        add("profile", f"{tokens}, embedding, ours", 5, profiled, tokens, "ours", True)
        for name in ["ours compiled", *peers]:
            add("profile", f"{tokens}, {name}", 8, profiled, tokens, name)
    for precision in ("bfloat16", "tf32", "float32"):
        for tokens in session.sizes:
            for name in ["ours", *peers, "ours compiled"]:
                train(precision, tokens, name)
    for precision in ("tf32", "float32"):
        for name in ["ours", *peers]:
            other(embedding, precision, small, name)
    return rows


def _device(session: Session) -> str:
    name = torch.cuda.get_device_name(session.device) if session.device.type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}"
