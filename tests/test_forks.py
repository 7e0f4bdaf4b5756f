"""Models that are opened by one process and used by those forked from it, as servers do. Those of
other libraries: `tests/integrations/test_contract.py`."""

import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.integrations.small_model import save_small_model
from transformer_elmo import BidirectionalLanguageModelTokenEmbedder, TransformerElmo

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)

EMBEDDERS = []


def use(words):
    return EMBEDDERS[-1](words)[-1].detach().numpy()


def test_forked_processes_answer(lm_archive):
    # Enough of them for threads.
    words = torch.randint(1, 262, (300, 6, 50), generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(2)
    try:
        EMBEDDERS.append(BidirectionalLanguageModelTokenEmbedder(str(lm_archive)).eval())
        expected = use(words)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map_async(use, [words, words]).get(timeout=60)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    for vectors in found:
        assert np.allclose(vectors, expected, atol=1e-5)


SERVER = """
import sys
sys.modules["allennlp"] = None  # It takes long to import.
import multiprocessing, pickle, torch
torch.set_num_threads(2)
with open("elmo.pickle", "rb") as file:
    elmo = pickle.load(file)
print(len(elmo.embed(["the cat sat in Berlin ."] * 300)))

def embed(number):
    return len(elmo.embed(["the cat sat in Berlin ."] * 300))

with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(embed, range(2)).get(timeout=60) == [300, 300]
"""


def test_a_model_that_was_unpickled(tmp_path):
    elmo = TransformerElmo.open(save_small_model(tmp_path / "elmo"), "cpu")
    (tmp_path / "elmo.pickle").write_bytes(pickle.dumps(elmo))
    seed = str(random.randrange(2**32))
    print("PYTHONHASHSEED =", seed)
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": seed}
    del environment["OMP_NUM_THREADS"]
    subprocess.run(
        [sys.executable, "-c", SERVER], cwd=tmp_path, env=environment, check=True, timeout=180
    )
