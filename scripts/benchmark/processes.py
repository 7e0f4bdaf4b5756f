"""
What a training step of several processes is made of: N processes, a thread each, share the tokens
that one process takes alone, on one machine, over gloo. Prints the seconds of each part and the
bytes that a process sends, for each vocabulary size.

    python scripts/benchmark/processes.py --processes 1 2 --sizes 21000 793471

Exchanges are timed from where a process begins one to its end, so that they contain the wait for a
slower process. "scaling" is the first row's time over this row's, times its processes over theirs:
100 % is ideal.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import workload

PARTS = ("forward and backward", "dense exchange", "exchange of rows", "optimizer")


def worker(folder: Path, tokens: int, steps: int) -> None:
    """One of the processes that torchrun starts. The first writes what it has found."""
    import side
    import torch
    import torch.distributed as dist
    from allennlp.nn.parallel import TorchDdpAccelerator

    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    seconds, sent = defaultdict[str, float](float), Counter[str]()

    def timed(part: str, function: Callable[..., Any], *args: Any) -> Any:
        begin = time.perf_counter()
        found = function(*args)
        seconds[part] += time.perf_counter() - begin
        return found

    def dense(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buffer = bucket.buffer()
        sent["dense exchange"] += buffer.nbytes
        timed("dense exchange", dist.all_reduce, buffer)
        done: Any = torch.futures.Future()
        done.set_result(buffer.div_(processes))
        return done

    distributed: Any = dist
    gather = dist.all_gather

    def rows(parts: Any, tensor: Any) -> None:
        sent["exchange of rows"] += tensor.nbytes
        timed("exchange of rows", gather, parts, tensor)

    one = side.Side("ours")
    one.options = {"folder": str(folder), "precision": "float32"}
    one.device, one.gpu, one.config = torch.device("cpu"), False, workload.experiment()
    side.importlib.import_module("transformer_elmo.plugin")
    if processes > 1:
        dist.init_process_group("gloo")
    model: Any = one.model().train()
    wrapped: Any = model
    if processes > 1:
        distributed.all_gather = rows
        accelerator = TorchDdpAccelerator(local_rank=rank, world_size=processes)
        wrapped = accelerator.wrap_model(model)[1].model
        wrapped.register_comm_hook(None, dense)
    named = [[name, weight] for name, weight in model.named_parameters()]
    adam = {"type": "dense_sparse_adam", "lr": 1e-4}
    optimizer = side.built("training.optimizers.Optimizer", adam, model_parameters=named)
    batches = iter(one.loader(str(folder / "text"), max_tokens=tokens // processes, seed=13))
    found: list[dict[str, float]] = []
    for _ in range(steps + 1):
        source = next(batches)["source"]
        seconds.clear()
        sent.clear()
        begin = time.perf_counter()
        optimizer.zero_grad()
        wrapped(source)["loss"].backward()
        seconds["forward and backward"] = time.perf_counter() - begin
        timed("optimizer", optimizer.step)
        step = time.perf_counter() - begin
        seconds["forward and backward"] -= sum(seconds[part] for part in PARTS[1:3])
        found.append({"step": step, **seconds, **{f"{k}, bytes": n for k, n in sent.items()}})
    if rank == 0:
        # The first step warms up.
        middle = {name: statistics.median(one[name] for one in found[1:]) for name in found[0]}
        (folder / "found.json").write_text(json.dumps(middle))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[21_000, workload.BILLION_WORDS])
    parser.add_argument("--tokens", type=int, default=2000, help="of a step, padding included")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.tokens, options.steps)
        return
    print(
        f"A step of {options.tokens:,} tokens, medians of {options.steps} steps, in milliseconds\n"
    )
    print(f"| words | processes | step | {' | '.join(PARTS)} | MB dense | MB of rows | scaling |")
    print("| ---: |" + " ---: |" * (len(PARTS) + 5))
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    for size in options.sizes:
        alone = 0.0
        with tempfile.TemporaryDirectory() as name:
            workload.write_real(Path(name), None, size)
            for processes in options.processes:
                command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
                command += ["--standalone", f"--nproc-per-node={processes}", __file__]
                command += [f"--tokens={options.tokens}", f"--steps={options.steps}"]
                subprocess.run([*command, "--worker", name], check=True, env=environment)
                found = json.loads((Path(name) / "found.json").read_text())
                alone = alone or found["step"] * processes
                cells = [f"{size:,}", str(processes), f"{1000 * found['step']:,.0f}"]
                cells += [f"{1000 * found.get(part, 0):,.0f}" for part in PARTS]
                cells += [f"{found.get(f'{part}, bytes', 0) / 1e6:,.1f}" for part in PARTS[1:3]]
                print(
                    f"| {' | '.join(cells)} | {alone / found['step'] / processes:.0%} |", flush=True
                )


if __name__ == "__main__":
    main()
