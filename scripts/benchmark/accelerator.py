"""
Everything that a GPU can tell, step by step: `accelerator.sh` runs it. Each step leaves a JSON file
in the output folder, so that a second run goes on with the steps that are missing, and `report.md`
has them all in tables.

    python scripts/benchmark/accelerator.py OUT [--minutes 20] [--steps training,profile]

On a machine without a GPU, `--device cpu --small` rehearses it.

Text is synthetic, with the billion-word benchmark's vocabulary of 793,471 words and Zipf's
frequencies (see data.py). Ours and allennlp-models' take turns on the same batches and begin with
the same weights.
"""

import argparse
import contextlib
import gc
import json
import statistics
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

# This repository's package, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import workload

PRECISIONS = ["float32", "tf32", "bfloat16"]
SIZES = [2000, 8000, 32000, 64000]


class Session:
    """What the steps share: options, text, vocabulary, batches."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.device = torch.device(options.device)
        self.deadline = time.monotonic() + 60 * options.minutes
        self._vocab: Any = None
        self._text: List[List[str]] = []
        self._batches: Dict[int, List[workload.Batch]] = {}

    @property
    def small(self) -> bool:
        return bool(self.options.small)

    @property
    def sizes(self) -> List[int]:
        """Tokens a batch."""
        return [200, 400] if self.small else self.options.sizes

    @property
    def ends(self) -> List[int]:
        """The smallest size and the one before the largest."""
        return sorted({self.sizes[0], self.sizes[-2 if len(self.sizes) > 2 else -1]})

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
        self._make_text()
        return self._text

    @property
    def vocab(self) -> Any:
        self._make_text()
        return self._vocab

    def _make_text(self) -> None:
        if self._vocab is not None:
            return
        import data

        folder = self.out / "text"
        if not folder.exists():
            folder.mkdir()
            if self.small:
                data.VOCABULARY_SIZE = 30_000
            data.make_corpus(folder, 1, 300 if self.small else 30_000)
        from allennlp.data import Vocabulary

        self._vocab = Vocabulary.from_files(folder / "vocabulary")
        lines = (folder / "shards" / "shard-000").read_text(encoding="utf-8").splitlines()
        self._text = [line.split() for line in lines]

    def batches(self, tokens: int, most: int = 12) -> List[workload.Batch]:
        """Batches on the device. They are the same whoever asks."""
        if tokens not in self._batches:
            self._batches.clear()
            # Batches come short sentences first until they are shuffled: enough for that, but not
            # the whole text, whose character ids take a while.
            text = self.text[: max(400, 4 * most * tokens // 25)]
            made = workload.batches(text, self.vocab, tokens)[:most]
            self._batches[tokens] = [workload.on_device(batch, self.device) for batch in made]
        return self._batches[tokens]

    @contextlib.contextmanager
    def tf32(self, wanted: bool) -> Iterator[None]:
        """Matrix products and convolutions with TF32 inside, or with none of it."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = wanted
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def our_precision(precision: str) -> str:
    return "bfloat16" if precision == "bfloat16" else "float32"


def peer_context(precision: str, device: torch.device) -> Any:
    """The peer has no precision of its own. Under AllenNLP's `use_amp` it runs in float16, and its
    layer norm refuses bfloat16."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.float16)
    return contextlib.nullcontext()


def make_model(
    session: Session,
    section: Dict[str, Any],
    precision: str,
    like: Optional[torch.nn.Module] = None,
) -> torch.nn.Module:
    """Made on the device: 400 million random numbers take seconds elsewhere."""
    with session.device:
        if like is not None:
            return workload.peer_model(section, session.vocab, like)
        torch.manual_seed(13)
        return workload.our_model(section, session.vocab, our_precision(precision))


class Side:
    """One implementation that trains."""

    def __init__(self, name: str, model: torch.nn.Module, optimizer: Any, context: Any) -> None:
        self.name, self.model, self.optimizer, self.context = (
            name,
            model.train(),
            optimizer,
            context,
        )
        self.losses: List[torch.Tensor] = []

    def step(self, batch: workload.Batch) -> None:
        self.optimizer.zero_grad()
        with self.context():
            loss = self.model(batch)["loss"]
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())

    def steps(self, batches: List[workload.Batch]) -> None:
        for batch in batches:
            self.step(batch)


def make_side(session: Session, name: str, precision: str, like: Optional[torch.nn.Module]) -> Side:
    device = session.device
    if name == "peer":
        from allennlp.training.optimizers import DenseSparseAdam as PeerAdam

        assert like is not None
        model = make_model(session, session.section, precision, like).to(device)
        optimizer = PeerAdam(list(model.named_parameters()), lr=1e-4)
        return Side(name, model, optimizer, lambda: peer_context(precision, device))
    from transformer_elmo import DenseSparseAdam

    model = make_model(session, session.section, precision).to(device)
    ours = DenseSparseAdam(list(model.named_parameters()), lr=1e-4)
    return Side(name, model, ours, contextlib.nullcontext)


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    return workload.timed(function, device)


# Steps


def environment(session: Session) -> Dict[str, Any]:
    device = session.device
    found: Dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    for precision in PRECISIONS:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        rows = 256 if session.small else 32000
        with session.tf32(precision == "tf32"):
            found[f"GEMM TFLOP/s, {precision}"] = workload.gemm_rate(device, dtype, rows) / 1e12
    numbers = torch.randn(2**22 if session.small else 2**29, device=device)
    copy = torch.empty_like(numbers)
    best = min(seconds_of(lambda: copy.copy_(numbers), device) for _ in range(6))
    found["copy TB/s"] = 2 * numbers.numel() * 4 / best / 1e12
    return found


def training(session: Session) -> Dict[str, Any]:
    """Steps one after the other without waiting between them, in blocks that alternate."""
    results: Dict[str, Any] = {}
    for precision in session.options.precisions:
        session.free()
        sides: Dict[str, Side] = {"ours": make_side(session, "ours", precision, None)}
        if not session.options.without_peer:
            sides["peer"] = make_side(session, "peer", precision, sides["ours"].model)
        for tokens in session.sizes:
            batches = session.batches(tokens)
            needed = [
                3 * workload.arithmetic(session.section, b, session.section["num_samples"]).total
                for b in batches
            ]
            words = [workload.num_tokens(batch) for batch in batches]
            times: Dict[str, List[float]] = {name: [] for name in sides}
            memory: Dict[str, float] = {}
            failed: Dict[str, str] = {}
            blocks = 2
            a_block = 2 if session.small else (6 if tokens <= 8000 else 3)
            with session.tf32(precision != "float32"):
                for block in range(blocks + 1):
                    for name in list(sides) if block % 2 else list(sides)[::-1]:
                        if name in failed:
                            continue
                        side = sides[name]
                        chosen = [
                            batches[(block * a_block + i) % len(batches)] for i in range(a_block)
                        ]
                        try:
                            workload.reset_peak_memory(session.device)
                            took = seconds_of(partial(side.steps, chosen), session.device)
                        except torch.OutOfMemoryError as error:
                            failed[name] = str(error).partition(".")[0]
                            session.free()
                            continue
                        memory[name] = workload.peak_memory(session.device)
                        if block:
                            ids = [(block * a_block + i) % len(batches) for i in range(a_block)]
                            times[name].append(took / sum(words[i] for i in ids))
            for name in sides:
                key = f"{precision}, {tokens}, {name}"
                if name in failed:
                    results[key] = {"error": failed[name]}
                    continue
                a_token = statistics.median(times[name])
                flops = sum(needed) / sum(words)
                results[key] = {
                    "tokens/s": 1 / a_token,
                    "ms a step": 1000 * a_token * statistics.mean(words),
                    "TFLOP/s": flops / a_token / 1e12,
                    "peak GB": memory[name],
                    "loss": float(sides[name].losses[-1]),
                    "ratio": statistics.median(times["peer"]) / a_token
                    if times.get("peer")
                    else None,
                }
            if time.monotonic() > session.deadline:
                break
        del sides
    return results


def profiled(session: Session) -> Dict[str, Any]:
    """Kernels, waits and the longest kernels of a training step."""
    from torch.profiler import ProfilerActivity, profile

    results: Dict[str, Any] = {}
    sides = ["ours"] if session.options.without_peer else ["ours", "peer"]
    for tokens in session.ends:
        batches = session.batches(tokens)
        for name in sides:
            session.free()
            ours = make_side(session, "ours", "bfloat16", None)
            side = ours if name == "ours" else make_side(session, name, "bfloat16", ours.model)
            if side is not ours:
                del ours
            with session.tf32(True):
                for batch in batches[:3]:
                    side.step(batch)
                activities = [ProfilerActivity.CPU]
                if session.device.type == "cuda":
                    activities.append(ProfilerActivity.CUDA)
                workload.synchronize(session.device)
                steps = 2
                start = time.perf_counter()
                with profile(activities=activities) as profiler:
                    for batch in batches[3 : 3 + steps]:
                        side.step(batch)
                    workload.synchronize(session.device)
                took = (time.perf_counter() - start) / steps
            events = profiler.key_averages()
            calls = {
                event.key: event.count / steps
                for event in events
                if event.key.startswith(
                    ("cudaLaunch", "cudaMemcpy", "cudaStreamSync", "cudaDeviceSync", "cuLaunch")
                )
            }
            kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
            kernels = [e for e in kernels if not e.key.startswith(("Memcpy", "Memset"))]
            longest = sorted(kernels, key=lambda e: -e.self_device_time_total)[:45]
            by_operator = sorted(
                (e for e in events if e.device_type == torch.autograd.DeviceType.CPU),
                key=lambda e: -e.self_device_time_total,
            )[:45]
            results[f"{tokens}, {name}"] = {
                "ms a step with the profiler": 1000 * took,
                "kernels": sum(e.count for e in kernels) / steps,
                "busy ms": sum(e.self_device_time_total for e in kernels) / steps / 1000,
                "calls": calls,
                "host ms": sum(e.self_cpu_time_total for e in events) / steps / 1000,
                "longest": [
                    [e.key[:150], e.count / steps, e.self_device_time_total / steps / 1000]
                    for e in longest
                ],
                "operators": [
                    [e.key[:80], e.count / steps, e.self_device_time_total / steps / 1000]
                    for e in by_operator
                ],
                "slowest on the host": [
                    [e.key[:80], e.count / steps, e.self_cpu_time_total / steps / 1000]
                    for e in sorted(events, key=lambda e: -e.self_cpu_time_total)[:25]
                ],
            }
            del side
    return results


def embedding(session: Session) -> Dict[str, Any]:
    """All layers of a frozen model; the second pass over the same batches."""
    results: Dict[str, Any] = {}
    section = session.section
    section["contextualizer"]["return_all_layers"] = True
    for precision in session.options.precisions:
        session.free()
        ours = make_model(session, section, precision)
        models: Dict[str, Any] = {"ours": ours}
        if not session.options.without_peer:
            models["peer"] = make_model(session, section, precision, ours)
        for model in models.values():
            model.delete_softmax()
            model.to(session.device).eval().requires_grad_(False)
        for tokens in session.ends:
            batches = [
                {name: entry for name, entry in batch.items() if name != "tokens"}
                for batch in session.batches(tokens)[:6]
            ]
            words = sum(workload.num_tokens(batch) for batch in session.batches(tokens)[:6])
            times: Dict[str, List[float]] = {name: [] for name in models}
            with session.tf32(precision != "float32"), torch.no_grad():
                for _ in range(3):
                    for name, model in models.items():
                        context = (
                            peer_context(precision, session.device)
                            if name == "peer"
                            else contextlib.nullcontext()
                        )
                        with context:
                            times[name].append(
                                seconds_of(lambda: [model(b) for b in batches], session.device)  # noqa: B023
                            )
            for name, took in times.items():
                results[f"{precision}, {tokens}, {name}"] = {
                    "tokens/s": words / took[-1],
                    "first pass tokens/s": words / took[0],
                    "ratio": times["peer"][-1] / took[-1] if "peer" in times else None,
                }
        models.clear()
    return results


def evaluation(session: Session) -> Dict[str, Any]:
    """Exact losses over the whole vocabulary."""
    results: Dict[str, Any] = {}
    tokens = session.sizes[0]
    for precision in session.options.precisions:
        session.free()
        ours = make_model(session, session.section, precision).to(session.device).eval()
        models = {"ours": ours}
        if not session.options.without_peer and precision != "bfloat16":
            peer = make_model(session, session.section, precision, ours)
            models["peer"] = peer.to(session.device).eval()
        batches = session.batches(tokens)[:6]
        words = sum(map(workload.num_tokens, batches))
        needed = sum(
            workload.arithmetic(session.section, b, session.vocab.get_vocab_size()).total
            for b in batches
        )
        for name, model in models.items():
            outputs: List[Any] = []
            workload.reset_peak_memory(session.device)
            before = workload.current_memory(session.device)
            with session.tf32(precision != "float32"), torch.no_grad():
                for _ in range(2):
                    outputs.clear()
                    took = seconds_of(
                        lambda: outputs.extend(float(model(b)["forward_loss"]) for b in batches),  # noqa: B023
                        session.device,
                    )
            results[f"{precision}, {tokens}, {name}"] = {
                "tokens/s": words / took,
                "TFLOP/s": needed / took / 1e12,
                "forward loss": statistics.mean(outputs),
                "beyond the model, GB": workload.peak_memory(session.device) - before,
            }
        models.clear()
    return results


def loop(session: Session) -> Dict[str, Any]:
    """The data loader and the training step together, as `allennlp train` has them."""
    from allennlp.data.token_indexers import ELMoTokenCharactersIndexer, SingleIdTokenIndexer
    from allennlp.data.tokenizers import WhitespaceTokenizer

    from transformer_elmo import LanguageModelingDataLoader, SimpleLanguageModelingDatasetReader

    results: Dict[str, Any] = {}
    side = make_side(session, "ours", "bfloat16", None)
    reader = SimpleLanguageModelingDatasetReader(
        WhitespaceTokenizer(),
        {"tokens": SingleIdTokenIndexer(), "token_characters": ELMoTokenCharactersIndexer()},
        start_tokens=["<S>"],
        end_tokens=["</S>"],
    )
    session.text  # noqa: B018
    for tokens in session.sizes:
        loader = LanguageModelingDataLoader(
            reader,
            session.out / "text" / "shards",
            max_tokens=tokens,
            distinct_words=True,
            quiet=True,
        )
        loader.index_with(session.vocab)
        loader.set_target_device(session.device)
        most = 4 if session.small else max(8, min(60, 500_000 // tokens))
        done = words = 0
        with session.tf32(True):
            for batch in loader:
                if done == 2:
                    workload.synchronize(session.device)
                    start, waited = time.perf_counter(), loader.seconds_waited
                if done >= 2:
                    words += side_tokens(batch)
                side.step(batch["source"])  # type: ignore[arg-type]
                done += 1
                if done == most + 2:
                    break
            workload.synchronize(session.device)
        took = time.perf_counter() - start
        results[str(tokens)] = {
            "tokens/s": words / took,
            "waited": (loader.seconds_waited - waited) / took,
            "steps": done - 2,
        }
    return results


def side_tokens(batch: Any) -> int:
    # From the host's copy of shapes only: counting would wait for the device.
    return int(batch["source"]["tokens"]["tokens"].numel())


def curves(session: Session) -> Dict[str, Any]:
    """The same small model, text and seed on the device and on the CPU."""
    results: Dict[str, Any] = {}
    steps = 10 if session.small else 300
    text = workload.sentences(None)
    vocab = workload.vocabulary(text, 8000)
    section = workload.model_section()
    section["num_samples"] = 512
    section["contextualizer"].update(input_dim=64, hidden_dim=256, num_layers=2)
    embedder = section["text_field_embedder"]["token_embedders"]["token_characters"]
    embedder["encoder"].update(filters=[[1, 16], [2, 16], [3, 32], [4, 64]], projection_dim=64)
    made = workload.batches(text, vocab, 1000)
    held_out, made = made[:4], made[4:]
    for name, device, precision in (
        ("CPU, float32", "cpu", "float32"),
        ("device, float32", session.device, "float32"),
        ("device, bfloat16", session.device, "bfloat16"),
    ):
        from transformer_elmo import DenseSparseAdam

        torch.manual_seed(13)
        model = workload.our_model(section, vocab, precision).to(device)
        side = Side(
            name,
            model,
            DenseSparseAdam(list(model.named_parameters()), lr=1e-3),
            contextlib.nullcontext,
        )
        where = torch.device(device)
        with session.tf32(False):
            for step in range(steps):
                side.step(workload.on_device(made[step % len(made)], where))
            model.eval()
            with torch.no_grad():
                outputs = [model(workload.on_device(batch, where)) for batch in held_out]
        weights = [float(output["batch_weight"]) for output in outputs]
        total = sum(float(o["loss"]) * w for o, w in zip(outputs, weights))
        losses = [float(loss) for loss in side.losses]
        results[name] = {
            "held-out loss": total / sum(weights),
            "training loss, last 20": statistics.mean(losses[-20:]),
            "training loss": [
                round(statistics.mean(losses[i : i + 10]), 4) for i in range(0, steps, 10)
            ],
        }
    return results


STEPS: Dict[str, Callable[[Session], Dict[str, Any]]] = {
    "environment": environment,
    "training": training,
    "profile": profiled,
    "embedding": embedding,
    "evaluation": evaluation,
    "loop": loop,
    "curves": curves,
}


def table(results: Dict[str, Any]) -> List[str]:
    rows = {key: value for key, value in results.items() if isinstance(value, dict)}
    plain = {key: value for key, value in results.items() if key not in rows}
    lines = [f"- {key}: {_shown(value)}" for key, value in plain.items()]
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns = [
        c for c in columns if not any(isinstance(r.get(c), (list, dict)) for r in rows.values())
    ]
    if rows:
        lines += ["", "| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
        lines += [
            f"| {key} | " + " | ".join(_shown(row.get(column, "")) for column in columns) + " |"
            for key, row in rows.items()
        ]
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "-" if value is None else str(value)


def write_report(out: Path, steps: Sequence[str]) -> str:
    lines: List[str] = []
    for name in steps:
        path = out / f"{name}.json"
        if path.exists():
            lines += [f"## {name}", "", *table(json.loads(path.read_text())), ""]
    text = "\n".join(lines)
    (out / "report.md").write_text(text + "\n", encoding="utf-8")
    return text


def _numbers(text: str) -> List[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder for results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=20.0, help="no step begins after so many")
    parser.add_argument(
        "--steps", default=",".join(STEPS), help="those to run, with commas between them"
    )
    parser.add_argument("--sizes", type=_numbers, default=SIZES, help="tokens a batch: 2000,32000")
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=PRECISIONS)
    parser.add_argument("--small", action="store_true", help="a rehearsal: everything shrunk")
    parser.add_argument("--without-peer", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = options.steps.split(",")
    for name in chosen:
        if name not in STEPS:
            parser.error(f"there is no step {name!r}: expected some of {', '.join(STEPS)}")
    session = Session(options)
    for name in chosen:
        path = options.out / f"{name}.json"
        if path.exists():
            print(f"{name}: done before", flush=True)
            continue
        if time.monotonic() > session.deadline:
            print(f"{name}: no time left; run the command again to go on", flush=True)
            continue
        start = time.perf_counter()
        try:
            results = STEPS[name](session)
        except Exception:
            traceback.print_exc()
            print(f"{name}: failed", flush=True)
            session.free()
            continue
        path.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(write_report(options.out, chosen))


if __name__ == "__main__":
    main()
