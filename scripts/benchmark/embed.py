"""
Embedding with a frozen biLM: all layers for each word, as the token embedder asks for them. The
same batches twice, because a corpus is mostly words met before; ours, allennlp-models' and
PyTorch's own transformer encoder of the same size (which has no word encoder at all) take turns.

    python scripts/benchmark/embed.py --rounds 5
    python scripts/benchmark/embed.py --device cuda --precision bfloat16 --tokens-per-batch 64000
"""

import contextlib
import functools
import statistics
from typing import Any, Callable, Dict, List

import torch
import workload


def plain_encoder(section: Dict[str, Any]) -> torch.nn.Module:
    """Twelve layers, as many as both directions have, without positions, characters or a mask."""
    shape = section["contextualizer"]
    layer = torch.nn.TransformerEncoderLayer(
        shape["input_dim"], 8, shape["hidden_dim"], batch_first=True, norm_first=True
    )
    return torch.nn.TransformerEncoder(layer, 2 * shape["num_layers"], enable_nested_tensor=False)


def main() -> None:
    options = workload.arguments("Embedding speed of ours and of allennlp-models.").parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    torch.manual_seed(13)

    text = workload.sentences(options.corpus)
    vocab = workload.vocabulary(text, options.vocabulary_size)
    section = workload.model_section()
    section["contextualizer"]["return_all_layers"] = True
    made = workload.batches(text, vocab, options.tokens_per_batch)[: options.rounds]

    ours = workload.our_model(section, vocab, options.precision).to(device)
    models: Dict[str, Any] = {"ours": ours}
    if not options.without_peer:
        models["peer"] = workload.peer_model(section, vocab, ours).to(device)
    for model in models.values():
        model.delete_softmax()
        model.eval().requires_grad_(False)
    dim = section["contextualizer"]["input_dim"]
    encoder = plain_encoder(section).to(device).eval().requires_grad_(False)
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32

    def only_characters(batch: workload.Batch) -> workload.Batch:
        return {name: entry for name, entry in batch.items() if name != "tokens"}

    def plain(batch: workload.Batch) -> None:
        mask = batch["tokens"]["tokens"] > 0
        vectors = torch.randn(*mask.shape, dim, device=device)
        autocast: Any = contextlib.nullcontext()
        if dtype != torch.float32:
            autocast = torch.autocast(device.type, dtype=dtype)
        with autocast:
            encoder(vectors)

    def of_characters(model: torch.nn.Module, batch: workload.Batch) -> Any:
        return model(only_characters(batch))

    sides: Dict[str, Callable[[workload.Batch], Any]] = {
        name: functools.partial(of_characters, model) for name, model in models.items()
    }
    sides["12 layers alone"] = plain

    passes: List[Dict[str, List[float]]] = [{name: [] for name in sides} for _ in range(2)]
    with torch.no_grad():
        for function in sides.values():
            function(workload.on_device(workload.batches(text, vocab, 200)[0], device))
        if "ours" in models:
            # Nothing is known yet when the first pass begins.
            from transformer_elmo.plugin.text_fields import _caches

            for cache in _caches.values():
                cache.clear()
        for seconds in passes:
            for number, batch in enumerate(made):
                moved = workload.on_device(batch, device)
                for name in list(sides) if number % 2 else list(sides)[::-1]:
                    function = sides[name]
                    took = workload.timed(functools.partial(function, moved), device)
                    seconds[name].append(took)

    tokens = [workload.num_tokens(batch) for batch in made]
    needed = [workload.arithmetic(section, batch, 0).transformers for batch in made]
    rate = workload.gemm_rate(device, dtype, options.tokens_per_batch)
    print(workload.describe(device))
    print(
        f"{options.precision}, batches of {options.tokens_per_batch} tokens "
        f"({statistics.mean(tokens):.0f} without padding), {len(made)} of them, twice"
    )
    print(
        f"Matrix products run at {rate / 1e9:.0f} GFLOP/s; once its words are known, a token needs "
        f"{sum(needed) / sum(tokens) / 1e6:.0f} MFLOP."
    )
    rows = [["", "pass", "tokens/s", "s/batch", "of bound", "MFU", "against the peer"]]
    for number, seconds in enumerate(passes, 1):
        for name, own in seconds.items():
            ratio = "-"
            if "peer" in seconds:
                ratio = f"{statistics.median(p / o for o, p in zip(own, seconds['peer'])):.2f}"
            mfu = statistics.median(n / options.peak_flops / s for n, s in zip(needed, own))
            rows.append(
                [
                    name,
                    str(number),
                    f"{workload.median_rate(tokens, own):.0f}",
                    f"{statistics.median(own):.3f}",
                    f"{statistics.median(n / rate / s for n, s in zip(needed, own)):.0%}",
                    f"{mfu:.1%}" if device.type == "cuda" else "-",
                    ratio,
                ]
            )
    print(workload.table(rows))
    print(f"peak memory of the process: {workload.peak_memory(device):.1f} GB")
    if options.breakdown:
        for name, side in sides.items():
            print(f"\n{name}, seconds by kind of operator:")
            with torch.no_grad():
                for kind, time in workload.breakdown(functools.partial(side, moved), device):
                    print(f"  {kind:26} {time:7.3f}")


if __name__ == "__main__":
    main()
