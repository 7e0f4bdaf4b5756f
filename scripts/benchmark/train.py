"""
Training steps of the billion-word model, ours and allennlp-models' alternating on the same batches.

    python scripts/benchmark/train.py --rounds 5 --breakdown
    python scripts/benchmark/train.py --device cuda --precision bfloat16 --tokens-per-batch 32000
"""

import functools
import statistics
import time
from typing import Any, Callable, Dict, List

import torch
import workload


class Trainee:
    """A model, its optimizer, and the time each part of its steps took."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model.train()
        self.optimizer = optimizer
        self.phases: Dict[str, List[float]] = {"forward": [], "backward": [], "optimizer": []}
        self.seconds: List[float] = []
        self.losses: List[float] = []

    def step(self, batch: workload.Batch, device: torch.device) -> None:
        output: Dict[str, Any] = {}
        phases: Dict[str, Callable[[], Any]] = {
            "forward": lambda: output.update(self.model(batch)),
            "backward": lambda: output["loss"].backward(),
            "optimizer": self.optimizer.step,
        }
        self.optimizer.zero_grad()
        start = time.perf_counter()
        for name, phase in phases.items():
            self.phases[name].append(workload.timed(phase, device))
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(float(output["loss"]))

    def forget_warm_up(self) -> None:
        for seconds in [self.seconds, *self.phases.values()]:
            seconds.clear()


def main() -> None:
    parser = workload.arguments("Training speed of ours and of allennlp-models.")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    torch.manual_seed(13)

    text = workload.sentences(options.corpus)
    vocab = workload.vocabulary(text, options.vocabulary_size)
    section = workload.model_section()
    made = workload.batches(text, vocab, options.tokens_per_batch)

    from transformer_elmo import DenseSparseAdam

    ours = workload.our_model(section, vocab, options.precision).to(device)
    sides = {"ours": Trainee(ours, DenseSparseAdam(list(ours.named_parameters()), lr=1e-4))}
    if not options.without_peer:
        from allennlp.training.optimizers import DenseSparseAdam as PeerAdam

        peer = workload.peer_model(section, vocab, ours).to(device)
        sides["peer"] = Trainee(peer, PeerAdam(list(peer.named_parameters()), lr=1e-4))
    tokens: List[int] = []
    needed: List[float] = []
    for number in range(options.rounds + 1):
        batch = made[number % len(made)]
        moved = workload.on_device(batch, device)
        # Who goes first changes, so that neither always finds the other's leftovers in the caches.
        order = list(sides) if number % 2 else list(sides)[::-1]
        for name in order:
            sides[name].step(moved, device)
        if number == 0:
            for side in sides.values():
                side.forget_warm_up()
            continue
        tokens.append(workload.num_tokens(batch))
        needed.append(3 * workload.arithmetic(section, batch, section["num_samples"]).total)

    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    rate = workload.gemm_rate(device, dtype, options.tokens_per_batch)
    print(workload.describe(device))
    print(
        f"{options.precision}, {options.vocabulary_size} words, batches of "
        f"{options.tokens_per_batch} tokens ({statistics.mean(tokens):.0f} without padding), "
        f"{options.rounds} rounds"
    )
    print(
        f"Matrix products run at {rate / 1e9:.0f} GFLOP/s; a step needs "
        f"{statistics.mean(needed) / statistics.mean(tokens) / 1e6:.0f} MFLOP a token."
    )
    rows = [
        [
            "",
            "tokens/s",
            "s/step",
            "forward",
            "backward",
            "optimizer",
            "of bound",
            "MFU",
            "last loss",
        ]
    ]
    for name, side in sides.items():
        share = statistics.median(n / rate / s for n, s in zip(needed, side.seconds))
        mfu = statistics.median(n / options.peak_flops / s for n, s in zip(needed, side.seconds))
        rows.append(
            [
                name,
                f"{workload.median_rate(tokens, side.seconds):.0f}",
                f"{statistics.median(side.seconds):.3f}",
                *(f"{statistics.median(side.phases[phase]):.3f}" for phase in side.phases),
                f"{share:.0%}",
                f"{mfu:.1%}" if device.type == "cuda" else "-",
                f"{side.losses[-1]:.3f}",
            ]
        )
    print(workload.table(rows))
    if "peer" in sides:
        ratios = [p / o for o, p in zip(sides["ours"].seconds, sides["peer"].seconds)]
        print(
            f"ours / peer: {statistics.median(ratios):.2f} (median of rounds; "
            f"{min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(f"peak memory of the process: {workload.peak_memory(device):.1f} GB")
    if options.breakdown:
        for name, side in sides.items():
            print(f"\n{name}, seconds by kind of operator:")
            step = functools.partial(side.step, moved, device)
            for kind, seconds in workload.breakdown(step, device):
                print(f"  {kind:26} {seconds:7.3f}")


if __name__ == "__main__":
    main()
