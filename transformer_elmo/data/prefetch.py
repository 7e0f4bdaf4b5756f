"""
Work done in the background, a bounded distance ahead of whoever uses it.
"""

import contextlib
import queue
import threading
from typing import Any, Callable, Iterator, Tuple, TypeVar

T = TypeVar("T")


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
        this iterator is closed, or forgotten, the thread ends.
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
        # Whatever the thread is in the middle of takes less, unless its file system hangs.
        if thread is not threading.current_thread():
            thread.join(timeout=10)
