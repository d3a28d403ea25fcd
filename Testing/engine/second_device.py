"""A second device for machines without a GPU: it computes on the processor, and refuses what a GPU refuses. No test itself.

Its tensors are seen by torch as those of another device, with real values inside. An operation on tensors of both devices, a
generator of the wrong one and a direct way to numpy are errors, as they are on a GPU; numbers, such as sizes of kernels
or 0-dimensional tensors, go everywhere, and indices may lie on the processor. Not looked at: speed, memory, rounding,
autocast, and what CUDA's own kernels cannot do.

`install` changes torch for the whole process: only for a process of its own.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

NAME = "second"
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default, aten.copy.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
REAL_GENERATOR = torch.Generator
LIBRARY = torch.library.Library("aten", "IMPL")
GENERATORS: dict[int, bool] = {}  # of which device they are: torch makes new Python objects for them


class There(torch.Tensor):
    """A tensor on the second device."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> There:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> There:
        return There(inner["inner"])

    def __repr__(self) -> str:
        return f"There{tuple(self.shape)}"

    def tolist(self) -> Any:
        with _disable_current_modes():
            return self.inner.tolist()


class SecondDevice(TorchDispatchMode):
    """Inside, tensors may be made on the second device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on the device on which it belongs."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    _check(func, args, tensors)
    kwargs = dict(kwargs)
    there = any(isinstance(x, There) for x in tensors)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == NAME
        kwargs["device"] = torch.device("cpu") if there else kwargs["device"]
    elif func in COPIES[1:]:
        there = isinstance(args[0], There)
    generator = kwargs.get("generator")
    if generator is not None and GENERATORS.get(generator._cdata, False) != there:
        raise RuntimeError("Expected a generator of the device of the numbers that it is to make.")
    with _disable_current_modes():
        result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    for tensor in tensors:
        if _inner(tensor) is result:  # changed in place
            return tensor
    return tree_map(_wrapped, result) if there else result


def _check(func: Any, args: tuple, tensors: list[torch.Tensor]) -> None:
    if func in COPIES or not any(isinstance(x, There) for x in tensors):
        return
    if func in INDEXING:
        tensors = [x for x in (args[0], *args[2:3]) if isinstance(x, torch.Tensor)]
    strangers = [tuple(x.shape) for x in tensors if not isinstance(x, There) and x.ndim]
    if strangers:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {strangers} from the processor.")


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, There) else x


def _wrapped(x: Any) -> Any:
    return There(x) if isinstance(x, torch.Tensor) and not isinstance(x, There) else x


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Generator(REAL_GENERATOR):
    def __new__(cls, device: Any = "cpu") -> _Generator:
        return REAL_GENERATOR.__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        GENERATORS[self._cdata] = torch.device(device).type == NAME


def _empty(size: list[int], stride: list[int], dtype: torch.dtype | None = None, **_: Any) -> There:
    return There(torch.empty_strided(size, stride, dtype=dtype))


def _copy(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _inner(target).copy_(_inner(source))
    return target


def install() -> torch.device:
    """Make the second device known to torch, in this process; returns it."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the same objects, as on a GPU
    torch.Generator = _Generator
    # What wraps a tensor cannot be made in inference mode.
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else contextlib.nullcontext()
    LIBRARY.impl("empty_strided", _empty, "PrivateUse1")  # for lists as indices, which pass all of the above by
    LIBRARY.impl("_copy_from", _copy, "PrivateUse1")
    real_pointer = torch.UntypedStorage.data_ptr

    def pointer(storage: torch.UntypedStorage) -> int:
        try:
            return real_pointer(storage)
        except RuntimeError:  # of a wrapper
            return storage._cdata

    torch.UntypedStorage.data_ptr = pointer
    return torch.device(NAME, 0)
