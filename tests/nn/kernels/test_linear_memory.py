"""Products of ever new shapes, as the batches of a long text are, in memory that stays flat."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transformer_elmo.nn.kernels.linear import _by_onednn

ROOT = Path(__file__).resolve().parents[3]

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")

# In a process of its own: what is kept belongs to the process, and is set up once.
GROWTH = """
import os, sys, torch
from transformer_elmo.nn.kernels.linear import product

def megabytes():
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("RssAnon")]
    return int(line.split()[1]) // 1024

torch.set_num_threads(1)
rows, weight, bias = torch.randn(1200, 64), torch.randn(64, 64), torch.randn(64)
product(rows[:1], weight, bias)
before = megabytes()
for number in range(2, len(rows)):
    product(rows[:number], weight, bias)
print(megabytes() - before, *(os.environ[name] for name in sys.argv[1:]))
"""


@pytest.mark.skipif(
    not _by_onednn(torch.zeros(1, 1)) or not Path("/proc/self/status").exists(),
    reason="needs oneDNN, and a system that says how much memory a process has",
)
def test_memory_does_not_grow_with_the_number_of_shapes():
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    # What the user has set stays.
    environment.update({NAMES[0]: "100", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    command = [sys.executable, "-c", GROWTH, *NAMES]
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    megabytes, *values = said.stdout.split()
    assert values == ["100", "128"]
    # Some 95 here, and some 600 with all that oneDNN and PyTorch would keep.
    assert int(megabytes) < 250
