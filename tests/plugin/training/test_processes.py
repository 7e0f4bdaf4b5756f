import os
import signal
import threading
import time

import pytest
import torch.distributed as dist
from torch import multiprocessing

from transformer_elmo.plugin.training.stopping import (
    ProcessLostError,
    RunStopped,
    lost_processes_are_named,
    stopper,
)


def spawned(function, args=(), nprocs=3):
    """As `train_model` has `torch.multiprocessing.spawn`, forked here."""
    stopper.has_workers = True
    try:
        with lost_processes_are_named():
            multiprocessing.start_processes(function, args, nprocs, start_method="fork")
    finally:
        stopper.has_workers = False


def end(rank, how):
    if rank == 1:
        how()
    time.sleep(600)


@pytest.mark.parametrize(
    "how, said",
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
        (lambda: os._exit(3), "ended with exit code 3"),
    ],
)
def test_the_one_that_is_lost_is_named_and_the_others_end(how, said):
    earlier = multiprocessing.active_children()
    with pytest.raises(ProcessLostError, match=rf"Process 1 of the run {said}.*--recover"):
        spawned(end, (how,))
    assert set(multiprocessing.active_children()) <= set(earlier)


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


@pytest.mark.parametrize("number, to", [(signal.SIGTERM, "all"), (signal.SIGINT, "one")])
def test_all_stop_after_the_same_step(tmp_path, number, to):
    earlier = multiprocessing.active_children()

    def send():
        while len(list(tmp_path.glob("begun *"))) < 3:
            time.sleep(0.01)
        child = set(multiprocessing.active_children()).difference(earlier).pop().pid
        os.kill(child if to == "one" and child else os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(RunStopped) as stopped, stopper.listening():
            spawned(in_steps, (tmp_path,))
    finally:
        thread.join()
    assert stopped.value.code == 128 + number
    ended = [path.name.split() for path in tmp_path.glob("[012] *")]
    assert len(ended) == 3 and len({step for _, step in ended}) == 1
