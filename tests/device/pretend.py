"""
A device that is pretended, for tests on machines that have none.

Its tensors say that they are on `DEVICE` and are computed on the CPU. What would fail on a real
device fails here: an operation with tensors of both. What would make the host wait for the device
is counted (`waits`), and so is each operation that a device would be sent (`launches`), each under
the line of the package that asked for it.

It shows neither speed nor the numerics of any device. Some of PyTorch's operations choose their way
by the device, and have stand-ins here that go a GPU's way: attention and dropout in one operation,
casts under autocast, and Adam's one kernel for all tensors.
"""

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Tuple
from unittest import mock

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from transformer_elmo.nn.kernels import optimizers as adam

# The one device besides the CPU that every PyTorch can name without a driver.
DEVICE = torch.device("meta")

aten = torch.ops.aten

waits: "Counter[str]" = Counter()
launches: "Counter[str]" = Counter()

_WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# PyTorch tags it as none of these, but how many rows are left is for the host to know.
_WAITING = {aten._coalesce.default}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
# Neither computes anything.
_IDLE = {
    *(aten.detach.default, aten.empty_like.default, aten.new_empty.default, aten.alias.default),
    *(aten.empty.memory_format, aten._indices.default, aten._values.default, aten.resize_.default),
    *(aten.is_coalesced.default, aten._coalesced_.default, aten.sparse_dim.default),
    *(aten.dense_dim.default, aten._nnz.default, aten._unsafe_view.default, aten.split.Tensor),
    aten._sparse_coo_tensor_with_dims_and_tensors.default,
}


class PretendTensor(torch.Tensor):
    """A tensor on `DEVICE`. `held` is where its numbers are, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> "PretendTensor":
        layout: Dict[str, Any] = {}
        if real.layout == torch.strided:
            layout = {"strides": real.stride(), "storage_offset": real.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.size(), dtype=real.dtype, layout=real.layout, device=DEVICE, **layout
        )
        made.held = real
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (self.held,)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):  # type: ignore[override]
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        elsewhere = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
        copies = function in (aten.copy_.default, aten._to_copy.default)
        indices = function in _INDEXING
        if any(tensor.dim() for tensor in elsewhere) and not (copies or indices):
            raise RuntimeError(f"{function} mixes devices, at {_asked_by()}")

        to_cpu = copies and not isinstance(args[0], PretendTensor)
        if kwargs.get("device") is not None:
            to_cpu = torch.device(kwargs["device"]).type == "cpu" and bool(tensors)
            kwargs["device"] = torch.device("cpu")
        if indices and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in tree_leaves(args[1])
        ):
            waits[f"boolean index at {_asked_by()}"] += 1
        asks = function in _WAITING or bool(_WAITING_TAGS & set(function.tags))
        if to_cpu or (asks and not indices):
            waits[f"{'copy to the CPU' if to_cpu else function} at {_asked_by()}"] += 1
        elif function not in _IDLE and not _is_view(function):
            launches[f"{function} at {_asked_by()}"] += 1

        wrapped = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, cls)}
        result = function(*_real(args), **_real(kwargs))
        if to_cpu:
            return args[0] if function is aten.copy_.default else result
        # What an operation changes in place is what it gives back.
        return tree_map_only(
            torch.Tensor, lambda t: wrapped[id(t)] if id(t) in wrapped else cls(t), result
        )


def _real(value: Any) -> Any:
    return tree_map_only(PretendTensor, lambda tensor: tensor.held, value)


def _is_view(function: Any) -> bool:
    returns = function._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _asked_by() -> str:
    frame: Any = sys._getframe(1)
    while frame is not None and "/transformer_elmo/" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return "a backward pass"
    return f"{frame.f_code.co_filename.rpartition('/transformer_elmo/')[2]}:{frame.f_lineno}"


def moved(thing: Any, device: torch.device = DEVICE) -> Any:
    """A module (in place), or tensors, alone or in containers, on a device."""
    if isinstance(thing, torch.nn.Module):
        return thing.to(device)
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), thing)


class _Arrivals(TorchDispatchMode):
    """What is made on the device, or copied to it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is None or torch.device(device).type != DEVICE.type:
            return function(*args, **kwargs)
        if any(isinstance(leaf, PretendTensor) for leaf in tree_leaves(args)):
            return function(*args, **kwargs)
        launches[f"{function} at {_asked_by()}"] += 1
        made = function(*args, **{**kwargs, "device": torch.device("cpu")})
        return tree_map_only(torch.Tensor, PretendTensor, made)


class _HostAsks(TorchFunctionMode):
    """What no dispatcher sees of what the host wants to know."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name == "pin_memory":
            # There is nothing to pin it for.
            return args[0]
        if name in ("tolist", "numpy") and isinstance(args[0], PretendTensor):
            waits[f"{name} at {_asked_by()}"] += 1
            return function(args[0].held, *args[1:], **(kwargs or {}))
        return function(*args, **(kwargs or {}))


_stock_attention: Any = F.scaled_dot_product_attention


def _attention(*heads: Any, is_causal: bool, dropout_p: float) -> Any:
    if isinstance(heads[0], PretendTensor):
        # PyTorch's one operation for it on a CPU knows no dropout.
        return aten._scaled_dot_product_flash_attention_for_cpu(*heads, 0.0, is_causal)[0]
    return _stock_attention(*heads, is_causal=is_causal, dropout_p=dropout_p)


def _dropout(tensor: Any, p: float, training: bool, inplace: bool = False) -> Any:
    return torch.native_dropout(tensor, p, training)[0] if training and p else tensor


PRODUCTS = ("mm", "bmm", "matmul", "addmm", "baddbmm", "mv")

# Whether the device's autocast is on, and to which type.
_autocasts: List[Tuple[bool, torch.dtype]] = [(False, torch.bfloat16)]
_stock_autocast: Any = torch.autocast


@contextmanager
def _autocast(device_type: str, dtype: Any = None, enabled: bool = True) -> Iterator[None]:
    if device_type != DEVICE.type:
        with _stock_autocast(device_type, dtype=dtype, enabled=enabled):
            yield
        return
    _autocasts.append((enabled, dtype or _autocasts[-1][1]))
    try:
        yield
    finally:
        _autocasts.pop()


def _casting(function: Callable[..., Any]) -> Callable[..., Any]:
    """What autocast makes of a product."""

    def call(*args: Any, **kwargs: Any) -> Any:
        enabled, dtype = _autocasts[-1]
        if enabled:
            args = tree_map_only(PretendTensor, lambda tensor: tensor.to(dtype), args)
        return function(*args, **kwargs)

    return call


def _asking(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    def ask(*args: Any) -> Any:
        return _autocasts[-1][number] if args == (DEVICE.type,) else function(*args)

    return ask


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """The device, as long as the block lasts; `waits` and `launches` begin at zero."""
    waits.clear()
    launches.clear()
    stand_ins: List[Tuple[Any, str, Any]] = [
        (torch, "is_autocast_enabled", _asking(torch.is_autocast_enabled, 0)),
        (torch, "get_autocast_dtype", _asking(torch.get_autocast_dtype, 1)),
        (torch, "autocast", _autocast),
        (F, "scaled_dot_product_attention", _attention),
        (F, "dropout", _dropout),
        (F, "linear", _casting(F.linear)),
        (adam, "FUSED_DEVICES", (*adam.FUSED_DEVICES, DEVICE.type)),
        *((torch, name, _casting(getattr(torch, name))) for name in PRODUCTS),
    ]
    with ExitStack() as stack:
        for owner, name, stand_in in stand_ins:
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(_Arrivals())
        stack.enter_context(_HostAsks())
        yield DEVICE
