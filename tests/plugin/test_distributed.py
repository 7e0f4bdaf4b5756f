import pytest
import torch
from torch import multiprocessing

from tests.plugin import processes

# Not forked from here, where other tests have left threads; and not each importing AllenNLP anew.
multiprocessing.get_context("forkserver").set_forkserver_preload([processes.__name__])

FULL = {"num_samples": None, "sparse_embeddings": False}
SETTINGS = {
    "sampled, sparse": {},
    "sampled, dense": {"sparse_embeddings": False},
    "full": FULL,
    "full, Muon": {**FULL, "optimizer": "MuonSparseAdam"},
}


def run(world_size, folder, settings):
    folder.mkdir()
    multiprocessing.start_processes(
        processes.train,
        args=(world_size, str(folder), settings),
        nprocs=world_size,
        start_method="forkserver",
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_number_of_processes_doesnt_matter(name, tmp_path):
    """
    With the same sentences a step, and (for a sampled softmax) the same words drawn, without
    dropout: the same losses, and in the end the same weights, on one, two and four processes.
    """
    numbers = (1, 2, 4) if name == "sampled, sparse" else (1, 2)
    runs = {n: run(n, tmp_path / str(n), SETTINGS[name]) for n in numbers}
    alone = runs[1][0]
    assert alone["losses"][-1] < alone["losses"][0]
    for results in runs.values():
        for result in results:
            assert result["losses"] == pytest.approx(alone["losses"], abs=1e-4)
            assert result["metrics"] == results[0]["metrics"]
            assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
            for key, weight in result["weights"].items():
                # All processes of a run agree to the last bit.
                assert torch.equal(weight, results[0]["weights"][key]), key
                assert torch.allclose(weight, alone["weights"][key], atol=1e-3), key
            if name == "sampled, sparse":
                # A row for each word drawn or predicted by any of them, and no more.
                assert result["rows"] == alone["rows"]
                assert all(rows is not None for rows in result["rows"])
