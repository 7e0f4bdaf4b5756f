"""
Work done in the background, a bounded distance ahead of whoever uses it.
"""

import atexit
import contextlib
import queue
import sys
import threading
from typing import Any, Callable, Dict, Iterator, Tuple, TypeVar

T = TypeVar("T")

# Almost anything that a thread is in the middle of takes less. What takes longer (a chunk of text
# and a slow tokenizer, a file system that hangs) isn't waited for.
SECONDS_TO_END = 2.0

# The threads that haven't been told to end, each with its way to be told.
_running: Dict[threading.Thread, threading.Event] = {}


@atexit.register
def _stop_all() -> None:
    # After an error or Ctrl-C, a traceback may hold on to an iterator until the interpreter is
    # taken down, when no thread runs any more that could be waited for.
    for stopped in _running.values():
        stopped.set()
    for thread in list(_running):
        thread.join(SECONDS_TO_END)


def prefetch(make_iterator: Callable[[], Iterator[T]], depth: int, name: str) -> Iterator[T]:
    """
    Runs an iterator in a thread.

    # Parameters

    make_iterator : `Callable[[], Iterator[T]]`
        Called in the thread.
    depth : `int`
        How many items the thread may be ahead.
    name : `str`
        The name of the thread, for whoever looks at a running process.

    # Returns

    `Iterator[T]`
        The same items. An exception in the thread is raised here, after the items before it. When
        this iterator is closed, or forgotten, the thread ends, at the next item if it is busy.
    """
    items: queue.Queue[Tuple[str, Any]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                items.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        iterator = make_iterator()
        try:
            for item in iterator:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=run, name=name, daemon=True)
    _running[thread] = stopped
    thread.start()
    try:
        while True:
            kind, value = items.get()
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    finally:
        stopped.set()
        # An item that waits for room is let go, so that the thread sees at once that it is over.
        with contextlib.suppress(queue.Empty):
            items.get_nowait()
        _running.pop(thread, None)
        if thread is not threading.current_thread() and not sys.is_finalizing():
            thread.join(SECONDS_TO_END)
