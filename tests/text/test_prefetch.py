import threading
import time
from typing import Any

import pytest

from transformer_elmo.text import training_stream as prefetch_module
from transformer_elmo.text.training_stream import prefetch


def wait_for_threads(name, tries=100):
    for _ in range(tries):
        if not any(thread.name == name for thread in threading.enumerate()):
            return True
        time.sleep(0.05)
    return False


def test_same_items_made_in_another_thread():
    def make():
        for i in range(100):
            yield i, threading.current_thread().name

    items = list(prefetch(make, 3, "test-items"))
    assert items == [(i, "test-items") for i in range(100)]
    assert wait_for_threads("test-items")


def test_an_error_comes_after_the_items_before_it_with_its_own_type():
    def make():
        yield 1
        raise UnicodeError("here")

    iterator = prefetch(make, 3, "test-error")
    assert next(iterator) == 1
    with pytest.raises(UnicodeError, match="here"):
        next(iterator)
    assert wait_for_threads("test-error")


def test_bounded_and_stopped_when_abandoned():
    made, closed = [], threading.Event()

    def make():
        try:
            for i in range(1000):
                made.append(i)
                yield i
        finally:
            closed.set()

    iterator: Any = prefetch(make, 2, "test-abandoned")
    assert next(iterator) == 0
    time.sleep(0.3)
    # One used, two in the queue, one waiting for room.
    assert len(made) <= 4
    iterator.close()
    assert closed.wait(5)
    assert wait_for_threads("test-abandoned")


def test_forgotten_iterators_stop_their_threads():
    iterator = prefetch(lambda: iter(range(1000)), 2, "test-forgotten")
    next(iterator)
    del iterator
    assert wait_for_threads("test-forgotten")


def test_at_exit_threads_end_before_the_interpreter(monkeypatch):
    monkeypatch.setattr(prefetch_module, "_running", {})
    # Held on to, as by a traceback.
    iterator: Any = prefetch(lambda: iter(range(1000)), 2, "test-exit")
    assert next(iterator) == 0
    assert not wait_for_threads("test-exit", tries=1)
    prefetch_module._stop_all()
    assert wait_for_threads("test-exit", tries=1)
    iterator.close()
    assert not prefetch_module._running
