"""
Products with weights against plain PyTorch, in turns on the same numbers: matrices of any layout,
and each softmax with weights from a fresh model, a model folder, an archive, or the other softmax,
whose matrix lies the other way round. `FEWEST_ROWS` in `nn/kernels/linear.py` follows from it.

    python scripts/benchmark/products.py NUMBER_OF_THREADS
"""

import io
import itertools
import sys
import time
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable

import safetensors.torch
import torch
from torch.nn import functional as F
from workload import describe

from transformer_elmo.nn.kernels.linear import layout, product
from transformer_elmo.nn.softmax import SampledSoftmaxLoss, SoftmaxLoss

DIM, WORDS, ROUNDS = 512, 8000, 3
NUM_MATRICES = 12  # Between two uses of one lie the others, so that none is in a cache.


def report(name: str, ours: Callable[[], Any], plain: Callable[[], Any]) -> None:
    """The shortest time of each, in milliseconds of the processor, and their ratio."""
    shortest = [float("inf")] * 2
    for _ in range(ROUNDS):
        for side, function in enumerate((ours, plain)):
            begin = time.process_time()
            function()
            shortest[side] = min(shortest[side], time.process_time() - begin)
    of_both = "".join(f"{1000 * seconds:9.2f}" for seconds in shortest)
    print(f"{name:62}{of_both}{shortest[0] / shortest[1]:7.2f}", flush=True)


def map_all(function: Any, rows: torch.Tensor, weights: Any, bias: torch.Tensor) -> None:
    for weight in weights:
        function(rows, weight, bias)


def products(outputs: int, inputs: int) -> None:
    here, bias = slice(3, outputs + 3), torch.randn(outputs)
    for name, make in {
        "whole": lambda: torch.randn(outputs, inputs),
        "some rows": lambda: torch.randn(outputs + 9, inputs)[here],
        "transposed": lambda: torch.randn(inputs, outputs).t(),
        "some rows of a transposed one": lambda: torch.randn(inputs, outputs + 9).t()[here],
        "some columns": lambda: torch.randn(outputs, inputs + 8)[:, 5 : inputs + 5],
    }.items():
        weights = [make() for _ in range(NUM_MATRICES)]
        for number in (1, 2, 8, 25, 2000):
            rows = torch.randn(number, inputs)
            both = [partial(map_all, of, rows, weights, bias) for of in (product, F.linear)]
            report(f"{outputs} x {inputs}, {name}, {layout(weights[0])}, {number} rows", *both)


def softmax_from(source: str, kind: str) -> Any:
    made = {
        "full": lambda: SoftmaxLoss(WORDS, DIM),
        "sampled": lambda: SampledSoftmaxLoss(WORDS, DIM, WORDS // 2),
        "sampled, sparse": lambda: SampledSoftmaxLoss(WORDS, DIM, WORDS // 2, sparse=True),
    }
    softmax, file = made[kind](), io.BytesIO()
    if source == "an archive":
        torch.save(softmax.state_dict(), file)
        softmax.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    elif source != "a fresh model":
        other = made["sampled" if kind == "full" else "full"]()
        written = (softmax if source == "a model folder" else other).state_dict()
        state = safetensors.torch.load(safetensors.torch.save(written))
        softmax.load_state_dict(state, assign=True)
    return softmax.requires_grad_()


def losses(name: str, softmax: Any, dtype: torch.dtype, tokens: int, learns: bool) -> None:
    rows, targets = torch.randn(tokens, DIM, requires_grad=True), torch.randint(WORDS, (tokens,))
    sampled = softmax.draw(rows.device) if isinstance(softmax, SampledSoftmaxLoss) else None

    def ours() -> torch.Tensor:
        with softmax.one_draw(sampled) if sampled else nullcontext():
            return softmax.token_losses(rows, targets)

    def plain() -> torch.Tensor:
        weight, bias = softmax.word_weights()
        if sampled is None:
            return F.cross_entropy(F.linear(rows, weight, bias), targets, reduction="none")
        counts = softmax.log_expected_count(torch.cat([targets, sampled[0]]), sampled[1])
        of_targets = (rows * weight[targets]).sum(-1) + bias[targets] - counts[:tokens]
        logits = F.linear(rows, weight[sampled[0]], bias[sampled[0]] - counts[tokens:])
        logits = logits.masked_fill(targets.unsqueeze(-1) == sampled[0], -torch.inf)
        return torch.cat([of_targets.unsqueeze(-1), logits], -1).logsumexp(-1) - of_targets

    def run(function: Callable[[], torch.Tensor]) -> None:
        softmax.zero_grad()
        with torch.set_grad_enabled(learns), torch.autocast("cpu", dtype, dtype != torch.float32):
            of_tokens = function()
        if learns:
            of_tokens.sum().backward()

    report(name, partial(run, ours), partial(run, plain))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(f"{describe(torch.device('cpu'))}; milliseconds: ours, plain PyTorch's; ratio")
    for shape in ((DIM, DIM), (4 * DIM, DIM), (DIM, 4 * DIM)):
        products(*shape)
    combinations = itertools.product(
        ("full", "sampled", "sampled, sparse"),
        ("a fresh model", "a model folder", "an archive", "the other softmax"),
        (torch.float32, torch.bfloat16),
        (1, 25, 2000),
        (False, True),
    )
    for kind, source, dtype, tokens, learns in combinations:
        name = f"{kind}, {source}, {str(dtype)[6:]}, {tokens} tokens, learns: {learns}"
        losses(name, softmax_from(source, kind), dtype, tokens, learns)
