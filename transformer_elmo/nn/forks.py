"""Models in forked processes, as servers and pools make them."""

import functools
import os

import torch


@functools.cache
def one_thread_in_forks() -> None:
    """
    From now on, a process that is forked computes with one thread: the threads that this one has
    started are dead there, and would be waited for without end. Called where a model is made, so
    that a process without one notices nothing. `torch.set_num_threads` in the forked process is for
    those who know that nothing was computed before.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))
