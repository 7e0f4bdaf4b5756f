"""
A training run whose processes torchrun or SLURM has started: each becomes the worker of its rank.
The first one of each machine prepares the folder and the vocabulary, as the process does that
starts AllenNLP's own workers, and tells the others what to work on.
"""

import json
import logging
import os
import socket
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import torch
import torch.distributed as dist
from allennlp.common import Params

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.sparse_gradients import several_processes
from transformer_elmo.plugin.runs.launchers import Launch, find_launch
from transformer_elmo.plugin.runs.processes import ProcessLostError
from transformer_elmo.plugin.runs.stopping import RunStopped, command_to_go_on

logger = logging.getLogger(__name__)

# How long all of them may take to come.
SECONDS_TO_MEET = 600.0
# Each gives a sign of life so often, and is lost when none has come for so long.
SECONDS_BETWEEN_SIGNS = 2.0
SECONDS_WITHOUT_SIGN = 40.0
# After one has failed, how long the others get to end by themselves.
SECONDS_TO_END = 5.0
# How long the first one waits for the others at the end, for it may be where they meet.
SECONDS_TO_PART = 60.0
_SECONDS_BETWEEN_LOOKS = 0.1

# In the arguments of AllenNLP's worker, after its rank.
_ADDRESS, _PORT = 5, 6

TrainModel = Callable[..., Any]
Worker = Callable[..., Any]

current: Optional["LaunchedRun"] = None
"""The run that this process is training in, if a launcher has started it."""


def launch_of_run(params: Params) -> Optional[Launch]:
    """
    # Parameters

    params : `Params`
        The config.

    # Returns

    `Launch`, optional
        `None` if this process is to train as if no launcher had started it.
    """
    if several_processes():
        # Whoever calls this has arranged it.
        return None
    launch = find_launch()
    section = params.params.get("distributed")
    if (
        launch is not None
        and launch.launcher == "srun"
        and launch.local_size == 1
        and isinstance(section, dict)
        and isinstance(section.get("cuda_devices"), list)
        and len(section["cuda_devices"]) > 1
        and section.get("num_nodes") == launch.num_nodes
    ):
        # AllenNLP's way: one task a machine, which starts the machine's processes itself.
        return None
    return launch


def distributed_section(
    given: Optional[Dict[str, Any]], launch: Launch, on_cpu: bool
) -> Dict[str, Any]:
    """
    The section `distributed` that describes what the launcher has started.

    # Parameters

    given : `Dict[str, Any]`, optional
        The config's own.
    launch : `Launch`
    on_cpu : `bool`
        Whether no GPU is to be used where the section doesn't say.

    # Raises

    `ConfigurationError`
        If the config asks for something else.
    """
    section = dict(given or {})
    # The launcher says where they meet.
    for name in ("primary_address", "primary_port", "master_address", "master_port"):
        section.pop(name, None)
    devices = section.get("cuda_devices")
    if devices is None:
        devices = _devices(launch, on_cpu)
    num_nodes = section.get("num_nodes", launch.num_nodes if "cuda_devices" not in section else 1)
    if not isinstance(devices, list) or (len(devices), num_nodes) != (
        launch.local_size,
        launch.num_nodes,
    ):
        raise ConfigurationError(
            f"{launch.launcher} has started {launch.world_size} processes, {launch.local_size} on "
            f"each of {launch.num_nodes} machines, and the config says distributed.cuda_devices "
            f"{devices} and num_nodes {num_nodes}. Leave out the section distributed (the launcher "
            "says it all), or start as many as it says."
        )
    section["cuda_devices"] = devices
    if launch.num_nodes > 1:
        section["num_nodes"] = launch.num_nodes
    return section


def _devices(launch: Launch, on_cpu: bool) -> List[int]:
    count = torch.cuda.device_count()
    if on_cpu or count == 0:
        return [-1] * launch.local_size
    if count == 1 and launch.launcher == "srun":
        # SLURM may show each task its own GPU and no other.
        return [0] * launch.local_size
    if count < launch.local_size:
        raise ConfigurationError(
            f"{launch.launcher} has started {launch.local_size} processes on this machine, and "
            f"there are {count} GPUs. Start as many as there are, or say which process has which "
            "with distributed.cuda_devices (-1 is the CPU)."
        )
    return list(range(launch.local_size))


def train(
    launch: Launch,
    train_model: TrainModel,
    worker: Worker,
    params: Params,
    serialization_dir: str,
    node_rank: int,
    describe: Callable[[BaseException], Optional[str]],
) -> Any:
    """
    Trains as one process of several.

    # Parameters

    launch : `Launch`
    train_model : `Callable[[Params, int], Any]`
        Prepares a run of a config on the machine of a number, and calls :meth:`LaunchedRun.work` of
        `current` in place of starting workers.
    worker : `Callable`
        What a process does, given its number on its machine and the arguments that come from there.
    params : `Params`
    serialization_dir : `str`
    node_rank : `int`
        What the command line says, 0 by default.
    describe : `Callable[[BaseException], Optional[str]]`
        What to show of an error, if that isn't all of it.

    # Returns

    `Any`
        What `train_model` does; `None` where another process prepares.
    """
    global current
    run = LaunchedRun(launch, worker, describe)
    with run.together():
        run.check_folder(serialization_dir)
        if node_rank not in (0, launch.node_rank):
            raise ConfigurationError(
                f"--node-rank is {node_rank}, and {launch.launcher} says {launch.node_rank}. Leave "
                "it out."
            )
        trainer = params.params.get("trainer")
        device = trainer.get("cuda_device") if isinstance(trainer, dict) else None
        params.params["distributed"] = distributed_section(
            params.params.get("distributed"), launch, on_cpu=device in (-1, "-1", "cpu")
        )
        current = run
        try:
            if launch.is_first_of_node:
                return train_model(params, launch.node_rank)
            return run.work_for_first()
        finally:
            current = None


class LaunchedRun:
    """
    What the processes of a run tell each other while they don't train.

    # Parameters

    launch : `Launch`
    worker : `Callable`
    describe : `Callable[[BaseException], Optional[str]]`
    """

    def __init__(
        self,
        launch: Launch,
        worker: Worker,
        describe: Callable[[BaseException], Optional[str]],
    ) -> None:
        self.launch = launch
        self._worker = worker
        self._describe = describe
        self._store = _meet(launch)
        self._ended = threading.Event()
        self._logs_to_file_only = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """
        Within the block, this process ends when another one is lost, and the others end when this
        one is. The first of those that fail is the one that shows its error.
        """
        watch = threading.Thread(target=self._watch, daemon=True)
        self._set("name", f"on {socket.gethostname()}, pid {os.getpid()}")
        self._set("sign", "0")
        watch.start()
        try:
            yield
            self._part()
        except RunStopped as stopped:
            with suppress(Exception):
                self._store.set("stopped", str(stopped.number))
            raise
        except Exception as error:
            self._fail(error)
            raise
        finally:
            self._ended.set()
            with suppress(Exception):
                self._set("done", "1")

    def check_folder(self, folder: str) -> None:
        """
        # Raises

        `ConfigurationError`
            If the processes were given different ones.
        """
        self._set("folder", folder)
        keys = [f"folder/{rank}" for rank in range(self.launch.world_size)]
        end = time.monotonic() + SECONDS_TO_MEET
        alone = "SLURM_STEP_ID" if self.launch.launcher == "srun" else "WORLD_SIZE"
        logger.info(
            "Waiting for the %d processes of %s. For a run of this process alone, unset %s.",
            *(len(keys), self.launch.launcher, alone),
        )
        while not self._store.check(keys):
            missing = [str(rank) for rank, key in enumerate(keys) if not self._store.check([key])]
            if time.monotonic() > end:
                raise ConfigurationError(
                    f"{len(missing)} of {len(keys)} processes that {self.launch.launcher} should "
                    f"have started did not come within {SECONDS_TO_MEET:.0f} seconds: "
                    f"{', '.join(missing[:20])}. For a run of this process alone, unset {alone}."
                )
            self._look()
        folders = list(dict.fromkeys(value.decode() for value in self._store.multi_get(keys)))
        if len(folders) > 1:
            raise ConfigurationError(
                f"The processes that {self.launch.launcher} has started are those of one run, and "
                f"have different folders (-s): {folders[0]} and {folders[1]}. For a run of each, "
                f"unset {alone}."
            )

    def work(self, function: Worker, arguments: Sequence[Any]) -> None:
        """
        In place of `torch.multiprocessing.spawn`: the other processes are there already.

        # Parameters

        function : `Callable`
            AllenNLP's worker.
        arguments : `Sequence[Any]`
            Its arguments after the rank.
        """
        told = list(arguments)
        told[_ADDRESS], told[_PORT] = self.launch.address, self.launch.port
        # As JSON, so that nothing is run that comes over the network.
        self._store.set(
            f"job/{self.launch.node_rank}",
            json.dumps([_Tagged.of(value) for value in told]),
        )
        self._work(function, told)

    def work_for_first(self) -> None:
        """Waits for the machine's first process to prepare the run, and works on it."""
        key = f"job/{self.launch.node_rank}"
        self._wait_for([key])
        self._logs_to_file_only = True
        told = [_Tagged.back(value) for value in json.loads(self._store.get(key))]
        self._work(self._worker, told)

    def _work(self, function: Worker, told: List[Any]) -> None:
        # No machine waits within torch, which gives up after some minutes.
        self._wait_for([f"job/{node}" for node in range(self.launch.num_nodes)])
        os.environ["ALLENNLP_PROCS_PER_NODE"] = str(self.launch.local_size)
        try:
            function(self.launch.local_rank, *told)
        finally:
            if several_processes():
                with suppress(Exception):
                    dist.destroy_process_group()

    def _part(self) -> None:
        # Launchers may end those that are left when the first one of all ends.
        self._set("done", "1")
        if self.launch.rank:
            self._wait_for(["done/0"])
            self._set("left", "1")
            return
        end = time.monotonic() + SECONDS_TO_PART
        keys = [f"left/{rank}" for rank in range(1, self.launch.world_size)]
        while not self._store.check(keys) and time.monotonic() < end:
            self._look()

    def _fail(self, error: Exception) -> None:
        """
        Says so to the others.

        # Raises

        `SystemExit`
            If another process has failed before, which shows its own error.
        `ProcessLostError`
            If the error tells of nothing but that another process is gone.
        """
        if isinstance(error, _FailedElsewhereError):
            time.sleep(SECONDS_TO_END)
            raise SystemExit(1) from None
        caused: Exception = error
        if _is_of_connection(error):
            found = self._find_lost()
            caused = ProcessLostError(
                f"{found or 'Another process'} is gone, so the run has ended: the others can't go "
                f"on without it. Go on with: {command_to_go_on()}"
            )
        message = self._describe(caused) or "".join(traceback.format_exception(caused)).rstrip()
        who = self._name(self.launch.rank)
        try:
            first = self._store.compare_set("failed", "", f"{who} has failed")
            is_mine = first.decode() == f"{who} has failed"
        except Exception:
            is_mine = self.launch.is_first_of_node
        if not is_mine:
            if self._logs_to_file_only:
                logger.error("%s", message)
            # If the launcher ends all when one has ended, the first one to fail ends first.
            time.sleep(SECONDS_TO_END)
            raise SystemExit(1) from None
        if self._logs_to_file_only:
            _say(f"{who}: {message}")
        if caused is not error:
            raise caused from None

    def _find_lost(self) -> Optional[str]:
        """The process that gives no sign of life any more."""
        others = [rank for rank in range(self.launch.world_size) if rank != self.launch.rank]
        keys = [f"sign/{rank}" for rank in others]
        try:
            before = self._store.multi_get(keys)
            end = time.monotonic() + 2.5 * SECONDS_BETWEEN_SIGNS
            while time.monotonic() < end:
                if self._store.check(["failed"]):
                    return None
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            after = self._store.multi_get(keys)
        except Exception:
            return self._name(0) if self.launch.rank else None
        for rank, was, now in zip(others, before, after):
            if was == now and not self._store.check([f"done/{rank}"]):
                return self._name(rank)
        return None

    def _name(self, rank: int) -> str:
        name = ""
        with suppress(Exception):
            if self._store.check([f"name/{rank}"]):
                name = f" ({self._store.get(f'name/{rank}').decode()})"
        return f"Process {rank} of {self.launch.world_size}{name}"

    def _wait_for(self, keys: List[str]) -> None:
        while not self._store.check(keys):
            self._look()

    def _look(self) -> None:
        if self._store.check(["failed"]):
            raise _FailedElsewhereError
        if self._store.check(["stopped"]):
            raise RunStopped(int(self._store.get("stopped")))
        time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _set(self, key: str, value: str) -> None:
        self._store.set(f"{key}/{self.launch.rank}", value)

    def _watch(self) -> None:
        """In a thread of its own: gives signs of life, and looks for those of others."""
        # Each looks at the first one, and the first one at all.
        watched = range(1, self.launch.world_size) if self.launch.rank == 0 else range(1)
        last: Dict[int, bytes] = {}
        silent = dict.fromkeys(watched, 0.0)
        count = 0
        while not self._ended.wait(SECONDS_BETWEEN_SIGNS):
            count += 1
            problem, code = None, 1
            try:
                self._set("sign", str(count))
                if self._store.check(["stopped"]):
                    problem = "The run is stopped"
                    code = 128 + int(self._store.get("stopped"))
                if self._store.check(["failed"]):
                    problem = self._store.get("failed").decode()
                for rank in watched:
                    if not self._store.check([f"sign/{rank}"]):
                        continue
                    sign = self._store.get(f"sign/{rank}")
                    # Counted in looks and not by a clock, for this process may have been stopped.
                    silent[rank] += SECONDS_BETWEEN_SIGNS
                    if last.get(rank) != sign or self._store.check([f"done/{rank}"]):
                        silent[rank] = 0.0
                    last[rank] = sign
                    if silent[rank] > SECONDS_WITHOUT_SIGN:
                        problem = f"{self._name(rank)} is gone or stopped"
                        self._store.compare_set("failed", "", problem)
            except Exception:
                if self._ended.is_set():
                    return
                problem = "The process that the others meet at is gone"
            if problem is not None:
                # Time for those that notice by themselves.
                if self._ended.wait(2 * SECONDS_TO_END):
                    return
                _say(
                    f"{problem}, so this process ({self.launch.rank} of {self.launch.world_size}) "
                    f"ends, too. Go on with: {command_to_go_on()}"
                )
                os._exit(code)


class _FailedElsewhereError(Exception):
    pass


class _Tagged:
    """Arguments as JSON: objects of `Params` beside plain values."""

    @staticmethod
    def of(value: Any) -> Any:
        if isinstance(value, Params):
            return {"params": value.as_dict(quiet=True), "history": value.history}
        return {"value": os.fspath(value) if isinstance(value, os.PathLike) else value}

    @staticmethod
    def back(value: Any) -> Any:
        return Params(value["params"], value["history"]) if "params" in value else value["value"]


def _meet(launch: Launch) -> Any:
    # With torchrun there is a store at the address; otherwise the first process has it, and torch
    # finds it there again when it makes the process group.
    hosts = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = dist.TCPStore(
            launch.address,
            launch.port,
            is_master=hosts,
            timeout=timedelta(seconds=SECONDS_TO_MEET),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError) as error:
        taken = "EADDRINUSE" in str(error) or "already in use" in str(error)
        raise ConfigurationError(
            f"Process {launch.rank} of {launch.world_size} can't meet the others at "
            f"{launch.address}:{launch.port}: "
            + (
                "another program uses that port. Set MASTER_PORT to a free one."
                if taken
                else "nothing answers there. Set MASTER_ADDR to the machine of process 0, as the "
                "others can reach it, and MASTER_PORT to a free port of it."
            )
        ) from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"transformer_elmo/{attempt}", store)


def _is_of_connection(error: Exception) -> bool:
    """Whether an error says no more than that a process doesn't answer any more."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError)
        or any(word in str(error) for word in ("gloo", "Connection closed by peer", "NCCL"))
    )


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode("utf-8", "surrogateescape"))
