import json
import shutil
import signal
import subprocess
import sys
from typing import Dict, List

import pytest
import torch

from tests.plugin.launched import ended, free_port, of_torchrun, start, write_config
from tests.plugin.tiny_run import weights_are_the_same
from tests.small_lm import model_config

ALONE: List[Dict[str, str]] = [{}]
TWO = {"cuda_devices": [-1, -1]}


def torchrun(number):
    port = free_port()
    return [of_torchrun(rank, number, port) for rank in range(number)]


def check_best(*folders):
    weights_are_the_same(*(torch.load(folder / "best.th") for folder in folders))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("launched"))


@pytest.fixture(scope="module")
def own(config):
    """What AllenNLP's own way gives."""
    folder = config.parent / "own"
    section = json.dumps({"distributed": TWO})
    assert ended(start(ALONE, config, folder, overrides=section)) == [0]
    return folder


@pytest.mark.slow
class TestRuns:
    def test_torchrun(self, config, own, tmp_path):
        subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node=2", "-m", "allennlp", "train", config, "-s", tmp_path / "out"),
            ],
            check=True,
            capture_output=True,
        )
        check_best(own, tmp_path / "out")
        # Whichever way it goes on.
        assert (own / "config.json").read_text() == (tmp_path / "out/config.json").read_text()
        assert (tmp_path / "out/model.tar.gz").exists()

    def test_two_machines_that_share_a_folder(self, config, own, tmp_path):
        folder = tmp_path / "out"

        def machines():
            return [{**p, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} for p in torchrun(2)]

        told = dict.fromkeys(range(2), (4, signal.SIGTERM))
        assert ended(start(machines(), config, folder, at_step=told)) == [143, 143]
        assert "--recover, started by torchrun as before" in folder.with_suffix(".said").read_text()
        assert ended(start(machines(), config, folder, recover=True)) == [0, 0]
        for written in (folder, folder / "node1"):
            check_best(own, written)

    def test_one_is_killed(self, config, tmp_path):
        folder = tmp_path / "out"
        killed = {1: (4, signal.SIGKILL)}
        assert ended(start(torchrun(2), config, folder, at_step=killed)) == [1, -9]
        said = folder.with_suffix(".said").read_text()
        assert "ProcessLostError: Another process of the run is gone" in said
        assert "started by torchrun as before" in said

    def test_bad_input_is_one_message(self, config, tmp_path):
        folder = tmp_path / "out"
        section = json.dumps({"distributed": {"cuda_devices": [-1] * 3}})
        assert ended(start(torchrun(2), config, folder, overrides=section)) == [1, 1]
        said = folder.with_suffix(".said").read_text()
        # Each process by itself.
        assert said.count("torchrun has started 2 processes, 2 on each of 1 machines") == 2
        assert not folder.exists()


@pytest.mark.slow
def test_another_number_of_processes(tmp_path):
    model = model_config(num_samples=None, sparse_embeddings=False)
    model["contextualizer"].update(dropout=0.0, input_dropout=0.0)
    config = write_config(tmp_path, model=model)
    begun = tmp_path / "2"
    told = dict.fromkeys(range(2), (4, signal.SIGTERM))
    assert ended(start(torchrun(2), config, begun, at_step=told)) == [143, 143]
    accumulating = json.dumps({"trainer.num_gradient_accumulation_steps": 2})
    found = {}
    for environments, overrides in ((ALONE, accumulating), (torchrun(2), "")):
        folder = tmp_path / f"on {len(environments)}"
        shutil.copytree(begun, folder)
        processes = start(environments, config, folder, recover=True, overrides=overrides)
        assert ended(processes) == [0] * len(environments)
        metrics = json.loads((folder / "metrics_epoch_1.json").read_text())
        found[len(environments)] = [
            metrics[name] for name in ("training_loss", "validation_perplexity")
        ]
    # Rounds of one batch weigh the same, whatever their words.
    assert found[1] == pytest.approx(found[2], rel=1e-2)
    # Too few batches a step.
    assert ended(start(ALONE, config, begun, recover=True)) == [1]
    said = begun.with_suffix(".said").read_text()
    assert "divides it, 1, 2, and set trainer.num_gradient_accumulation_steps to 2 divided" in said
