"""
What can't be built from a config, in one message that names the key: it is compared with the
signatures of the classes that it names, before anything is built.
"""

import collections.abc
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union, get_args, get_origin

from allennlp.commands.train import TrainModel
from allennlp.common import Lazy, Registrable
from allennlp.common.from_params import infer_params
from allennlp.data import Vocabulary

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.keys import NOT_IN_CONFIGS, unknown_keys
from transformer_elmo.pretrained.archive import trains_language_model

_PLAIN = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}

# What AllenNLP takes for each; `True` is an integer to Python, and to nobody else.
_TAKEN = {int: (int,), float: (int, float), str: (str, Path), bool: (bool,)}

_LISTS = (list, tuple, set, collections.abc.Iterable, collections.abc.Sequence)

# By its name an integer is a number of things, or a size.
_COUNT, _SIZE = re.compile(r"num_"), re.compile(r".*_(dim|size)$|num_epochs$|max_bad_steps$")

# What a type is.
_NAME = "name among those that are imported (--include-package imports others)"

# What `allennlp train` takes away before it builds anything.
_OF_TRAINING: Dict[str, Any] = {
    "distributed": Dict[str, Any],
    "evaluation": Dict[str, Any],
    "include_in_archive": List[str],
    **dict.fromkeys(("random_seed", "numpy_seed", "pytorch_seed"), int),
}


def check_config(config: Mapping[str, Any]) -> None:
    """
    Checks a language model's config for `allennlp train`; of another model's, what it names of this
    package.

    Raises `ConfigurationError` if a key isn't there, or its value is of a wrong type: the message
    has the dotted key.
    """
    everything, sections = trains_language_model(config), dict(config)
    check = _Check(everything, everything)
    for key, annotation in _OF_TRAINING.items():
        if sections.get(key) is not None:
            check.value(annotation, sections[key], key)
        sections.pop(key, None)
    check.section(TrainModel, "from_partial_objects", sections, "")


@dataclass(frozen=True)
class _Check:
    """Of `everything`, or of this package's classes alone. `here`: whether the section is one."""

    everything: bool
    here: bool

    def section(self, cls: Any, constructor: Optional[str], given: Any, path: str) -> None:
        """Of the arguments of a class's constructor."""
        check = _Check(self.everything, self.everything or is_own(cls))
        method = getattr(cls, constructor or "__init__")
        parameters = infer_params(cls, method)
        kinds = [p.kind for p in inspect.signature(method).parameters.values()]
        # Of ours, constructors alone hand on what they don't know, and a vocabulary's doesn't.
        hands_on = not is_own(cls) or (constructor and not issubclass(cls, Vocabulary))
        takes_others = inspect.Parameter.VAR_KEYWORD in kinds and hands_on
        unknown = [key for key in given if key not in parameters]
        if check.here and unknown and not takes_others:
            names = {k for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
            raise unknown_keys(unknown, sorted(names - NOT_IN_CONFIGS), path)
        for key, value in given.items():
            if key not in parameters:
                continue
            annotation, default = parameters[key].annotation, parameters[key].default
            # AllenNLP's own plain arguments are given null here and there.
            takes_null = default is None or not (is_own(cls) or get_origin(annotation) is Lazy)
            if value is not None or not takes_null:
                check.value(annotation, value, f"{path}{key}")

    def value(self, annotation: Any, given: Any, path: str) -> None:
        """Of what an annotation says."""
        origin, arguments = get_origin(annotation), get_args(annotation)
        if annotation is Any or (given is None and type(None) in arguments):
            return
        if origin is Lazy:
            self.value(arguments[0], given, path)
        elif origin is Union:
            self._one_of(annotation, given, path)
        elif annotation in _PLAIN:
            self._plain(annotation, given, path)
        elif origin in _LISTS and arguments:
            self._list(annotation, given, path)
        elif origin in (dict, collections.abc.Mapping):
            if not isinstance(given, dict):
                self._wrong(path, "an object", given)
            for key, value in given.items() if arguments and isinstance(given, dict) else ():
                self.value(arguments[1], value, f"{path}.{key}")
        elif isinstance(annotation, type) and hasattr(annotation, "from_params"):
            self._object(annotation, given, path)

    def _one_of(self, annotation: Any, given: Any, path: str) -> None:
        errors, parts = [], _parts(annotation)
        if len(parts) == 1:
            return self.value(parts[0], given, path)
        for argument in parts:
            try:
                return self.value(argument, given, path)
            except ConfigurationError as error:
                errors.append(error)
        # One that is about a part of the value knows better what was meant.
        of_parts = [error for error in errors if not error.message.startswith(f"{path}: ")]
        if of_parts:
            raise of_parts[-1]
        self._wrong(path, _called(annotation), given)

    def _plain(self, annotation: Any, given: Any, path: str) -> None:
        is_bool = isinstance(given, bool) and annotation is not bool
        if is_bool or not isinstance(given, _TAKEN[annotation]):
            self._wrong(path, _PLAIN[annotation], given)
        elif isinstance(given, int):
            name = path.rpartition(".")[2]
            least = 1 if _SIZE.match(name) else 0
            if (least or _COUNT.match(name)) and given < least:
                self._wrong(path, f"at least {least}", given)

    def _list(self, annotation: Any, given: Any, path: str) -> None:
        arguments = list(get_args(annotation))
        if not isinstance(given, (list, tuple)):
            return self._wrong(path, _called(annotation), given)
        if get_origin(annotation) is not tuple or Ellipsis in arguments:
            arguments = arguments[:1] * len(given)
        if len(arguments) != len(given):
            self._wrong(path, f"a list of {len(arguments)}", given)
        for number, (argument, value) in enumerate(zip(arguments, given)):
            self.value(argument, value, f"{path}.{number}")

    def _object(self, cls: Any, given: Any, path: str) -> None:
        given = {"type": given} if isinstance(given, str) else given
        if not isinstance(given, dict):
            return self._wrong(path, "an object", given)
        found, constructor = cls, None
        if cls in Registrable._registry:
            names, name = cls.list_available(), given.get("type", cls.default_implementation)
            if name not in names:
                if self.here and "." not in str(name):
                    raise unknown_keys([name], names, f"{path}.type ", _NAME)
                return
            found, constructor = cls.resolve_class_name(name)
        own_way = getattr(getattr(found, "from_params", None), "__func__", None)
        if own_way is Registrable.from_params.__func__ and "_pretrained" not in given:  # type: ignore
            arguments = {key: value for key, value in given.items() if key != "type"}
            self.section(found, constructor, arguments, f"{path}.")

    def _wrong(self, path: str, expected: str, given: Any) -> None:
        quoted = isinstance(given, str) and given.lstrip().startswith(("[", "{"))
        if self.here:
            unquoted = " without quotes" if quoted else ""
            raise ConfigurationError(f"{path}: expected {expected}{unquoted}, got {given!r:.80}.")


def is_own(cls: Any) -> bool:
    """Whether a class is this package's."""
    return str(getattr(cls, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]


def _parts(annotation: Any) -> List[Any]:
    return [part for part in get_args(annotation) if part not in (Ellipsis, type(None))]


def _called(annotation: Any) -> str:
    """In JSON's words."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    parts = [_called(part) for part in _parts(annotation)]
    if get_origin(annotation) is Union:
        return " or ".join(dict.fromkeys(parts))
    return f"a list ({parts[0]} each)" if get_origin(annotation) in _LISTS else "an object"
