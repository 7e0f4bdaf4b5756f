import pytest

from tests.plugin.launched import of_torchrun
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.training.launch import Launch, distributed_section, find_launch

# What sbatch gives its script, and salloc its shell: how many tasks the job may have.
ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
# What srun gives each of 8 tasks in addition.
STEP = {**ALLOCATION, "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "8"}
# torchrun, on the second of two machines.
SECOND = {**of_torchrun(1, 2, 2950), "RANK": "3", "WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        ALLOCATION,
        # A shell that srun has started, in an allocation of more.
        {**ALLOCATION, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        # A shell of `srun --ntasks 4 --pty bash`.
        {**STEP, "SLURM_PTY_PORT": "1"},
        {"WORLD_SIZE": "4"},
        of_torchrun(0, 1, 2950),
        # A run of its own in each task.
        {**STEP, **of_torchrun(0, 1, 2950)},
    ],
)
def test_an_ordinary_run(environment):
    assert find_launch({}, environment) is None


def test_a_task_a_machine_that_starts_its_processes_as_allennlp_does():
    section = {"cuda_devices": [0, 1], "num_nodes": 8}
    assert find_launch({"distributed": section}, STEP) is None


def test_one_of_several():
    launch = find_launch({}, {**STEP, **SECOND})
    assert launch == Launch(3, 4, 1, 2, "127.0.0.1", 2950)
    assert (launch.node_rank, launch.num_nodes) == (1, 2)


@pytest.mark.parametrize(
    "environment, said",
    [
        ({**SECOND, "MASTER_ADDR": ""}, "MASTER_ADDR is ''"),
        ({**SECOND, "RANK": "x"}, "RANK is 'x'"),
        ({**SECOND, "RANK": "4"}, "process 4 of 4"),
        ({**SECOND, "RANK": "2"}, "process 2 of 4, and 1 of 2"),
        ({**SECOND, "LOCAL_WORLD_SIZE": "3"}, "process 3 of 4, and 1 of 3"),
        (STEP, "srun has started 8 processes, .* --ntasks-per-node=1 torchrun"),
    ],
)
def test_it_cannot_be(environment, said):
    with pytest.raises(ConfigurationError, match=said):
        find_launch({}, environment)


GIVEN = {"cuda_devices": [1, 0], "num_nodes": 2}


@pytest.mark.parametrize(
    "gpus, config, expected",
    [
        (4, {"trainer": {"cuda_device": -1}}, {"cuda_devices": [-1, -1], "num_nodes": 2}),
        (0, {}, {"cuda_devices": [-1, -1], "num_nodes": 2}),
        (2, {}, {"cuda_devices": [0, 1], "num_nodes": 2}),
        (4, {}, {"cuda_devices": [0, 1], "num_nodes": 2}),
        (4, {"distributed": {**GIVEN, "primary_address": "elsewhere", "x": 1}}, {**GIVEN, "x": 1}),
        (1, {}, None),
        (4, {"distributed": {"cuda_devices": [0] * 2, "num_nodes": 4}}, None),
    ],
)
def test_the_section_is_what_was_started(monkeypatch, gpus, config, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    launch = Launch(0, 4, 0, 2, "127.0.0.1", 1)
    if expected is None:
        with pytest.raises(ConfigurationError, match="2 on each of 2 machines, and the config"):
            distributed_section(config, launch)
    else:
        assert distributed_section(config, launch) == expected
