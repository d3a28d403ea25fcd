"""Which GPU is here, and which builds of torch can use it. No torch, no slicer: nvidia-smi and two tables.

Sources of the tables: pytorch/pytorch RELEASE.md "PyTorch CUDA Support Matrix" as of 2.9, 2.11 and 2.12 (pull requests
164471, 175253, 182849), issue 190355 for 2.14, .ci/manywheel/build_cuda.sh for 2.8; for Linux on x86-64 and Windows.
A build's code for capability X.y runs on GPUs X.z with z >= y (CUDA programming guide, binary compatibility).
Drivers: NVIDIA's CUDA Compatibility, table 1 (12.x from 525, 13.x from 580).
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace

SMI_PATIENCE_S = 10
QUERIES = ("name,driver_version,memory.total,memory.free,compute_cap", "name,driver_version,memory.total,memory.free")
OLDEST_DRIVER = {12: 525, 13: 580}
NEW_DRIVER = 580
_FULL = (7.5, 8.0, 8.6, 9.0, 10.0, 12.0)


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU: capability (major, minor) or None where the driver does not tell; memory in MiB."""

    name: str
    driver: str
    memory_mib: int
    free_mib: int
    capability: tuple[int, int] | None = None


@dataclass(frozen=True)
class Architectures:
    """What builds of torch hold, from one version to another (both included); `unsure`: where the sources disagree."""

    cuda: str
    first: tuple[int, int]
    last: tuple[int, int]
    supported: tuple[float, ...]
    unsure: tuple[float, ...] = ()
    newer_unsure: bool = True  # some builds also hold code that newer GPUs translate


BUILDS = (
    Architectures("12.6", (2, 8), (2, 10), (5.0, 6.0, 7.0, 7.5, 8.0, 8.6, 9.0), newer_unsure=False),
    # The matrix still lists Hopper (9.0), a comment of the build script of 2.11 says that it was taken out.
    Architectures("12.6", (2, 11), (2, 14), (5.0, 6.0, 7.0, 7.5, 8.0, 8.6), unsure=(9.0,), newer_unsure=False),
    Architectures("12.8", (2, 8), (2, 10), (7.0, *_FULL)),
    Architectures("12.8", (2, 11), (2, 11), _FULL),
    Architectures("12.9", (2, 8), (2, 8), (7.0, *_FULL)),
    Architectures("13.0", (2, 9), (2, 14), _FULL),
    Architectures("13.2", (2, 12), (2, 14), _FULL),
)


def probe_gpus(program: str = "nvidia-smi") -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that the driver's own program lists; empty without program, driver or GPU.

    It takes up to a second (at most `SMI_PATIENCE_S`): call it from a thread where that matters.
    """
    found = shutil.which(program)
    if found is None or sys.platform == "darwin":
        return ()
    for query in QUERIES:  # drivers of 2021 and older do not know the last field
        rows = _run_smi(found, query)
        if rows is not None:
            return tuple(gpu for gpu in map(_gpu, rows) if gpu is not None)
    return ()


def _run_smi(program: str, query: str) -> list[list[str]] | None:
    command = [program, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    flags = subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SMI_PATIENCE_S, creationflags=flags
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    return [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines()) if row]


def _gpu(row: list[str]) -> Gpu | None:
    if len(row) < 4:
        return None
    name, driver, total, free, *rest = row
    parts = rest[0].split(".") if rest else []
    capability = (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(p.isdigit() for p in parts) else None
    return Gpu(name, driver, _number(total), _number(free), capability)


def _number(text: str) -> int:
    """MiB; 0 where the driver says "[N/A]"."""
    return int(text) if text.isdigit() else 0


def runs_on(cuda: str, torch_version: str, gpu: Gpu, machine: str = "x86_64") -> bool | None:
    """Whether a build of torch holds code for a GPU and its driver suffices; None: not known, the first run shows it.

    Parameters
    ----------
    cuda : str
        The build's CUDA version, "12.6".
    torch_version : str
        The version of torch, "2.13.0+cu126".
    gpu : Gpu
    machine : str
        The processor; the tables hold for "x86_64" (on Windows "amd64").
    """
    needed = OLDEST_DRIVER.get(_leading(cuda))
    if needed is not None and 0 < _leading(gpu.driver) < needed:
        return False
    numbers = [int(p) for p in torch_version.split("+", maxsplit=1)[0].split(".")[:2] if p.isdigit()]
    row = next((r for r in BUILDS if r.cuda == cuda and r.first <= tuple(numbers) <= r.last), None)
    if row is None or gpu.capability is None or machine not in ("x86_64", "amd64"):
        return None
    if any(_covers(architecture, gpu.capability) for architecture in row.supported):
        return True
    if any(_covers(architecture, gpu.capability) for architecture in row.unsure):
        return None
    newer = gpu.capability > _pair(max(row.supported + row.unsure))
    return None if newer and row.newer_unsure else False


def recommended_cuda(gpu: Gpu) -> str | None:
    """CUDA version of the build to install for a GPU: "12.6" for old GPUs or drivers, "13.0"; None: no build runs there.

    Where the driver does not tell the capability, its version decides.
    """
    driver = _leading(gpu.driver)
    capability = gpu.capability or ((7, 5) if driver >= NEW_DRIVER else (7, 0))
    if driver >= NEW_DRIVER and capability >= (7, 5):
        return "13.0"
    if driver >= OLDEST_DRIVER[12] and (5, 0) <= capability < (9, 0):
        return "12.6"
    return None


def driver_helps(gpu: Gpu) -> bool:
    """Whether no build runs on a GPU only because its driver is too old."""
    return recommended_cuda(gpu) is None and recommended_cuda(replace(gpu, driver=str(NEW_DRIVER))) is not None


def _covers(architecture: float, capability: tuple[int, int]) -> bool:
    major, minor = _pair(architecture)
    return major == capability[0] and minor <= capability[1]


def _pair(architecture: float) -> tuple[int, int]:
    return int(architecture), round(architecture * 10) % 10


def _leading(version: str) -> int:
    head = version.split(".", maxsplit=1)[0]
    return int(head) if head.isdigit() else 0
