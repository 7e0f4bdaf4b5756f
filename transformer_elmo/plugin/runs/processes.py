"""
The processes of a distributed run on this machine: started, told of signals, and ended together.
"""

import logging
import os
import pickle
import signal
import time
from multiprocessing import connection
from typing import Any, Callable, List, Optional, Sequence

from torch import multiprocessing
from torch.multiprocessing import ProcessRaisedException

from transformer_elmo.plugin.runs.stopping import SIGNALS, RunStopped, command_to_go_on, stopper

logger = logging.getLogger(__name__)

# Where one process has failed, how long the others get to end by themselves: those that wait for it
# in gloo notice at once, those in NCCL after ten minutes.
SECONDS_TO_END = 5.0
# After a signal, a step is finished and a checkpoint written; after this long nobody waits.
SECONDS_TO_SAVE = 600.0
# How long a process may be stopped (SIGSTOP) while this one runs.
SECONDS_STOPPED = 10.0
_SECONDS_BETWEEN_LOOKS = 1.0

STOPPED = {128 + number for number in SIGNALS}


class ProcessLostError(RuntimeError):
    """A process of a distributed run is gone or stopped. The message says which."""


def spawn(function: Callable[..., None], args: Sequence[Any], nprocs: int) -> None:
    """
    `torch.multiprocessing.spawn`, which ends all processes where one is killed or stopped.

    # Parameters

    function : `Callable`
        Called in each process with its number and `args`.
    args : `Sequence[Any]`
    nprocs : `int`

    # Raises

    `ProcessLostError`
        If a process was killed, was stopped or ended with a code that isn't 0.
    `ProcessRaisedException`
        If a process raised an exception.
    `RunStopped`
        If a signal ended them.
    """
    context: Any = multiprocessing.start_processes(
        function, args=tuple(args), nprocs=nprocs, join=False, start_method="spawn"
    )
    processes: List[Any] = context.processes

    def forward(number: int) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    stopper.forward = forward
    try:
        if stopper.received is not None:
            forward(stopper.received)
        _watch(processes, context.error_files)
    finally:
        stopper.forward = None
        _end(processes)


def _watch(processes: List[Any], error_files: List[str]) -> None:
    looks_stopped = [0] * len(processes)
    deadline: Optional[float] = None
    while any(process.exitcode is None for process in processes):
        alive = [process.sentinel for process in processes if process.exitcode is None]
        ended = connection.wait(alive, timeout=_SECONDS_BETWEEN_LOOKS)
        if any(process.exitcode not in (None, 0) for process in processes):
            break
        if ended:
            continue
        if stopper.received is not None:
            deadline = deadline or time.monotonic() + SECONDS_TO_SAVE
            if time.monotonic() > deadline:
                break
        for number, process in enumerate(processes):
            # Counted in looks and not by a clock, for this process may have been stopped, too.
            looks_stopped[number] = looks_stopped[number] + 1 if _is_stopped(process.pid) else 0
            if looks_stopped[number] * _SECONDS_BETWEEN_LOOKS >= SECONDS_STOPPED:
                raise ProcessLostError(
                    _lost(
                        number,
                        process,
                        f"has been stopped (SIGSTOP) for {SECONDS_STOPPED:.0f} seconds",
                        len(processes),
                    )
                )
    failed = [p for p in processes if p.exitcode not in (None, 0)]
    if not failed and stopper.received is None:
        return
    _wait_for(processes, SECONDS_TO_SAVE if stopper.received is not None else SECONDS_TO_END)
    _raise_cause(processes, error_files)


def _raise_cause(processes: List[Any], error_files: List[str]) -> None:
    received = stopper.received
    # One that was killed is the cause of what others say of their connections to it.
    for number, process in enumerate(processes):
        code = process.exitcode
        if code is not None and code < 0 and -code != received:
            name = signal.Signals(-code).name
            memory = " (the system does so where memory runs out)" if name == "SIGKILL" else ""
            raise ProcessLostError(
                _lost(number, process, f"was killed by {name}{memory}", len(processes))
            )
    errors = [(n, _read(path)) for n, path in enumerate(error_files) if os.access(path, os.R_OK)]
    # Configuration errors first: the others' collectives fail because of them.
    errors.sort(key=lambda error: "ConfigurationError" not in error[1])
    for number, text in errors:
        raise ProcessRaisedException(
            f"\n\n-- Process {number} terminated with the following error:\n{text}",
            number,
            processes[number].pid,
        )
    if received is not None:
        raise RunStopped(received)
    for number, process in enumerate(processes):
        if process.exitcode in STOPPED:
            raise RunStopped(process.exitcode - 128)
        if process.exitcode:
            raise ProcessLostError(
                _lost(number, process, f"ended with exit code {process.exitcode}", len(processes))
            )


def _read(path: str) -> str:
    # What a process of ours has written.
    with open(path, "rb") as file:
        return str(pickle.load(file))


def _lost(number: int, process: Any, what: str, num_processes: int) -> str:
    return (
        f"Process {number} of {num_processes} (pid {process.pid}) {what}, so the run has ended: "
        f"the others can't go on without it. Go on with: {command_to_go_on()}"
    )


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            # The name in parentheses may have any characters.
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def _wait_for(processes: List[Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))


def _end(processes: List[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join()
