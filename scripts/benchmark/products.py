"""
Products with matrices of any layout against plain PyTorch, in turns on the same numbers.
`FEWEST_ROWS` in `nn/kernels/linear.py` follows from it.

    python scripts/benchmark/products.py NUMBER_OF_THREADS
"""

import sys
import time
from functools import partial
from typing import Any, Callable

import torch
from torch.nn import functional as F
from workload import describe

from transformer_elmo.nn.kernels.linear import layout, product

DIM, ROUNDS = 512, 3
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


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(f"{describe(torch.device('cpu'))}; milliseconds: ours, plain PyTorch's; ratio")
    for shape in ((DIM, DIM), (4 * DIM, DIM), (DIM, 4 * DIM)):
        products(*shape)
