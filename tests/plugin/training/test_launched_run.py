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

pytestmark = pytest.mark.slow

ALONE: List[Dict[str, str]] = [{}]
# When each of two processes is told to stop.
TOLD = dict.fromkeys(range(2), (4, signal.SIGTERM))


def torchrun(number):
    port = free_port()
    return [of_torchrun(rank, number, port) for rank in range(number)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("launched"))


@pytest.fixture(scope="module")
def own(config):
    """What AllenNLP's own way gives."""
    folder = config.parent / "own"
    section = json.dumps({"distributed": {"cuda_devices": [-1, -1]}})
    assert ended(start(ALONE, config, folder, overrides=section)) == [0]
    return folder


def test_torchrun(config, own, tmp_path):
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", "-m", "allennlp", "train", config, "-s", tmp_path / "out"),
        ],
        check=True,
        capture_output=True,
    )
    weights_are_the_same(torch.load(own / "best.th"), torch.load(tmp_path / "out" / "best.th"))
    # Whichever way it goes on.
    assert (own / "config.json").read_text() == (tmp_path / "out/config.json").read_text()
    assert (tmp_path / "out/model.tar.gz").exists()


def test_two_machines_that_share_a_folder(config, own, tmp_path):
    folder = tmp_path / "out"

    def machines():
        return [{**p, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} for p in torchrun(2)]

    assert ended(start(machines(), config, folder, at_step=TOLD)) == [143, 143]
    assert "--recover, started by torchrun as before" in folder.with_suffix(".said").read_text()
    assert ended(start(machines(), config, folder, recover=True)) == [0, 0]
    for written in (folder, folder / "node1"):
        weights_are_the_same(torch.load(own / "best.th"), torch.load(written / "best.th"))


def test_one_is_killed(config, tmp_path):
    folder = tmp_path / "out"
    killed = {1: (4, signal.SIGKILL)}
    assert ended(start(torchrun(2), config, folder, at_step=killed)) == [1, -9]
    said = folder.with_suffix(".said").read_text()
    assert "ProcessLostError: Another process of the run is gone" in said
    assert "started by torchrun as before" in said


def test_another_number_of_processes(tmp_path):
    model = model_config(num_samples=None, sparse_embeddings=False)
    model["contextualizer"].update(dropout=0.0, input_dropout=0.0)
    config = write_config(tmp_path, model=model)
    begun = tmp_path / "begun"
    assert ended(start(torchrun(2), config, begun, at_step=TOLD)) == [143, 143]
    accumulating = json.dumps({"trainer.num_gradient_accumulation_steps": 2})
    found = []
    for environments, overrides in ((ALONE, accumulating), (torchrun(2), "")):
        folder = shutil.copytree(begun, tmp_path / f"on {len(environments)}")
        processes = start(environments, config, folder, recover=True, overrides=overrides)
        assert ended(processes) == [0] * len(environments)
        metrics = json.loads((folder / "metrics_epoch_1.json").read_text())
        found.append([metrics[name] for name in ("training_loss", "validation_perplexity")])
    # Rounds of one batch weigh the same, whatever their words.
    assert found[0] == pytest.approx(found[1], rel=1e-2)
