"""The device: which one, how much memory is free, which precision gains, activation checkpointing."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from peftseg.errors import BadInput, OutOfMemory
from peftseg.gpu import supports

if TYPE_CHECKING:
    from peftseg.events import Reporter

T = TypeVar("T")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


MEMORY_SIGNS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "alloc_cpu",
    "status_alloc_failed",  # cuBLAS and cuDNN, where the rest of the GPU's memory does not hold what they need
    "allocation_failed",
)


def choose_device(name: str) -> torch.device:
    """Device for "auto", "cpu", "cuda", "cuda:n" or "mps"; BadInput names what can be used otherwise."""
    gpus = _usable_gpus()
    valid = ["cpu", *gpus] + (["mps"] if torch.backends.mps.is_available() else [])
    if name == "auto":
        return torch.device(gpus[0] if gpus else valid[-1])
    wanted = gpus[0] if name == "cuda" and gpus else name
    if wanted not in valid:
        more = " `peftseg doctor` says why a GPU is not among them." if name.startswith("cuda") else ""
        raise BadInput(
            f"Device '{name}' cannot be used here; available: {', '.join(valid)}.", f"Choose one of these.{more}"
        )
    return torch.device(wanted)


def _usable_gpus() -> list[str]:
    """The GPUs that the driver lets this torch use, and that it was built for; of AMD's all, NVIDIA's rules say nothing."""
    if not torch.cuda.is_available():  # `device_count` also counts those whose driver is too old
        return []
    built = torch.cuda.get_arch_list() if torch.version.cuda else []
    numbers = range(torch.cuda.device_count())
    fitting = [n for n in numbers if not built or supports(built, torch.cuda.get_device_capability(n))]
    return [f"cuda:{n}" for n in fitting]


@lru_cache
def cpu_has_fast_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AVX512-BF16, AMX, or Arm's bf16).

    Read from the processor's own flags; where these cannot be read, the answer is no and fp32 is used.
    """
    info = Path("/proc/cpuinfo")
    if info.is_file():
        flags = info.read_text(errors="replace")
        return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe is not None else False


def choose_precision(device: torch.device, wanted: str = "auto") -> str:
    """Precision that gains on this device: "bf16" on processors and GPUs that have it, "fp16" on GPUs from Volta on, else
    "fp32".

    A wanted precision that the device does not have falls back to fp32.
    """
    if wanted not in ("auto", *PRECISIONS):
        raise BadInput(f"Precision '{wanted}' is not one of auto, {', '.join(PRECISIONS)}.", "Choose one of these.")
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        has_bf16 = capability >= (8, 0)
        if wanted == "auto":  # before 7.0 half precision has no units of its own, and is no faster
            return "bf16" if has_bf16 else "fp16" if capability >= (7, 0) else "fp32"
        return "fp32" if wanted == "bf16" and not has_bf16 else wanted
    if device.type == "cpu" and wanted in ("auto", "bf16"):
        return "bf16" if cpu_has_fast_bf16() else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast to a precision, or nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device (for the processor: available main memory).

    On a GPU with what torch keeps for itself without using it, as after an earlier training.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil

    return psutil.virtual_memory().available


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return any(sign in text for sign in MEMORY_SIGNS)


def release_memory() -> None:
    """Give cached memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _block_modules(network: nn.Module) -> list[nn.Module]:
    """Outermost modules worth recomputing: residual blocks and transformer blocks, else direct children."""
    marks = ("Block", "ConvBlocks", "ResidualBlocks", "DoubleConv", "TwoConv")
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if any(type(child).__name__.endswith(mark) for mark in marks):
                found.append(child)
            else:
                visit(child)

    visit(network)
    return found or list(network.children())


@contextlib.contextmanager
def activation_checkpointing(network: nn.Module) -> Iterator[None]:
    """Recompute the network's blocks in the backward pass instead of storing their activations, inside the context."""
    blocks = _block_modules(network)
    forwards = [block.forward for block in blocks]

    def wrapped(forward):
        def recompute(*inputs):
            return checkpoint(forward, *inputs, use_reentrant=False)

        return recompute

    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = wrapped(forward)
        yield
    finally:
        for block in blocks:
            del block.forward


def fits(run: Callable[[], T]) -> tuple[T] | None:
    """What a run returns, in a tuple; None where the memory did not suffice, which is given back then."""
    try:
        return (run(),)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release_memory()  # outside of the except block: the error's traceback holds the tensors
    return None


def within_memory(run: Callable[[torch.device], T], device: torch.device, what: str, reporter: Reporter) -> T:
    """Run on the device; where its memory does not suffice, on the processor. OutOfMemory where that does not do either."""
    places = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    for place in places:
        done = fits(partial(run, place))
        if done is not None:
            return done[0]
        if place is not places[-1]:
            reporter.warning(f"{what}: the memory of {place} does not suffice; going on with the processor.")
    raise OutOfMemory(
        f"{what} does not fit into memory.", "Close other programs, crop the scan, or use a machine with more memory."
    )
