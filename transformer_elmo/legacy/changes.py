"""What a conversion changed: one record, and one line of the log, for each."""

import json
import logging
from dataclasses import dataclass, field
from typing import Any, Collection, Iterable, List, NoReturn, Optional, Type, TypeVar

from transformer_elmo.errors import ConfigurationError

Number = TypeVar("Number", int, float)

logger = logging.getLogger(__name__)

MAX_SHOWN = 160


def shown(value: Any) -> str:
    """`value` as JSON on one line, cut where it gets long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + " ..."


def is_true(value: Any) -> bool:
    """Whether `value` says yes; AllenNLP 0.x read it out of strings, too."""
    return value is True or str(value).lower() == "true"


def number(value: Any, kind: Type[Number], path: str) -> Number:
    """
    # Returns

    `int` or `float`
        `value`, which may be a string, as a number of that kind.

    # Raises

    `ConfigurationError`
        If it isn't one.
    """
    try:
        return kind(value)
    except (TypeError, ValueError):
        not_understood(path, value, "expected a number.")


def not_understood(path: str, value: Any, advice: str) -> NoReturn:
    """
    # Raises

    `ConfigurationError`
        Always: it names the key `path`, its value, and what to do.
    """
    raise ConfigurationError(f"{path} = {shown(value)}: {advice}")


@dataclass(frozen=True)
class Change:
    """
    One thing that was said in an AllenNLP 0.x config.

    # Parameters

    path : `str`
        The dotted key that held it.
    value : `Any`
        What it held.
    new_path : `str`, optional (default = `None`)
        The dotted key that says it now; `None` where nothing does.
    new_value : `Any`, optional (default = `None`)
    reason : `str`, optional (default = `""`)
    dropped : `bool`, optional (default = `False`)
        Whether a meaning was lost. A key that says what happens anyway has no `new_path`, and
        isn't dropped.
    added : `bool`, optional (default = `False`)
        Whether the key is new: it says what was understood without saying.
    """

    path: str
    value: Any
    new_path: Optional[str] = None
    new_value: Any = None
    reason: str = ""
    dropped: bool = False
    added: bool = False

    def __str__(self) -> str:
        if self.added:
            return f"{self.path} = {shown(self.new_value)} added ({self.reason})"
        line = f"{self.path} = {shown(self.value)} -> "
        if self.new_path is None:
            line += "dropped" if self.dropped else "not needed"
        else:
            line += f"{self.new_path} = {shown(self.new_value)}"
        return f"{line} ({self.reason})" if self.reason else line


@dataclass
class Changes:
    """
    All changes of one conversion, in order.

    # Parameters

    overridden : `Collection[str]`, optional (default = `()`)
        Dotted keys that the user gave in an override. What a user says now must have an effect, so
        that dropping one of these is an error, where a key of an old config is dropped with a
        warning.
    """

    overridden: Collection[str] = ()
    made: List[Change] = field(default_factory=list)

    def moved(self, path: str, value: Any, new_path: str, new_value: Any, reason: str = "") -> None:
        """Records that what `path` said is now said by `new_path`."""
        self.made.append(Change(path, value, new_path, new_value, reason))

    def added(self, path: str, value: Any, reason: str) -> None:
        """Records a key that wasn't there, because what it says went without saying."""
        self.made.append(Change(path, None, path, value, reason, added=True))

    def needless(self, path: str, value: Any, reason: str) -> None:
        """Records that `path` is gone, and that what it said happens anyway."""
        self.made.append(Change(path, value, reason=reason))

    def dropped(self, path: str, value: Any, reason: str) -> None:
        """
        Records that `path` is gone, and its meaning with it.

        # Raises

        `ConfigurationError`
            If it comes from an override.
        """
        for given in self.overridden:
            if given == path or given.startswith(path + ".") or path.startswith(given + "."):
                not_understood(
                    given, value, f"this override has no meaning here ({reason}). Leave it out."
                )
        self.made.append(Change(path, value, reason=reason, dropped=True))


def log_changes(changes: Iterable[Change], source: str = "") -> None:
    """
    Writes one line for each change: losses as warnings, the others as information.

    # Parameters

    changes : `Iterable[Change]`
    source : `str`, optional (default = `""`)
        The file that the config is from: a model may bring another one's along.
    """
    of_source = f" of {source}" if source else ""
    for change in changes:
        level = logging.WARNING if change.dropped else logging.INFO
        logger.log(level, "AllenNLP 0.x config%s: %s", of_source, change)
