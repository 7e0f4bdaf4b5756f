"""
One implementation, in a process of its own: it reads requests, a JSON object a line, and answers
each with another. bench.py starts one for this tree, for another tree, and for allennlp-models, by
`PYTHONPATH`; so all that is asked of the package here is its public names and those of configs.
"""

import contextlib
import copy
import importlib
import json
import math
import os
import re
import runpy
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import workload
from torch.profiler import ProfilerActivity, profile

Row = dict[str, Any]
Round = Callable[[int], Row]
PACKAGES = {"ours": "transformer_elmo.plugin", "peer": "allennlp_models.lm"}
PEERS_NAME = "bidirectional-language-model"
WORDS_OF_SENTENCE = 20
# Kinds of operators, the first that fits.
OPERATORS = {
    "matrix products": r"::(addmm_?|mm|bmm|baddbmm|linear|matmul|_sparse_mm)$|mkldnn.*linear|gemm",
    "convolutions": r"conv",
    "attention": r"attention|flash|_softmax|softmax_backward",
    "random numbers, dropout": r"dropout|bernoulli|random|exponential|uniform|normal_",
    "layer norm": r"layer_norm",
    "optimizer": r"adam|lerp|addcdiv|addcmul|sqrt|coalesce|sparse",
    "copies and gathers": r"copy|cat|index|gather|scatter|embedding|clone|contiguous|unique|sort",
    "elementwise, reductions": r"",
}


class Batch(NamedTuple):
    """What a model is called with, its tokens, and operations: encoder, layers, a softmax word."""

    source: Row
    tokens: int
    flops: tuple[float, float, float]


def operations(model: Row, mask: torch.Tensor, characters: torch.Tensor) -> Any:
    """
    Floating-point operations of a forward pass: what is needed if each distinct word is encoded
    once, at its own length, and padding is left out. A backward pass takes twice as many.
    """
    encoder = model["text_field_embedder"]["token_embedders"]["token_characters"]["encoder"]
    words = torch.unique(characters[mask], dim=0)
    # The first and the last character are marks; one window beyond the word still counts.
    windows = float(((words != words[:, -1:]).sum(-1) + 1).sum())
    products = sum(width * number for width, number in encoder["filters"])
    filters = sum(number for _, number in encoder["filters"])
    dense = encoder["num_highway"] * 2 * filters**2 + filters * encoder["projection_dim"]
    shape, lengths = model["contextualizer"], mask.sum(-1).double()
    dim, hidden = shape["input_dim"], shape["hidden_dim"]
    layer = 2 * (4 * dim**2 + 2 * dim * hidden) * float(lengths.sum())
    layer += 2 * dim * float((lengths * (lengths + 1)).sum())
    return (
        2.0 * (products * encoder["embedding_dim"] * windows + dense * len(words)),
        2 * shape["num_layers"] * layer,
        4.0 * dim * float((lengths - 1).clamp(min=0).sum()),
    )


def filled(model: torch.nn.Module) -> Any:
    """With the same weights for all implementations, which share their names."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.fill_(0.0 if name.endswith(("bias", "beta", "_b")) else 1.0)
            else:
                generator = torch.Generator(weight.device).manual_seed(zlib.crc32(name.encode()))
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    return model


def built(name: str, section: Row, **extras: Any) -> Any:
    """What a section of a config says, of one of AllenNLP's kinds."""
    from allennlp.common import Params

    module, _, kind = name.rpartition(".")
    base = getattr(importlib.import_module(f"allennlp.{module}"), kind)
    return base.from_params(Params(copy.deepcopy(section)), **extras)


class Side:
    def __init__(self, kind: str) -> None:
        self.kind, self.options = kind, Row()
        self.round: Round | None = None

    def answer(self, request: Row) -> Row:
        number = request.pop("round", 0)
        if request != self.options or self.round is None:
            # One model after the other.
            self.round, self.options = None, request
            self.device = torch.device(request["device"])
            self.gpu = self.device.type == "cuda"
            self.config = workload.experiment(request["small"])
            if request["job"] not in ("opening", "machine"):
                importlib.import_module(PACKAGES[self.kind])
            if self.gpu:
                torch.cuda.empty_cache()
            torch.manual_seed(13)
            self.round = JOBS[request["job"]](self)
        return self.round(number)

    def now(self) -> float:
        if self.gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextlib.contextmanager
    def products(self) -> Any:
        """Matrix products as the precision has them. The peer has none of its own: under AllenNLP's
        `use_amp` it runs in float16, and its layer norm refuses bfloat16."""
        precision = self.options["precision"]
        torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        amp = self.kind == "peer" and self.gpu and precision == "bfloat16"
        with torch.autocast("cuda", dtype=torch.float16, enabled=amp):
            yield

    def vocabulary(self) -> Any:
        from allennlp.data import Vocabulary

        return Vocabulary.from_files(Path(self.options["folder"]) / "vocabulary")

    def model(self, **contextualizer: Any) -> Any:
        section, precision = copy.deepcopy(self.config["model"]), self.options["precision"]
        section["contextualizer"].update(contextualizer)
        if self.kind == "peer":
            section["type"] = PEERS_NAME
        else:
            section["precision"] = "float32" if precision == "tf32" else precision
            section["compile"] = self.options.get("compile", False)
        vocab = self.vocabulary()
        # Made on the device: 400 million random numbers take seconds elsewhere.
        with self.device:
            return filled(built("models.Model", section, vocab=vocab).to(self.device))

    def loader(self, path: str, **options: Any) -> Any:
        reader = built("data.DatasetReader", self.config["dataset_reader"])
        section = {**self.config["data_loader"], "quiet": True, **options}
        if self.kind == "peer":
            sampler = {"type": "max_tokens_sampler", "max_tokens": section["max_tokens"]}
            section = {"batch_sampler": sampler, "max_instances_in_memory": 16384, "quiet": True}
        loader = built("data.DataLoader", section, reader=reader, data_path=path)
        loader.index_with(self.vocabulary())
        return loader

    def batches(self) -> list[Batch]:
        """Each as its own loader sends it: the peer's have the sentences of ours."""
        from allennlp.nn.util import move_to_device

        shared = Path(self.options["folder"]) / f"batches-{self.options['tokens']}"
        if self.kind == "peer":
            kept = torch.load(shared)
            sources = [
                {"tokens": {"tokens": ids}, "token_characters": {"elmo_tokens": characters}}
                for ids, characters in kept
            ]
        else:
            path = next(p for n in ("text", "shards") if (p := shared.with_name(n)).exists())
            loader = self.loader(str(path), max_tokens=self.options["tokens"], seed=13)
            sources = [b["source"] for b in islice(loader, self.options["batches"])]
            parts = [(s["tokens"]["tokens"], s["token_characters"]) for s in sources]
            kept = [(ids, c["elmo_tokens"][c["word_index"]]) for ids, c in parts]
            torch.save(kept, shared)
        return [
            Batch(
                move_to_device(source, self.device),
                int((ids > 0).sum()),
                operations(self.config["model"], ids > 0, characters),
            )
            for source, (ids, characters) in zip(sources, kept)
        ]

    def chosen(self, batches: list[Batch], number: int) -> list[Batch]:
        steps = self.options["steps"]
        return [batches[n % len(batches)] for n in range(number * steps, (number + 1) * steps)]

    def rates(self, chosen: list[Batch], begin: float, words: int) -> Row:
        """Of a round that began then, with so many words in the softmax."""
        seconds = self.now() - begin
        encoder, layers, word = map(sum, zip(*(b.flops for b in chosen)))
        flops = encoder + layers + words * word
        return {"tokens": sum(b.tokens for b in chosen), "seconds": seconds, "FLOP": flops}

    def reset_memory(self) -> float:
        """GB in use, of the GPU or of the process; from here on `peak` counts anew."""
        if self.gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device) / 1e9
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")
        return _linux_memory("VmRSS")

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e9 if self.gpu else _linux_memory("VmHWM")


def _linux_memory(name: str) -> float:
    if sys.platform != "linux":
        return math.nan
    found = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[0]) * 1024 / 1e9


# Jobs: each makes what its rounds need, and returns what a round does.


def machine(side: Side) -> Round:
    """What it is, and the rates of large matrix products and copies."""
    rows, numbers = (32000, 2**28) if side.gpu else (2000, 2**24)
    dtype = torch.bfloat16 if side.options["precision"] == "bfloat16" else torch.float32
    tokens = torch.randn(rows, 512, device=side.device, dtype=dtype)
    weight = torch.randn(2048, 512, device=side.device, dtype=dtype)
    hidden, copied = tokens @ weight.t(), torch.empty(numbers, device=side.device)
    transposed = hidden.t().contiguous()

    def products() -> None:
        """A feed-forward network's, forward and backward."""
        torch.mm(tokens, weight.t())
        torch.mm(hidden, weight)
        torch.mm(hidden.t(), tokens)

    def by_onednn() -> None:
        """The same, without copies, where MKL's are half as fast."""
        for rows, matrix in ((tokens, weight), (hidden, weight.t()), (transposed, tokens.t())):
            torch.ops.mkldnn._linear_pointwise(rows, matrix, None, "none", [], "")

    def best(function: Callable[[], Any]) -> float:
        times = [side.now()]
        for _ in range(8):
            function()
            times.append(side.now())
        return min(b - a for a, b in pairwise(times))

    def measure(number: int) -> Row:
        with side.products():
            on_cpu = not side.gpu and torch.backends.mkldnn.is_available()
            ways = [products, by_onednn] if on_cpu else [products]
            rate = 3 * 2 * rows * 512 * 2048 / min(map(best, ways))
        return {
            "machine": workload.describe(side.device),
            "FLOP/s": rate,
            "copies, bytes/s": 8 * numbers / best(copied.clone),
        }

    return measure


def train(side: Side) -> Round:
    """Training steps with sparse Adam."""
    model, batches = side.model().train(), side.batches()
    named = [[name, weight] for name, weight in model.named_parameters()]
    adam = {"type": "dense_sparse_adam", "lr": 1e-4}
    optimizer = built("training.optimizers.Optimizer", adam, model_parameters=named)
    before = side.reset_memory()

    def steps(number: int) -> Row:
        chosen, phases = side.chosen(batches, number), [0.0, 0.0, 0.0]
        begin = side.now()
        for batch in chosen:
            times = [time.perf_counter()]
            optimizer.zero_grad()
            with side.products():
                loss = model(batch.source)["loss"]
            times.append(time.perf_counter())
            loss.backward()
            times.append(time.perf_counter())
            optimizer.step()
            times.append(time.perf_counter())
            phases = [p + b - a for p, a, b in zip(phases, times, times[1:])]
        row = side.rates(chosen, begin, side.config["model"]["num_samples"])
        row["FLOP"] *= 3
        if not side.gpu:
            row.update(zip(("forward", "backward", "optimizer"), phases))
        return {**row, "loss": float(loss), "beyond the model, GB": side.peak() - before}

    return steps


def embed(side: Side) -> Round:
    """All layers for each word, as the token embedder asks for them, without a softmax."""
    batches = side.batches()

    def made() -> Any:
        model = side.model(return_all_layers=True).eval().requires_grad_(False)
        model.delete_softmax()
        return model

    @torch.no_grad()
    def forward(number: int) -> Row:
        chosen = side.chosen(batches, number)
        begin = side.now()
        with side.products():
            for batch in chosen:
                model({"token_characters": batch.source["token_characters"]})
        row = side.rates(chosen, begin, 0)
        # Once the words are known, only the layers are needed.
        return {**row, "FLOP": sum(batch.flops[1] for batch in chosen)}

    # Nothing is known yet of the words when the first pass begins.
    model = made()
    forward(0)
    model = made()
    return forward


def evaluate(side: Side) -> Round:
    """Exact losses over the whole vocabulary."""
    batches, model = side.batches(), side.model().eval()
    before = side.reset_memory()

    @torch.no_grad()
    def losses(number: int) -> Row:
        chosen = side.chosen(batches, number)
        begin = side.now()
        with side.products():
            # The forward direction's: the peer's backward one counts a prediction more for each
            # padded sentence.
            found = [float(model(batch.source)["forward_loss"]) for batch in chosen]
        row = side.rates(chosen, begin, model.vocab.get_vocab_size())
        row.update({"forward loss": statistics.mean(found), "peak GB": side.peak()})
        return {**row, "beyond the model, GB": side.peak() - before}

    return losses


def latency(side: Side) -> Round:
    """One sentence of 20 words: words met before, or new ones."""
    path, new = side.options["run"], side.options["new words"]
    text = (Path(side.options["folder"]) / "text").read_text("utf-8").split()
    if side.kind == "peer":
        vectors_of = peers_vectors(side, path)
    else:
        from transformer_elmo import TransformerElmo

        elmo = TransformerElmo.open(path, side.device, precision=side.options["precision"])

        def vectors_of(words: list[str]) -> Any:
            return elmo.embed([words])[0]

    @torch.no_grad()
    def sentence(number: int) -> Row:
        begin = number * WORDS_OF_SENTENCE * 7 % (len(text) - WORDS_OF_SENTENCE)
        words = text[begin : begin + WORDS_OF_SENTENCE]
        if new:
            # A letter that no sentence before had makes a word a new one.
            words = [word + chr(0x100 + number) for word in words]
        else:
            vectors_of(words)
        begin_cpu, start = time.process_time(), side.now()
        vectors = vectors_of(words)
        row = {"seconds": side.now() - start, "processor's ms": time.process_time() - begin_cpu}
        row["processor's ms"] *= 1000
        return {**row, "sum of the vectors": float(abs(vectors).sum())}

    return sentence


def peers_vectors(side: Side, path: str) -> Callable[[list[str]], Any]:
    """What `TransformerElmo.embed` gives, by the peer's model, with less than its embedder does."""
    from allennlp.data.token_indexers.elmo_indexer import ELMoCharacterMapper
    from allennlp.models.archival import load_archive

    overrides = {"model.type": PEERS_NAME, "model.contextualizer.return_all_layers": True}
    model: Any = load_archive(path, overrides=overrides).model.eval().to(side.device)
    model.delete_softmax()
    convert = ELMoCharacterMapper().convert_word_to_char_ids

    def vectors(words: list[str]) -> Any:
        rows = [[convert(word) for word in ["<S>", *words, "</S>"]]]
        characters = torch.tensor(rows, device=side.device)
        output = model({"token_characters": {"elmo_tokens": characters}})
        of_words = output["noncontextual_token_embeddings"]
        layers = [torch.cat([of_words, of_words], -1), *output["lm_embeddings"]]
        return torch.stack(layers).mean(0)[0, 1:-1].cpu().numpy()

    return vectors


def command(*arguments: str) -> None:
    """One of `transformer-elmo`."""
    sys.argv = ["transformer-elmo", *arguments]
    try:
        runpy.run_module("transformer_elmo", run_name="__main__")
    except SystemExit as stopped:
        if stopped.code:
            raise RuntimeError(f"{arguments[0]} ended with {stopped.code}") from None


def write_run(side: Side) -> Round:
    """What a training run leaves, and a model folder of it beside."""

    def write(number: int) -> Row:
        run = Path(side.options["run"])
        run.mkdir()
        model = side.model()
        (run / "config.json").write_text(json.dumps(side.config), "utf-8")
        model.vocab.save_to_files(str(run / "vocabulary"))
        torch.save(model.state_dict(), run / "best.th")
        command("export", str(run), f"{run}-folder")
        return {}

    return write


def opening(side: Side) -> Round:
    """Of a process that has imported torch: the package's import, and a model that is opened."""

    def open_it(number: int) -> Row:
        begin = time.perf_counter()
        if side.kind == "peer":
            import allennlp_models.lm  # noqa: F401
            from allennlp.models.archival import load_archive

            imported = time.perf_counter()
            load_archive(side.options["run"], overrides={"model.type": PEERS_NAME})
        else:
            from transformer_elmo import TransformerElmo

            imported = time.perf_counter()
            TransformerElmo.open(side.options["run"], "cpu")
        return {"seconds": time.perf_counter() - imported, "import, s": imported - begin}

    return open_it


def data(side: Side) -> Round:
    """Text on disk to padded tensors with character ids, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    begin, step_rate = time.perf_counter(), side.options.get("step rate", 0)
    distinct = side.options.get("distinct words", False)
    loader = side.loader(side.options["corpus"], max_tokens=2000, distinct_words=distinct)
    row = {"vocabulary and loader, s": time.perf_counter() - begin}

    def read(number: int) -> Row:
        begin = time.perf_counter()
        next(iter(loader))
        row["first batch, s"] = time.perf_counter() - begin
        tokens = padded = 0
        begin_cpu, begin, waited = time.process_time(), 0.0, 0.0
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            if not tokens:
                # The wait for the first batch is a figure of its own.
                begin, waited = time.perf_counter(), 0.0
            ids = batch["source"]["tokens"]["tokens"]
            tokens += int(ids.count_nonzero())
            padded += ids.numel()
            if step_rate:
                # A model on a device leaves this thread idle while it computes.
                time.sleep(ids.numel() / step_rate)
        if step_rate:
            row["waits, %"] = 100 * waited / (time.perf_counter() - begin)
        # The processor's time: other programs on the machine change it less than the clock's.
        row.update(tokens=tokens, seconds=time.process_time() - begin_cpu)
        return {**row, "padding, %": 100 * (1 - tokens / padded), "peak GB": side.peak()}

    return read


def shared(side: Side) -> Round:
    """A corpus that several processes share, each of them in turn, beside one that has it alone."""
    from transformer_elmo.plugin import data_loader

    loader = side.loader(side.options["corpus"], max_tokens=2000)
    processes = side.options["processes"]

    def taken(number: int) -> float:
        begin = time.process_time()
        for rank in range(number):
            data_loader._place_among_processes = partial(tuple, (rank, number))  # type: ignore[assignment]
            for _ in loader:
                pass
        return time.process_time() - begin

    def read(number: int) -> Row:
        # What is made once.
        next(iter(loader))
        alone, together = taken(1), taken(processes)
        return {"seconds": alone, "together, ms": 1000 * together, "times one": together / alone}

    return read


def vocabulary(side: Side) -> Round:
    """Counting words, by the command."""

    def count(number: int) -> Row:
        paths = sorted(Path(side.options["corpus"]).iterdir())
        tokens = sum(len(path.read_text("utf-8").split()) for path in paths)
        output = Path(side.options["folder"]) / f"counted-{os.getpid()}"
        begin = time.process_time()
        command("vocab", side.options["corpus"], str(output))
        return {"tokens": tokens, "seconds": time.process_time() - begin, "peak GB": side.peak()}

    return count


def profiled(side: Side) -> Round:
    """A step of a job by kinds of operators, in milliseconds; on a GPU, its kernels, too."""
    step = JOBS[side.options.get("of", "train")](side)

    def measure(number: int) -> Row:
        step(0)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if side.gpu else [])]
        with profile(activities=activities) as profiler:
            row = step(1)
        events, kinds = profiler.key_averages(), dict.fromkeys(OPERATORS, 0.0)
        steps = side.options["steps"]
        for event in events:
            own = event.self_device_time_total if side.gpu else event.self_cpu_time_total
            kind = next(k for k, p in OPERATORS.items() if re.search(p, event.key, re.IGNORECASE))
            kinds[kind] += own / 1000 / steps
        if side.gpu:
            on_gpu = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
            kernels = [e for e in on_gpu if not e.key.startswith(("Memcpy", "Memset"))]
            kinds["kernels"] = sum(e.count for e in kernels) / steps
        return {"tokens": row["tokens"], "seconds": row["seconds"], **kinds}

    return measure


JOBS: dict[str, Callable[[Side], Round]] = {
    **{"machine": machine, "train": train, "embed": embed, "evaluate": evaluate},
    **{"latency": latency, "opening": opening, "run": write_run, "profile": profiled},
    **{"data": data, "shared": shared, "vocabulary": vocabulary},
}


def main() -> None:
    side = Side(sys.argv[1])
    # What else is printed isn't an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            answer = side.answer(json.loads(line))
        except torch.OutOfMemoryError as error:
            side.round, answer = None, {"error": str(error).partition(".")[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
