import os
import signal
import threading
import time

import pytest
import torch.distributed as dist
from torch import multiprocessing

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.runs import processes
from transformer_elmo.plugin.runs.processes import ProcessLostError, spawn
from transformer_elmo.plugin.runs.stopping import RunStopped, stopper


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    stock = multiprocessing.start_processes

    def start(function, start_method, **options):
        return stock(function, start_method="fork", **options)

    monkeypatch.setattr(multiprocessing, "start_processes", start)
    monkeypatch.setattr(processes, "SECONDS_STOPPED", 0.5)
    monkeypatch.setattr(processes, "_SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setattr(processes, "SECONDS_TO_END", 0.5)


def others_wait(rank, what):
    if rank == 1:
        what()
    time.sleep(600)


def kill(rank):
    others_wait(rank, lambda: os.kill(os.getpid(), signal.SIGKILL))


def halt(rank):
    others_wait(rank, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def leave(rank):
    others_wait(rank, lambda: os._exit(3))


@pytest.mark.parametrize(
    "function, said",
    [
        (kill, "was killed by SIGKILL"),
        (halt, r"has been stopped \(SIGSTOP\)"),
        (leave, "ended with exit code 3"),
    ],
)
def test_the_one_that_is_lost_is_named_and_the_others_end(function, said):
    begin = time.monotonic()
    with pytest.raises(ProcessLostError, match=rf"Process 1 of 3 \(pid \d+\) {said}.*--recover"):
        spawn(function, (), 3)
    assert time.monotonic() - begin < 30
    assert not multiprocessing.active_children()


def raise_one(rank):
    if rank == 2:
        raise ConfigurationError("a wrong value")
    raise RuntimeError("Connection closed by peer")


def test_the_cause_is_shown_and_not_what_comes_of_it():
    with pytest.raises(multiprocessing.ProcessRaisedException, match="a wrong value"):
        spawn(raise_one, (), 3)


def finish(rank, folder):
    (folder / str(rank)).touch()


def test_nothing_happens(tmp_path):
    spawn(finish, (tmp_path,), 3)
    assert len(list(tmp_path.iterdir())) == 3


def in_steps(rank, folder):
    """What a process of a distributed run does, with a process group and without a model."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3)
    with stopper.listening(), stopper.steps():
        for step in range(10_000):
            # As uneven as steps can be.
            time.sleep(0.002 * ((rank + step) % 3))
            dist.barrier()
            number = stopper.agreed()
            if number is not None:
                (folder / f"{rank} {step}").touch()
                raise RunStopped(number)
            if step == 3:
                (folder / f"begun {rank}").touch()


def send_when_begun(folder, target):
    while len(list(folder.glob("begun *"))) < 3:
        time.sleep(0.01)
    target()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", ["all", "one"])
def test_all_stop_after_the_same_step(tmp_path, number, to):
    def send():
        child = multiprocessing.active_children()[1].pid
        os.kill(child if to == "one" and child else os.getpid(), number)

    thread = threading.Thread(target=send_when_begun, args=(tmp_path, send))
    thread.start()
    try:
        with pytest.raises(RunStopped) as stopped, stopper.listening():
            spawn(in_steps, (tmp_path,), 3)
    finally:
        thread.join()
    assert stopped.value.code == 128 + number
    ended = [path.name.split() for path in tmp_path.glob("[012] *")]
    assert len(ended) == 3 and len({step for _, step in ended}) == 1
