"""
Processes that torchrun or SLURM has started, as their environment describes them.
"""

import os
import re
from dataclasses import dataclass
from typing import List, Mapping, Optional

from transformer_elmo.errors import ConfigurationError

# What torchrun sets, and whatever else starts a process for each rank in its way.
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")

# Ports below those that systems give to connections by themselves.
_FIRST_PORT, _NUM_PORTS = 12_000, 18_000


@dataclass(frozen=True)
class Launch:
    """
    Which process of a distributed run this one is.

    # Attributes

    launcher : `str`
        What started it: "torchrun" or "srun".
    rank, world_size : `int`
        Its number, and how many there are.
    local_rank, local_size : `int`
        The same among those of its machine.
    node_rank, num_nodes : `int`
        The machine's number, and how many there are.
    address : `str`
    port : `int`
        Where the processes meet.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    node_rank: int
    num_nodes: int
    address: str
    port: int

    @property
    def is_first_of_node(self) -> bool:
        """Whether it is the one that writes, on its machine."""
        return self.local_rank == 0


def find_launch(environment: Optional[Mapping[str, str]] = None) -> Optional[Launch]:
    """
    # Parameters

    environment : `Mapping[str, str]`, optional
        By default, this process's.

    # Returns

    `Launch`, optional
        `None` where nothing started several processes for one run: without a launcher, with one
        process, and in the script or shell of a SLURM allocation outside `srun`.

    # Raises

    `ConfigurationError`
        If what the launcher says is incomplete or contradicts itself.
    """
    environment = os.environ if environment is None else environment
    if all(environment.get(name) for name in _OF_TORCHRUN):
        launch = _of_torchrun(environment)
    elif environment.get("SLURM_PTY_PORT") or environment.get("SLURM_PTY_WIN_COL"):
        # A shell that `srun --pty` gave, whose other tasks do nothing.
        return None
    # The allocation's own variables say how many tasks there may be; these, what srun has started.
    elif environment.get("SLURM_STEP_ID") and environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        launch = _of_srun(environment)
    else:
        return None
    return launch if launch.world_size > 1 else None


def _of_torchrun(environment: Mapping[str, str]) -> Launch:
    launcher = "torchrun"
    world_size = _number(environment, launcher, "WORLD_SIZE")
    if world_size == 1:
        return Launch(launcher, 0, 1, 0, 1, 0, 1, "127.0.0.1", 0)
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        if not environment.get(name):
            raise ConfigurationError(
                f"{', '.join(_OF_TORCHRUN)} are set in the environment, as torchrun sets them, and "
                f"{name} is not. Set it, or unset them for a run that no launcher has started."
            )
    return _checked(
        launcher,
        _number(environment, launcher, "RANK"),
        world_size,
        _number(environment, launcher, "LOCAL_RANK"),
        _number(environment, launcher, "LOCAL_WORLD_SIZE"),
        environment["MASTER_ADDR"],
        _number(environment, launcher, "MASTER_PORT"),
    )


def _of_srun(environment: Mapping[str, str]) -> Launch:
    launcher = "srun"
    sizes = local_sizes(environment.get("SLURM_STEP_TASKS_PER_NODE") or "")
    if len(set(sizes)) != 1:
        raise ConfigurationError(
            "Each machine must have the same number of processes, and srun started "
            f"{' + '.join(map(str, sizes)) or 'an unknown number'} (SLURM_STEP_TASKS_PER_NODE). "
            "Use its --ntasks-per-node."
        )
    nodes = next(
        (
            environment[name]
            for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
            if environment.get(name)
        ),
        "",
    )
    address = environment.get("MASTER_ADDR") or first_host(nodes)
    if not address:
        raise ConfigurationError(
            "srun has started several processes, and neither SLURM_STEP_NODELIST nor MASTER_ADDR "
            "says on which machine the first one is. Set MASTER_ADDR."
        )
    if environment.get("MASTER_PORT"):
        port = _number(environment, launcher, "MASTER_PORT")
    else:
        # The same on all machines, and another one for each step of a job.
        job = _number(environment, launcher, "SLURM_JOB_ID")
        step = _number(environment, launcher, "SLURM_STEP_ID")
        port = _FIRST_PORT + (16 * job + step) % _NUM_PORTS
    return _checked(
        launcher,
        _number(environment, launcher, "SLURM_PROCID"),
        _number(environment, launcher, "SLURM_STEP_NUM_TASKS"),
        _number(environment, launcher, "SLURM_LOCALID"),
        sizes[0],
        address,
        port,
    )


def _checked(
    launcher: str,
    rank: int,
    world_size: int,
    local_rank: int,
    local_size: int,
    address: str,
    port: int,
) -> Launch:
    num_nodes, rest = divmod(world_size, max(1, local_size))
    node_rank = rank // max(1, local_size)
    if rest or rank >= world_size or rank != node_rank * local_size + local_rank:
        raise ConfigurationError(
            f"{launcher} says that this is process {rank} of {world_size}, and {local_rank} of "
            f"{local_size} on its machine. Each machine must have the same number of processes, "
            "numbered without gaps (with srun: --ntasks-per-node and --distribution=block)."
        )
    return Launch(
        launcher, rank, world_size, local_rank, local_size, node_rank, num_nodes, address, port
    )


def _number(environment: Mapping[str, str], launcher: str, name: str) -> int:
    value = environment.get(name, "")
    # SLURM has a list where a job has several parts; a run has one.
    if not re.fullmatch(r"[0-9]+", value):
        raise ConfigurationError(
            f"{name} must be a number where {launcher} has started the run, and is {value!r}."
        )
    return int(value)


def local_sizes(text: str) -> List[int]:
    """
    # Parameters

    text : `str`
        How many tasks each machine has, as SLURM writes it: `"4(x2),1"`.

    # Returns

    `List[int]`
        `[4, 4, 1]`.
    """
    sizes: List[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        sizes += [int(count)] * int(times or 1)
    return sizes


def first_host(text: str) -> str:
    """
    # Parameters

    text : `str`
        A list of machines as SLURM writes it: `"gpu[007-010,12],login1"`.

    # Returns

    `str`
        `"gpu007"`. Empty for an empty list.
    """
    # A comma within brackets is between numbers, another one between names.
    name = re.match(r"(?:\[[^\]]*\]|[^,\[])*", text)
    assert name is not None
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", name[0])
