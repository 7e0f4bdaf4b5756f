import pytest

from tests.plugin.launched import of_srun, of_torchrun
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.runs.launchers import Launch, find_launch, first_host, local_sizes

# What sbatch gives its script, and salloc its shell: how many tasks the job may have.
ALLOCATION = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "8",
    "SLURM_NPROCS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NODELIST": "gpu[07-10]",
    "SLURM_TASKS_PER_NODE": "2(x4)",
}
# What srun gives each of 8 tasks in addition.
STEP = {
    **ALLOCATION,
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
    "SLURM_STEP_NODELIST": "gpu[07-10]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
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
        {**ALLOCATION, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PTY_PORT": "1"},
        # salloc's own step.
        {**ALLOCATION, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_ID": "0"},
        {"WORLD_SIZE": "4"},
        of_torchrun(0, 1, 2950),
        # A run of its own in each task.
        {**STEP, **of_torchrun(0, 1, 2950)},
    ],
)
def test_an_ordinary_run(environment):
    assert find_launch(environment) is None


@pytest.mark.parametrize(
    "environment, expected",
    [
        (SECOND, Launch("torchrun", 3, 4, 1, 2, 1, 2, "127.0.0.1", 2950)),
        (STEP, Launch("srun", 5, 8, 1, 2, 2, 4, "gpu07", 12_000 + 16 * 7 + 3)),
        (
            {**STEP, "MASTER_ADDR": "login", "MASTER_PORT": "1"},
            Launch("srun", 5, 8, 1, 2, 2, 4, "login", 1),
        ),
        # srun has started torchrun on each machine.
        ({**STEP, **SECOND}, Launch("torchrun", 3, 4, 1, 2, 1, 2, "127.0.0.1", 2950)),
        (of_srun(1, 2, 9), Launch("srun", 1, 2, 0, 1, 1, 2, "localhost", 9)),
    ],
)
def test_one_of_several(environment, expected):
    assert find_launch(environment) == expected


@pytest.mark.parametrize(
    "environment, said",
    [
        ({**SECOND, "MASTER_ADDR": ""}, "MASTER_ADDR is not"),
        ({**SECOND, "LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE is not"),
        ({**SECOND, "RANK": "x"}, "RANK must be a number .* is 'x'"),
        ({**SECOND, "RANK": "4"}, "process 4 of 4"),
        ({**STEP, "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, "--distribution=block"),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, r"2 \+ 2 \+ 2 \+ 1"),
        ({**STEP, "SLURM_STEP_NODELIST": "", "SLURM_JOB_NODELIST": ""}, "Set MASTER_ADDR"),
    ],
)
def test_it_contradicts_itself(environment, said):
    with pytest.raises(ConfigurationError, match=said):
        find_launch(environment)


@pytest.mark.parametrize(
    "text, first",
    [
        ("gpu[007-010,12],login1", "gpu007"),
        ("a,b[1-2]", "a"),
        ("rack[0-1]n[01-03]-ib,x", "rack0n01-ib"),
        ("n[5]", "n5"),
        ("clip-g1-[01-03]", "clip-g1-01"),
        ("", ""),
    ],
)
def test_the_first_machine(text, first):
    assert first_host(text) == first


def test_tasks_of_machines():
    assert local_sizes("4(x2),1") == [4, 4, 1]
    assert local_sizes("2") == [2]
