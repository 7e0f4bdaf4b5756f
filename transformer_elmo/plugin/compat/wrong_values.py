"""
What the sections of a config can't be built from, in one message: a value of a wrong type, a key
that isn't there, and whatever else goes wrong inside a class of AllenNLP's, torch's or ours.
"""

import collections.abc
import inspect
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, Optional, Tuple, Union, get_args, get_origin

import torch
from allennlp.common import Params, Registrable, from_params
from allennlp.common.checks import ConfigurationError as AllenNLPError

from transformer_elmo.errors import ConfigurationError, first_line
from transformer_elmo.plugin.keys import parameters_of, unknown_keys
from transformer_elmo.plugin.patches import wrap

_PLAIN = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}

_LISTS = (list, tuple, set, collections.abc.Iterable)

_UNEXPECTED = re.compile(r"unexpected keyword argument '(.*?)'")

# Whose classes are known to say nothing more in a traceback.
_KNOWN = ("allennlp", "transformer_elmo", "torch")


def install() -> None:
    """Wraps the functions."""
    wrap(
        from_params,
        "pop_and_construct_arg",
        _pop_and_construct_arg,
        "values of a wrong type: the key, what was expected and what was given",
    )
    wrap(Params, "assert_empty", _assert_empty, "the nearest right key for one that isn't there")


def _pop_and_construct_arg(
    stock: Callable[..., Any],
    class_name: str,
    argument_name: str,
    annotation: Any,
    default: Any,
    params: Params,
    **extras: Any,
) -> Any:
    given = params.get(argument_name) if argument_name in params else default
    known = argument_name not in extras and argument_name in params
    if known and (
        from_params.can_construct_from_params(annotation) or argument_name == "parameter_groups"
    ):
        _check_lists(annotation, given, f"{params.history}{argument_name}")
    expected = expected_of(annotation)
    if not known or expected is None:
        return stock(class_name, argument_name, annotation, default, params, **extras)
    path = f"{params.history}{argument_name}"
    if given is None and _needs_a_value(class_name, argument_name):
        raise wrong_type(path, expected, given)
    try:
        return stock(class_name, argument_name, annotation, default, params, **extras)
    except (AllenNLPError, TypeError, ValueError, AttributeError):
        raise wrong_type(path, expected, given) from None


def _check_lists(annotation: Any, given: Any, path: str) -> None:
    """
    AllenNLP takes the characters of a string, or the keys of an object, for the items of a list,
    and of a list of fixed length as many as there are.

    # Raises

    `ConfigurationError`
        If something else is given where a list is expected, or a list of another length.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Union:
        arguments = tuple(argument for argument in arguments if argument is not type(None))
        if len(arguments) == 1:
            _check_lists(arguments[0], given, path)
        return
    if isinstance(given, (dict, Params)) and origin is dict and len(arguments) == 2:
        for name, value in given.items():
            _check_lists(arguments[1], value, f"{path}.{name}")
        return
    if origin not in _LISTS or not arguments:
        return
    expected = expected_of(annotation) or "a list"
    if isinstance(given, (str, dict, Params)):
        error = wrong_type(path, expected, given)
        if isinstance(given, str) and given.lstrip().startswith("["):
            error = ConfigurationError(f"{error} Leave out the quotes around the list.")
        raise error
    if not isinstance(given, (list, tuple)):
        return
    of_items = list(arguments)
    if origin is not tuple or Ellipsis in arguments:
        of_items = of_items[:1] * len(given)
    if len(of_items) != len(given):
        raise wrong_type(path, f"a list of {len(of_items)}", list(given))
    for number, (item, value) in enumerate(zip(of_items, given)):
        _check_lists(item, value, f"{path}.{number}")


def wrong_type(path: str, expected: str, given: Any) -> ConfigurationError:
    """What to say of a value of another type than it must have."""
    given = given.as_dict(quiet=True) if isinstance(given, Params) else given
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


def _needs_a_value(class_name: str, argument_name: str) -> bool:
    """Whether a class of this package takes no null for an argument."""
    if class_name not in _own_classes():
        return False
    owner, constructor = _own_classes()[class_name]
    parameters = inspect.signature(getattr(owner, constructor or "__init__")).parameters
    found = parameters.get(argument_name)
    return (
        found is not None
        and found.default is not None
        and type(None) not in get_args(found.annotation)
    )


def _own_classes() -> Dict[str, Any]:
    """The classes of this package that a config can name, by their names."""
    package = __name__.partition(".")[0]
    return {
        entry[0].__name__: entry
        for registry in Registrable._registry.values()
        for entry in registry.values()
        if entry[0].__module__.partition(".")[0] == package
    }


def _assert_empty(stock: Callable[..., None], params: Params, class_name: str) -> None:
    found = _own_classes().get(class_name)
    if params.params and found is not None:
        owner, constructor = found
        raise unknown_keys(
            params.params, parameters_of(getattr(owner, constructor or "__init__")), params.history
        )
    stock(params, class_name)


def of_construction(error: BaseException) -> Optional[str]:
    """
    # Returns

    `str`, optional
        For an error inside a class that was being built from a config: the config's key, the
        class, and the error. `None` for other errors, and for classes of others.
    """
    for cls, params in reversed(list(_being_built(error.__traceback__))):
        if not str(getattr(cls, "__module__", "")).startswith(_KNOWN):
            return None
        path = params.history.rstrip(".") or "The config"
        unexpected = _UNEXPECTED.search(str(error))
        if unexpected is not None and cls.__name__ in _own_classes():
            known = parameters_of(cls.__init__)
            if unexpected[1] not in known:
                return f"ConfigurationError: {unknown_keys([unexpected[1]], known, f'{path}.')}"
        return (
            f"ConfigurationError: {path}: no {cls.__name__} can be built from it: "
            f"{type(error).__name__}: {first_line(error):.300}"
        )
    return None


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
