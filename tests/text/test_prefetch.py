import threading
import time

import pytest

from transformer_elmo.text import training_stream
from transformer_elmo.text.training_stream import prefetch


def begun(make):
    """An iterator of which the first item is taken, and its thread."""
    earlier = threading.enumerate()
    iterator = prefetch(make, 2, "prefetching")
    next(iterator)
    new = set(threading.enumerate()).difference(earlier)
    (thread,) = (thread for thread in new if thread.name == "prefetching")
    return iterator, thread


def test_items_and_then_an_error_come_from_another_thread():
    def make():
        for number in range(100):
            yield number, threading.current_thread()
        raise UnicodeError("here")

    iterator, thread = begun(make)
    assert [next(iterator) for _ in range(99)] == [(i, thread) for i in range(1, 100)]
    with pytest.raises(UnicodeError, match="here"):
        next(iterator)
    assert not thread.is_alive()


def test_it_is_a_bounded_distance_ahead_and_ends_when_it_is_forgotten():
    made, closed = [], threading.Event()

    def make():
        try:
            for number in range(1000):
                made.append(number)
                yield number
        finally:
            closed.set()

    iterator, thread = begun(make)
    time.sleep(0.3)
    # One used, two in the queue, one waiting for room.
    assert len(made) <= 4
    del iterator
    assert closed.is_set() and not thread.is_alive()


def test_at_exit_threads_end_before_the_interpreter(monkeypatch):
    monkeypatch.setattr(training_stream, "_running", {})
    # Held on to, as by a traceback.
    iterator, thread = begun(lambda: iter(range(1000)))
    assert thread.is_alive()
    training_stream._stop_all()
    assert not thread.is_alive()
    iterator.close()
