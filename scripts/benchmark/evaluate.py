"""
Exact evaluation, over the whole vocabulary: ours and allennlp-models' alternating on the same
batches. Each side's peak memory is that of a process of its own, because a process never gives its
peak back.

    python scripts/benchmark/evaluate.py --vocabulary-size 793471 --rounds 2
    python scripts/benchmark/evaluate.py --device cuda --vocabulary-size 793471 --tokens-per-batch
    32000
"""

import argparse
import functools
import multiprocessing
import statistics
from typing import Any, Dict, List, Tuple

import torch
import workload


def prepare(
    options: argparse.Namespace,
) -> Tuple[Dict[str, Any], torch.nn.Module, List[workload.Batch], Any]:
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(13)
    text = workload.sentences(options.corpus)
    vocab = workload.vocabulary(text, options.vocabulary_size)
    section = workload.model_section()
    made = workload.batches(text, vocab, options.tokens_per_batch)[: options.rounds]
    model = workload.our_model(section, vocab, options.precision).to(options.device).eval()
    return section, model, made, vocab


def memory_alone(options: argparse.Namespace, side: str, queue: Any) -> None:
    """GB: at the peak of one batch, and of the model by itself."""
    device = torch.device(options.device)
    section, model, made, vocab = prepare(options)
    if side == "peer":
        # Both models at once for a moment, but not as much as the peer's logits will take.
        ours, model = model, workload.peer_model(section, vocab, model).to(device).eval()
        del ours
    workload.reset_peak_memory(device)
    before = workload.current_memory(device)
    with torch.no_grad():
        model(workload.on_device(made[0], device))
    queue.put((workload.peak_memory(device), before))


def main() -> None:
    parser = workload.arguments("Exact evaluation of ours and of allennlp-models.")
    parser.add_argument("--without-memory", action="store_true", help="measure the time only")
    options = parser.parse_args()
    device = torch.device(options.device)
    sides = ["ours"] if options.without_peer else ["ours", "peer"]

    memory: Dict[str, Tuple[float, float]] = {}
    if not options.without_memory:
        context = multiprocessing.get_context("spawn")
        for side in sides:
            queue = context.Queue()
            process = context.Process(target=memory_alone, args=(options, side, queue))
            process.start()
            memory[side] = queue.get()
            process.join()

    section, ours, made, vocab = prepare(options)
    models = {"ours": ours}
    if "peer" in sides:
        models["peer"] = workload.peer_model(section, vocab, ours).to(device).eval()
    seconds: Dict[str, List[float]] = {side: [] for side in sides}
    losses: Dict[str, List[float]] = {side: [] for side in sides}
    with torch.no_grad():
        for number, batch in enumerate(made):
            moved = workload.on_device(batch, device)
            for side in sides if number % 2 else sides[::-1]:
                output: Dict[str, Any] = {}
                model = models[side]
                took = workload.timed(lambda: output.update(model(moved)), device)  # noqa: B023
                seconds[side].append(took)
                # The forward direction's: the peer's backward one counts a prediction more for
                # each padded sentence.
                losses[side].append(float(output["forward_loss"]))

    tokens = [workload.num_tokens(batch) for batch in made]
    needed = [workload.arithmetic(section, batch, options.vocabulary_size).total for batch in made]
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    rate = workload.gemm_rate(device, dtype, options.tokens_per_batch)
    print(workload.describe(device))
    print(
        f"{options.precision}, {options.vocabulary_size} words, batches of "
        f"{options.tokens_per_batch} tokens ({statistics.mean(tokens):.0f} without padding), "
        f"{len(made)} rounds"
    )
    print(
        f"Matrix products run at {rate / 1e9:.0f} GFLOP/s; exact evaluation needs "
        f"{sum(needed) / sum(tokens) / 1e6:.0f} MFLOP a token."
    )
    rows = [
        [
            "",
            "tokens/s",
            "s/batch",
            "of bound",
            "MFU",
            "forward loss",
            "peak GB",
            "beyond the model",
        ]
    ]
    for side in sides:
        mfu = statistics.median(n / options.peak_flops / s for n, s in zip(needed, seconds[side]))
        peak, before = memory.get(side, (float("nan"), float("nan")))
        rows.append(
            [
                side,
                f"{workload.median_rate(tokens, seconds[side]):.0f}",
                f"{statistics.median(seconds[side]):.2f}",
                f"{statistics.median(n / rate / s for n, s in zip(needed, seconds[side])):.0%}",
                f"{mfu:.1%}" if device.type == "cuda" else "-",
                f"{losses[side][-1]:.5f}",
                f"{peak:.2f}",
                f"{peak - before:.2f}",
            ]
        )
    print(workload.table(rows))
    if "peer" in sides:
        ratios = [p / o for o, p in zip(seconds["ours"], seconds["peer"])]
        print(f"ours / peer: {statistics.median(ratios):.2f} (median of rounds)")
    if options.breakdown:
        for side, model in models.items():
            print(f"\n{side}, seconds by kind of operator:")
            with torch.no_grad():
                for kind, time in workload.breakdown(functools.partial(model, moved), device):
                    print(f"  {kind:26} {time:7.3f}")


if __name__ == "__main__":
    main()
