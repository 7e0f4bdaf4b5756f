"""
What a training run does on SIGTERM (a scheduler's notice) and SIGINT (Ctrl-C): it finishes its
step, writes a checkpoint, and says how to go on.
"""

import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Iterator, List, Optional

import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from transformer_elmo.nn.kernels.sparse_gradients import several_processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# `timeout` and some schedulers send a signal to a process and then to its group. From so many
# seconds on, the second one is meant.
SECONDS_OF_ONE_NOTICE = 1.0

_KEY = "transformer_elmo/stop"


class RunStopped(SystemExit):
    """
    Ends the process, with the code that shells give to the signal: 143 or 130.

    `number`: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class ProcessLostError(RuntimeError):
    """A process of a distributed run is gone. The message says which, and how to go on."""


@contextmanager
def lost_processes_are_named() -> Iterator[None]:
    """
    What `torch.multiprocessing.spawn` and connections raise in the block of a process that was
    stopped or is gone, as `RunStopped` or `ProcessLostError`.
    """
    try:
        yield
    except ProcessExitedException as error:
        name = error.signal_name
        code = 128 + signal.Signals[name] if name else error.exit_code
        if code - 128 in SIGNALS:
            raise RunStopped(code - 128) from None
        how = f"was killed by {name}" if name else f"ended with exit code {code}"
        memory = " (the system does so where memory runs out)" if name == "SIGKILL" else ""
        lost, cause = f"Process {error.error_index} of the run {how}{memory}", None
    except RuntimeError as error:
        # No more than that a process doesn't answer any more.
        if not isinstance(error, dist.DistError) and not any(
            word in str(error) for word in ("gloo", "Connection closed by peer", "NCCL")
        ):
            raise
        lost, cause = "Another process of the run is gone", error
    else:
        return
    raise ProcessLostError(
        f"{lost}, so the run has ended. Go on with: {command_to_go_on()}"
    ) from cause


class Stopper:
    """
    Takes note of signals. Within :meth:`steps` they wait for the end of the step; otherwise there
    is nothing to be finished, and they end the process.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self.has_workers = False
        """Whether processes that this one starts do the work: they get the signals, too."""
        self._at = 0.0
        self._in_steps = False
        self._points = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals within the block, if this is the thread that gets them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.received = None
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            # Nobody is to stop for it later.
            self.received = None

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Within the block, whoever trains asks :meth:`agreed` at the end of each step."""
        self._in_steps = True
        self._points = 0
        try:
            yield
        finally:
            self._in_steps = False

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        again = self.received is not None
        if again and (several_processes() or time.monotonic() - self._at <= SECONDS_OF_ONE_NOTICE):
            return
        workers = multiprocessing.active_children() if self.has_workers else []
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL if again else number)  # type: ignore[arg-type]
        if again:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received, self._at = number, time.monotonic()
        name = signal.Signals(number).name
        if not self._in_steps and not workers:
            _say(f"Stopped by {name}. Go on with: {command_to_go_on()}")
            raise RunStopped(number)
        if self._in_steps and not several_processes():
            _say(f"{name}: finishing the step and saving. Once more ends it at once.")
        elif self._in_steps and dist.get_rank() == 0:
            _say(f"{name}: finishing the step and saving.")

    def agreed(self) -> Optional[int]:
        """
        Called by all processes at the end of the same step.

        Returns the signal for which all of them stop now.
        """
        self._points += 1
        if not several_processes():
            return self.received
        # Whoever got the signal names the next step. Nobody ends that without all the others'
        # gradients, so that all have the key by then.
        store = dist.distributed_c10d._get_default_store()
        if self.received is not None:
            value = store.compare_set(_KEY, "", f"{self.received} {self._points + 1}")
        elif store.check([_KEY]):
            value = store.get(_KEY)
        else:
            return None
        number, point = map(int, value.decode().split())
        return number if self._points >= point else None


stopper = Stopper()


def command_to_go_on(folder: Optional[str] = None) -> str:
    """`folder`: the run's, for calls that didn't come from the command line."""
    arguments = sys.argv[1:]
    if "train" not in arguments[:3]:
        folder = folder or "DIR"
        arguments = ["train", str(Path(folder) / "config.json"), "-s", folder]
    kept: List[str] = [a for a in arguments if a not in ("-f", "--force", "-r", "--recover")]
    launched = ", started by torchrun as before" if os.environ.get("LOCAL_RANK") else ""
    return shlex.join(["allennlp", *kept, "--recover"]) + launched


def _say(line: str) -> None:
    # Not with `logging`, which may be in the middle of a line.
    os.write(2, f"\n{line}\n".encode("utf-8", "surrogateescape"))
