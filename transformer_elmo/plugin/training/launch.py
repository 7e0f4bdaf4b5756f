"""
A training run whose processes torchrun has started: each becomes the worker of its rank. The first
one of each machine prepares the folder and the vocabulary and tells the others.
"""

import json
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Callable, Dict, List, Mapping, Optional

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.sparse_gradients import several_processes

SECONDS_TO_MEET = 600.0
_SECONDS_BETWEEN_LOOKS = 0.1

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

WITH_TORCHRUN = (
    "srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES --nproc-per-node=N "
    "--rdzv-backend=c10d --rdzv-endpoint=FIRST_MACHINE:29500 -m allennlp train ..."
)


@dataclass(frozen=True)
class Launch:
    """Which process of a distributed run this one is, of all and of those of its machine."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str
    port: int

    @property
    def node_rank(self) -> int:
        return self.rank // self.local_size

    @property
    def num_nodes(self) -> int:
        return self.world_size // self.local_size


def find_launch(
    config: Mapping[str, Any], environment: Optional[Mapping[str, str]] = None
) -> Optional[Launch]:
    """
    `None` where nothing started several processes for one run, or whoever did has made them a
    process group. `environment`: by default, this process's.

    Raises `ConfigurationError` if what the launcher says is incomplete or contradicts itself.
    """
    environment = os.environ if environment is None else environment
    if several_processes():
        return None
    if not all(environment.get(name) for name in _NAMES[:3]):
        _check_srun(config, environment)
        return None
    if environment["WORLD_SIZE"] == "1":
        return None
    given = {name: environment.get(name, "") for name in _NAMES}
    for name, value in given.items():
        if not (value if name == "MASTER_ADDR" else value.isdecimal()):
            raise ConfigurationError(
                f"{', '.join(_NAMES[:3])} are set in the environment, as torchrun sets them, and "
                f"{name} is {value!r}. Set it, or unset them for a run that no launcher has "
                "started."
            )
    values: List[Any] = [v if name == "MASTER_ADDR" else int(v) for name, v in given.items()]
    launch = Launch(*values)
    if (
        launch.local_size < 1
        or launch.world_size % launch.local_size
        or launch.rank >= launch.world_size
        or launch.rank % launch.local_size != launch.local_rank
    ):
        raise ConfigurationError(
            f"The environment says that this is process {launch.rank} of {launch.world_size}, and "
            f"{launch.local_rank} of {launch.local_size} on its machine. Each machine must have "
            "the same number of processes, numbered without gaps."
        )
    return launch


def _check_srun(config: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    # `srun --pty` gives a shell, whose other tasks do nothing.
    shell = environment.get("SLURM_PTY_PORT") or environment.get("SLURM_PTY_WIN_COL")
    section = config.get("distributed")
    # AllenNLP's way: one task a machine, which starts the machine's processes itself.
    own_way = isinstance(section, dict) and section.get("num_nodes", 1) > 1
    if environment.get("SLURM_STEP_ID") and tasks != "1" and not shell and not own_way:
        raise ConfigurationError(
            f"srun has started {tasks} processes, and each would train alone. Have it start "
            f"torchrun on each machine, and that the processes: {WITH_TORCHRUN}"
        )


def distributed_section(config: Mapping[str, Any], launch: Launch) -> Dict[str, Any]:
    """
    The section `distributed` that describes what the launcher has started.

    Raises `ConfigurationError` if the config asks for something else.
    """
    section = dict(config.get("distributed") or {})
    # The launcher says where they meet.
    for name in ("primary_address", "primary_port", "master_address", "master_port"):
        section.pop(name, None)
    trainer = config.get("trainer")
    on_cpu = isinstance(trainer, dict) and trainer.get("cuda_device") in (-1, "-1", "cpu")
    count = 0 if on_cpu else torch.cuda.device_count()
    # Too few are refused below.
    devices = section.get("cuda_devices") or [*range(min(count, launch.local_size))]
    devices = devices or [-1] * launch.local_size
    num_nodes = section.get("num_nodes", launch.num_nodes)
    started = [launch.local_size, launch.num_nodes]
    if not isinstance(devices, list) or [len(devices), num_nodes] != started:
        raise ConfigurationError(
            f"torchrun has started {launch.world_size} processes, {launch.local_size} on each of "
            f"{launch.num_nodes} machines, and the config and the machine have "
            f"distributed.cuda_devices {devices} and num_nodes {num_nodes}. Leave out the section "
            "distributed (torchrun says it all), start as many as there are GPUs, or say which "
            "process has which with distributed.cuda_devices (-1 is the CPU)."
        )
    section["cuda_devices"] = devices
    if launch.num_nodes > 1:
        section["num_nodes"] = launch.num_nodes
    return section


class Meeting:
    """Where the processes of a run tell each other what they need before they train."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        try:
            # As torch meets later, when it makes the process group.
            wait = timedelta(seconds=SECONDS_TO_MEET)
            store, _, _ = next(rendezvous("env://", timeout=wait))
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"Process {launch.rank} can't meet the others at {launch.address}:{launch.port} "
                f"({error}). MASTER_ADDR must be the machine of process 0, MASTER_PORT free there."
            ) from None
        self._store = dist.PrefixStore("transformer_elmo", store)

    def prepared(self, prepare: Callable[[], Dict[str, Any]]) -> Dict[str, Any]:
        """What `prepare` gives, which the first process of each machine calls."""
        key = f"prepared/{self._launch.node_rank}"
        if self._launch.local_rank == 0:
            try:
                made = prepare()
            except BaseException:
                self._store.set("failed", "1")
                raise
            # As JSON, so that nothing is run that comes over the network.
            self._store.set(key, json.dumps(made))
        keys = [f"prepared/{node}" for node in range(self._launch.num_nodes)]
        # Not within torch, which gives up after some minutes.
        while not self._store.check(keys):
            if self._store.check(["failed"]):
                # Whoever failed says why.
                raise SystemExit(1)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return json.loads(self._store.get(key))
