"""Progress bars, where there is something to draw them."""

from typing import Any, Callable, Iterable, Iterator, Optional, TypeVar

T = TypeVar("T")


class _Silent:
    def update(self, n: int = 1) -> None:
        pass

    def close(self) -> None:
        pass


def _tqdm(**options: Any) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return _Silent()
    return tqdm(mininterval=0.1, **options)


make: Callable[..., Any] = _tqdm
"""
From tqdm's options (`total`, `desc`, `initial`, `unit`, ...) to an object with `update` and
`close`. Under AllenNLP it is AllenNLP's, which can write for log files.
"""


def tracked(items: Iterable[T], desc: str, total: Optional[int] = None) -> Iterator[T]:
    """The same items, with a bar that moves by one for each."""
    bar = make(desc=desc, total=total)
    try:
        for item in items:
            yield item
            bar.update()
    finally:
        bar.close()
