"""
What can't be built from a config, in one message that names the key: it is compared with the
signatures of the classes that it names, before anything is built. Whatever goes wrong all the same,
up to the end of the first step, is told with the section that it comes from.
"""

import collections.abc
import difflib
import inspect
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union, get_args, get_origin

import torch
from allennlp.commands.train import TrainModel
from allennlp.common import Lazy, Params, Registrable
from allennlp.common.from_params import infer_params
from allennlp.data import Vocabulary
from allennlp.training import GradientDescentTrainer

from transformer_elmo.errors import ConfigurationError, first_line
from transformer_elmo.plugin.keys import NOT_IN_CONFIGS, unknown_keys
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.pretrained.archive import trains_language_model

_PLAIN = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}

# What AllenNLP takes for each; `True` is an integer to Python, and to nobody else.
_TAKEN = {int: (int,), float: (int, float), str: (str, Path), bool: (bool,)}

_LISTS = (list, tuple, set, collections.abc.Iterable, collections.abc.Sequence)

# By its name an integer is a number of things, or a size.
_COUNT, _SIZE = re.compile(r"num_"), re.compile(r".*_(dim|size)$|num_epochs$")

# Whose classes are known to say nothing more in a traceback.
_KNOWN = ("allennlp", "transformer_elmo", "torch")

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
    check, sections = _Check(trains_language_model(config)), dict(config)
    for key, annotation in _OF_TRAINING.items():
        check.value(annotation, sections.pop(key, None), key)
    check.section(TrainModel, "from_partial_objects", sections, "")


class _Check:
    """Of `everything`, or of this package's classes alone."""

    def __init__(self, everything: bool) -> None:
        self.everything = everything
        # Whether the section at hand is one to check.
        self._here = everything

    def section(self, cls: Any, constructor: Optional[str], given: Any, path: str) -> None:
        """Of the arguments of a class's constructor."""
        before, self._here = self._here, self.everything or _is_own(cls)
        method = getattr(cls, constructor or "__init__")
        parameters = infer_params(cls, method)
        kinds = [p.kind for p in inspect.signature(method).parameters.values()]
        # Of ours, constructors alone hand on what they don't know, and a vocabulary's doesn't.
        hands_on = not _is_own(cls) or (constructor and not issubclass(cls, Vocabulary))
        takes_others = inspect.Parameter.VAR_KEYWORD in kinds and hands_on
        unknown = [key for key in given if key not in parameters]
        if self._here and unknown and not takes_others:
            names = {k for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
            raise unknown_keys(unknown, sorted(names - NOT_IN_CONFIGS), path)
        for key, value in given.items():
            if key not in parameters:
                continue
            annotation, default = parameters[key].annotation, parameters[key].default
            if value is None and default is not None and not _takes_null(annotation):
                # AllenNLP's own plain arguments are given null here and there.
                if _is_own(cls) or get_origin(annotation) is Lazy:
                    self._wrong(f"{path}{key}", expected_of(annotation) or "an object", None)
            self.value(annotation, value, f"{path}{key}")
        self._here = before

    def value(self, annotation: Any, given: Any, path: str) -> None:
        """Of what an annotation says."""
        origin, arguments = get_origin(annotation), get_args(annotation)
        if given is None or annotation is inspect.Parameter.empty:
            return
        if origin is Lazy:
            self.value(arguments[0], given, path)
        elif origin is Union:
            self._one_of([a for a in arguments if a is not type(None)], given, path)
        elif annotation in _PLAIN:
            self._plain(annotation, given, path)
        elif origin in _LISTS and arguments:
            self._list(annotation, given, path)
        elif origin in (dict, collections.abc.Mapping):
            if not isinstance(given, dict):
                self._wrong(path, expected_of(annotation) or "an object", given)
            elif arguments:
                for key, value in given.items():
                    self.value(arguments[1], value, f"{path}.{key}")
        elif isinstance(annotation, type) and hasattr(annotation, "from_params"):
            self._object(annotation, given, path)

    def _one_of(self, annotations: List[Any], given: Any, path: str) -> None:
        errors = []
        for annotation in annotations:
            try:
                return self.value(annotation, given, path)
            except ConfigurationError as error:
                errors.append(error)
        expected = expected_of(Union[tuple(annotations)])
        if len(errors) > 1 and expected is not None:
            raise wrong_type(path, expected, given)
        raise errors[-1]

    def _plain(self, annotation: Any, given: Any, path: str) -> None:
        is_bool = isinstance(given, bool) and annotation is not bool
        if is_bool or not isinstance(given, _TAKEN[annotation]):
            self._wrong(path, _PLAIN[annotation], given)
        elif self._here and isinstance(given, int):
            name = path.rpartition(".")[2]
            least = 1 if _SIZE.match(name) else 0
            if (least or _COUNT.match(name)) and given < least:
                raise wrong_type(path, f"at least {least}", given)

    def _list(self, annotation: Any, given: Any, path: str) -> None:
        arguments = list(get_args(annotation))
        if not isinstance(given, (list, tuple)):
            quoted = isinstance(given, str) and given.lstrip().startswith("[")
            advice = " Leave out the quotes around the list." if quoted else ""
            return self._wrong(path, expected_of(annotation) or "a list", given, advice)
        if get_origin(annotation) is not tuple or Ellipsis in arguments:
            arguments = arguments[:1] * len(given)
        if len(arguments) != len(given):
            return self._wrong(path, f"a list of {len(arguments)}", given)
        for number, (argument, value) in enumerate(zip(arguments, given)):
            self.value(argument, value, f"{path}.{number}")

    def _object(self, cls: Any, given: Any, path: str) -> None:
        given = {"type": given} if isinstance(given, str) else given
        if not isinstance(given, dict):
            return self._wrong(path, "an object", given)
        found, constructor = cls, None
        arguments = {key: value for key, value in given.items() if key != "type"}
        if Registrable._registry.get(cls) is not None:
            names = cls.list_available()
            name = given.get("type", cls.default_implementation)
            if name not in names:
                if self._here and "." not in str(name):
                    raise _unknown_type(name, names, path)
                return
            found, constructor = cls.resolve_class_name(name)
        own_way = getattr(getattr(found, "from_params", None), "__func__", None)
        if own_way is Registrable.from_params.__func__ and "_pretrained" not in given:  # type: ignore
            self.section(found, constructor, arguments, f"{path}.")

    def _wrong(self, path: str, expected: str, given: Any, advice: str = "") -> None:
        if self._here:
            raise ConfigurationError(f"{wrong_type(path, expected, given)}{advice}")


def _takes_null(annotation: Any) -> bool:
    return annotation is Any or type(None) in get_args(annotation)


def _is_own(cls: Any) -> bool:
    return str(getattr(cls, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]


def _unknown_type(name: Any, names: List[str], path: str) -> ConfigurationError:
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    said = f"there is no {name!r}." if name is not None else "it is missing."
    return ConfigurationError(
        f"{path}.type: {said}"
        + (f" Is it {near[0]}?" if near else "")
        + f" Expected one of {', '.join(names)}; for others, name their package with "
        "--include-package."
    )


def wrong_type(path: str, expected: str, given: Any) -> ConfigurationError:
    """What to say of a value of another type than it must have."""
    return ConfigurationError(f"{path}: expected {expected}, got {given!r:.80}.")


def expected_of(annotation: Any) -> Optional[str]:
    """What a plain type is called; `None` for types that are built from sections of a config."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Union:
        parts = [expected_of(argument) for argument in arguments]
        if all(part is not None for part in parts):
            return " or ".join(dict.fromkeys(part for part in parts if part is not None))
        return None
    if origin in (list, tuple, set) and arguments:
        parts = [expected_of(argument) for argument in arguments if argument is not Ellipsis]
        return None if None in parts else f"a list ({', '.join(map(str, parts))} each)"
    if origin is dict and len(arguments) == 2 and expected_of(arguments[1]):
        return f"an object of which each value is {expected_of(arguments[1])}"
    return None


def of_construction(error: BaseException) -> Optional[str]:
    """The key, the class and the error, where a class was being built; `None` for others'."""
    for cls, params in reversed(list(_being_built(error.__traceback__))):
        if not str(getattr(cls, "__module__", "")).startswith(_KNOWN):
            return None
        path = params.history.rstrip(".") or "The config"
        return (
            f"ConfigurationError: {path}: no {cls.__name__} can be built from it: "
            f"{type(error).__name__}: {first_line(error):.300}"
        )
    return _of_first_step(error)


def _of_first_step(error: BaseException) -> Optional[str]:
    """What no batch has got through yet; a later error may be a fault of the program."""
    found = list(_locals(error.__traceback__))
    trainer = next((value for value in found if isinstance(value, GradientDescentTrainer)), None)
    if (
        trainer is None
        or trainer._total_batches_completed
        or not isinstance(trainer.model, LanguageModel)
    ):
        return None
    names = {id(module): name for name, module in trainer.model.named_modules() if name}
    path = "trainer"
    for value in found:
        if id(value) in names:
            # A module is kept under about the key that its config has.
            keys = [key.lstrip("_") for key in names[id(value)].split(".") if key != "_module"]
            path = ".".join(["model", *keys]).replace(".token_embedder_", ".token_embedders.")
    return (
        f"ConfigurationError: {path}: no step can be made with it: {type(error).__name__}: "
        f"{first_line(error):.300} (ALLENNLP_DEBUG=1 shows where.)"
    )


def _locals(trace: Optional[TracebackType]) -> Iterator[Any]:
    while trace is not None:
        yield from trace.tb_frame.f_locals.values()
        trace = trace.tb_next


def with_its_place(error: ConfigurationError) -> str:
    """The message of an error in a section of ours, with the section's key if it names none."""
    message = str(error)
    for cls, params in reversed(list(_being_built(error.__traceback__))):
        path = params.history.rstrip(".")
        return f"{path}: {message}" if path and path not in message and _is_own(cls) else message
    return message


def _being_built(trace: Optional[TracebackType]) -> Iterator[Tuple[Any, Params]]:
    while trace is not None:
        code, local = trace.tb_frame.f_code, trace.tb_frame.f_locals
        if code.co_name in ("from_params", "create_kwargs") and Path(code.co_filename).parts[
            -2:
        ] == ("common", "from_params.py"):
            cls, params = local.get("cls"), local.get("params")
            if isinstance(cls, type) and isinstance(params, Params):
                yield cls, params
        trace = trace.tb_next


def of_device(error: BaseException) -> bool:
    """Whether an error is torch's, or AllenNLP's, of a GPU that isn't there."""
    text = str(error)
    return (
        isinstance(error, (RuntimeError, AssertionError))
        and not torch.cuda.is_available()
        and (
            "accelerator device when none is available" in text
            or "no NVIDIA driver" in text.replace("Found ", "")
            or "not compiled with CUDA" in text
            or "available GPUs" in text
        )
    )
