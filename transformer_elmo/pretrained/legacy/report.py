"""What a conversion does: the changes it makes, and errors that name the key."""

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from transformer_elmo.errors import ConfigurationError

Number = TypeVar("Number", int, float)

logger = logging.getLogger(__name__)

MAX_SHOWN = 160


@dataclass(frozen=True)
class Change:
    """
    What was said in an AllenNLP 0.x config by the dotted key `path`, and is now by `new_path`.

    `dropped`: whether a meaning was lost. A key that says what happens anyway has no `new_path`,
    and isn't dropped. `added`: whether the key is new: it says what went without saying.
    """

    path: str
    value: Any
    new_path: str | None = None
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
class Report:
    """
    The changes of one conversion, in order. `overridden`: dotted keys that the user gave in an
    override, which must have an effect: dropping one is an error, and not a warning.
    """

    overridden: Collection[str] = ()
    changes: list[Change] = field(default_factory=list)

    def moved(self, path: str, value: Any, new_path: str, new_value: Any, reason: str = "") -> None:
        """What `path` said is now said by `new_path`."""
        self.changes.append(Change(path, value, new_path, new_value, reason))

    def added(self, path: str, value: Any, reason: str) -> None:
        """A key that wasn't there, because what it says went without saying."""
        self.changes.append(Change(path, None, path, value, reason, added=True))

    def needless(self, path: str, value: Any, reason: str) -> None:
        """`path` is gone, and what it said happens anyway."""
        self.changes.append(Change(path, value, reason=reason))

    def dropped(self, path: str, value: Any, reason: str) -> None:
        """`path` is gone, and its meaning with it: an error if it was overridden."""
        for given in self.overridden:
            if given == path or given.startswith(path + ".") or path.startswith(given + "."):
                refuse(given, value, f"this override has no meaning here ({reason}). Leave it out.")
        self.changes.append(Change(path, value, reason=reason, dropped=True))

    def drop_keys(
        self, section: dict[str, Any], path: str, reasons: Mapping[str, str], lost: bool = True
    ) -> None:
        """Takes keys out of the section at `path`. `lost`: whether a meaning is lost by it."""
        record = self.dropped if lost else self.needless
        for key, reason in reasons.items():
            if key in section:
                record(f"{path}.{key}", section.pop(key), reason)


def refuse(path: str, value: Any, advice: str) -> NoReturn:
    """Raises a `ConfigurationError` that names the key `path`, its value, and what to do."""
    raise ConfigurationError(f"{path or shown(path)} = {shown(value)}: {advice}")


def check_keys(section: Mapping[str, Any], known: Collection[str], path: str, advice: str) -> None:
    """Refuses the keys of the section at `path` that aren't `known`."""
    for key, value in section.items():
        if key not in known:
            refuse(f"{path}.{key}", value, advice)


def as_number(value: Any, kind: type[Number], path: str) -> Number:
    """`value`, or what it says as a string, as a number."""
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        refuse(path, value, "expected a number.")


def as_object(value: Any, path: str) -> dict[str, Any]:
    """`value` if it is an object."""
    return value if isinstance(value, dict) else refuse(path, value, "expected an object.")


def as_list(value: Any, path: str) -> list[Any]:
    """`value` if it is a list."""
    return [*value] if isinstance(value, (list, tuple)) else refuse(path, value, "expected a list.")


def is_true(value: Any) -> bool:
    """Whether `value` says yes; AllenNLP 0.x read it out of strings, too."""
    return value is True or str(value).lower() == "true"


def shown(value: Any) -> str:
    """`value` as JSON on one line, cut where it gets long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + " ..."


def log_changes(changes: Iterable[Change], source: str = "") -> None:
    """
    Writes one line for each change: losses as warnings, the others as information.

    `source`: the file that the config is from: a model may bring another one's along.
    """
    of_source = f" of {source}" if source else ""
    for change in changes:
        level = logging.WARNING if change.dropped else logging.INFO
        logger.log(level, "AllenNLP 0.x config%s: %s", of_source, change)
