import pytest

from tests.plugin.launched import of_torchrun
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.training.launch import Launch, distributed_section, find_launch

# What sbatch gives its script, and salloc its shell: how many tasks the job may have.
ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
# What srun gives each of 8 tasks in addition.
STEP = {**ALLOCATION, "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "8"}
# torchrun, on the second of two machines.
SECOND = {
    **of_torchrun(1, 2, 2950),
    "RANK": "3",
    "WORLD_SIZE": "4",
}


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


@pytest.mark.parametrize("environment", [SECOND, {**STEP, **SECOND}])
def test_one_of_several(environment):
    launch = find_launch({}, environment)
    assert launch == Launch(3, 4, 1, 2, "127.0.0.1", 2950)
    assert (launch.node_rank, launch.num_nodes) == (1, 2)


@pytest.mark.parametrize(
    "environment, said",
    [
        ({**SECOND, "MASTER_ADDR": ""}, "MASTER_ADDR is ''"),
        ({**SECOND, "LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE is ''"),
        ({**SECOND, "RANK": "x"}, "RANK is 'x'"),
        ({**SECOND, "RANK": "4"}, "process 4 of 4"),
        (STEP, "srun has started 8 processes, .* --ntasks-per-node=1 torchrun"),
    ],
)
def test_it_cannot_be(environment, said):
    with pytest.raises(ConfigurationError, match=said):
        find_launch({}, environment)


def test_srun_as_allennlp_has_it():
    """A task a machine, which starts the machine's processes itself."""
    section = {"cuda_devices": [0, 1], "num_nodes": 8}
    assert find_launch({"distributed": section}, STEP) is None


LAUNCH = Launch(0, 4, 0, 2, "127.0.0.1", 1)
ON_CPU = {"cuda_device": -1}


class TestSection:
    def test_the_launcher_says_it_all(self):
        section = distributed_section({"trainer": ON_CPU}, LAUNCH)
        assert section == {"cuda_devices": [-1, -1], "num_nodes": 2}

    @pytest.mark.parametrize("count", [2, 4])
    def test_gpus(self, monkeypatch, count):
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        assert distributed_section({}, LAUNCH)["cuda_devices"] == [0, 1]

    def test_too_few_gpus(self, monkeypatch):
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
        with pytest.raises(ConfigurationError, match=r"started 2 processes .* there are 1 GPUs"):
            distributed_section({}, LAUNCH)

    def test_the_configs_own(self):
        given = {"cuda_devices": [1, 0], "num_nodes": 2, "primary_address": "elsewhere"}
        section = distributed_section({"distributed": {**given, "ddp_accelerator": "x"}}, LAUNCH)
        assert section == {"cuda_devices": [1, 0], "num_nodes": 2, "ddp_accelerator": "x"}

    @pytest.mark.parametrize(
        "given", [{"cuda_devices": [0]}, {"cuda_devices": [0] * 2, "num_nodes": 4}]
    )
    def test_it_says_something_else(self, given):
        with pytest.raises(ConfigurationError, match="2 on each of 2 machines, and the config"):
            distributed_section({"distributed": given, "trainer": ON_CPU}, LAUNCH)
