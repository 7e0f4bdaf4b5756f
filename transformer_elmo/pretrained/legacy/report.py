"""What a conversion does: the changes it makes, and what it can't convert."""

import json
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

from transformer_elmo.errors import ConfigurationError

Number = TypeVar("Number", int, float)

logger = logging.getLogger(__name__)

MAX_SHOWN = 160


@dataclass(frozen=True)
class Change:
    """
    One thing that was said in an AllenNLP 0.x config.

    `path`: the dotted key that held it. `value`: what it held. `new_path`: the dotted key that says
    it now; `None` where nothing does. `dropped`: whether a meaning was lost. A key that says what
    happens anyway has no `new_path`, and isn't dropped. `added`: whether the key is new: it says
    what was understood without saying.
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
    Everything that one conversion does, in order.

    The rules run over every config. What a rule records here shows that the config is old: only
    AllenNLP 0.x had such a key. What it records through `if_old` shows nothing, because AllenNLP 2
    may well be told the same; it counts only if something else shows that the config is old.

    `overridden`: dotted keys that the user gave in an override. What a user says now must have an
    effect, so that dropping one of these is an error, where a key of an old config is dropped with
    a warning. `errors`: what can't be converted. None of these is raised on the way: the config may
    turn out not to be old. `legacy_keys`: the dotted keys that show that the config is old.
    `conditional`: whether what is recorded counts only if something else shows that the config is
    old.
    """

    overridden: Collection[str] = ()
    changes: list[Change] = field(default_factory=list)
    errors: list[ConfigurationError] = field(default_factory=list)
    legacy_keys: list[str] = field(default_factory=list)
    conditional: bool = False

    @property
    def if_old(self) -> "Report":
        """The same report, for what counts only if something else shows that the config is old."""
        return replace(self, conditional=True)

    def moved(self, path: str, value: Any, new_path: str, new_value: Any, reason: str = "") -> None:
        """Records that what `path` said is now said by `new_path`."""
        self._record(Change(path, value, new_path, new_value, reason))

    def added(self, path: str, value: Any, reason: str) -> None:
        """Records a key that wasn't there, because what it says went without saying."""
        self.if_old._record(Change(path, None, path, value, reason, added=True))

    def needless(self, path: str, value: Any, reason: str) -> None:
        """Records that `path` is gone, and that what it said happens anyway."""
        self._record(Change(path, value, reason=reason))

    def dropped(self, path: str, value: Any, reason: str) -> None:
        """Records that `path` is gone, and its meaning with it: an error if it was overridden."""
        for given in self.overridden:
            if given == path or given.startswith(path + ".") or path.startswith(given + "."):
                advice = f"this override has no meaning here ({reason}). Leave it out."
                return self.refused(given, value, advice)
        self._record(Change(path, value, reason=reason, dropped=True))

    def refused(self, path: str, value: Any, advice: str) -> None:
        """Records that what `path` says can't be converted, and what to do about it."""
        self.errors.append(_error(path, value, advice))
        self._is_legacy(path)

    def as_number(self, value: Any, kind: type[Number], path: str) -> Number | None:
        """`value`, or what it says as a string, as a number. `None` and an error if it is none."""
        try:
            return kind(value)
        except (TypeError, ValueError, OverflowError):
            self.refused(path, value, "expected a number.")
            return None

    def as_object(self, value: Any, path: str) -> dict[str, Any]:
        """`value` if it is an object. An empty one if it isn't, which is recorded."""
        if isinstance(value, dict):
            return value
        self.refused(path, value, "expected an object.")
        return {}

    def as_list(self, value: Any, path: str) -> list[Any]:
        """`value` if it is a list. An empty one if it isn't, which is recorded."""
        if isinstance(value, (list, tuple)):
            return [*value]
        self.refused(path, value, "expected a list.")
        return []

    def check(self) -> None:
        """Raises the first of the errors, if there is one."""
        if self.errors:
            raise self.errors[0]

    def _record(self, change: Change) -> None:
        self.changes.append(change)
        self._is_legacy(change.path)

    def _is_legacy(self, path: str) -> None:
        if not self.conditional and path not in self.legacy_keys:
            self.legacy_keys.append(path)


def is_true(value: Any) -> bool:
    """Whether `value` says yes; AllenNLP 0.x read it out of strings, too."""
    return value is True or str(value).lower() == "true"


def shown(value: Any) -> str:
    """`value` as JSON on one line, cut where it gets long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 4] + " ..."


def _error(path: str, value: Any, advice: str) -> ConfigurationError:
    return ConfigurationError(f"{path or shown(path)} = {shown(value)}: {advice}")


def refuse(path: str, value: Any, advice: str) -> NoReturn:
    """Raises a `ConfigurationError` that names the key `path`, its value, and what to do."""
    raise _error(path, value, advice)


def log_changes(changes: Iterable[Change], source: str = "") -> None:
    """
    Writes one line for each change: losses as warnings, the others as information.

    `source`: the file that the config is from: a model may bring another one's along.
    """
    of_source = f" of {source}" if source else ""
    for change in changes:
        level = logging.WARNING if change.dropped else logging.INFO
        logger.log(level, "AllenNLP 0.x config%s: %s", of_source, change)
