"""Which NVIDIA GPUs are there, and does the installed torch fit them? Torch-free: judged from facts. See `doctor`."""

from __future__ import annotations

import re
import subprocess
from typing import Any

NVIDIA_SMI = "nvidia-smi"
PATIENCE_S = 20
_FIELDS = "name,driver_version,memory.total,memory.free"
_KERNEL = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
Facts = dict[str, Any]


def nvidia_gpus() -> list[Facts]:
    """What NVIDIA's own tool says: "name", "driver", "memory_gib", "free_gib" of each GPU; [] where it is not there."""
    command = [NVIDIA_SMI, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(done.stdout) if done.returncode == 0 else []


def parse_gpus(text: str) -> list[Facts]:
    """The GPUs in the tool's table, one a line; a number that it does not know ("[N/A]") is None."""
    rows = [[part.strip() for part in line.rsplit(",", 3)] for line in text.splitlines()]
    return [
        {"name": row[0], "driver": row[1], "memory_gib": _gib(row[2]), "free_gib": _gib(row[3])}
        for row in rows
        if len(row) == 4
    ]


def judge_cuda(torch: Facts, nvidia: list[Facts]) -> tuple[bool, str]:
    """Whether torch can use the first NVIDIA GPU, and one sentence: why not and what helps, or what is used.

    Parameters
    ----------
    torch : dict
        "works", "cuda_build" (CUDA version or None), "arch_list" and "cuda" (GPUs with "name" and "capability"), as in
        `doctor.examine`.
    nvidia : list of dict
        As from `nvidia_gpus`.
    """
    seen = nvidia[0] if nvidia else None
    if not torch.get("works"):
        return False, f"There is a GPU ({seen['name']}), but torch does not work." if seen else ""
    if not torch["cuda"]:
        return False, _not_seen(torch, seen)
    gpu, built = torch["cuda"][0], torch.get("arch_list") or []
    capability = gpu.get("capability")
    if capability is None or not built or supports(built, tuple(capability)):
        return True, f"{gpu['name']} can be used."
    older = tuple(capability) < min(_capabilities(built))
    fits = "an older torch, which still supports it" if older else "a newer torch with a newer CUDA"
    return False, (
        f"The GPU {gpu['name']} (compute capability {capability[0]}.{capability[1]}) is {'older' if older else 'newer'} than "
        f"what this torch {torch['version']} was built for ({', '.join(built)}): install {fits}, or compute on the processor."
    )


def supports(arch_list: list[str], capability: tuple[int, int]) -> bool:
    """Whether a torch that was built for these architectures runs on a GPU of this compute capability.

    By NVIDIA's rules: code for a GPU (sm_75) runs on those of the same first number and the same or a higher second one; with
    the letter "a" on that one alone, with "f" on the family; portable code (compute_90) runs on all newer ones, too.
    """
    for kind, major, minor, letter in _kernels(arch_list):
        same = (major, minor) == capability
        later = major == capability[0] and minor <= capability[1]
        portable = kind == "compute" and not letter and (major, minor) <= capability
        if same or portable or (later and letter != "a"):
            return True
    return False


def _not_seen(torch: Facts, seen: Facts | None) -> str:
    if seen is None:
        return "" if torch.get("mps") else "There is no NVIDIA GPU here (or its driver is not installed)."
    if not torch["cuda_build"]:
        return (
            f"There is a GPU ({seen['name']}), but this torch {torch['version']} was built without CUDA: install a torch with "
            "CUDA to use it."
        )
    return (
        f"There is a GPU ({seen['name']}, driver {seen['driver']}), but torch {torch['version']} (CUDA "
        f"{torch['cuda_build']}) cannot use it: update the driver, or install a torch for an older CUDA."
    )


def _kernels(arch_list: list[str]) -> list[tuple[str, int, int, str]]:
    found = [_KERNEL.fullmatch(arch) for arch in arch_list]
    return [(m[1], int(m[2]), int(m[3]), m[4]) for m in found if m]


def _capabilities(arch_list: list[str]) -> list[tuple[int, int]]:
    return [(major, minor) for _, major, minor, _ in _kernels(arch_list)] or [(0, 0)]


def _gib(mebibytes: str) -> float | None:
    try:
        return round(float(mebibytes) / 1024, 1)
    except ValueError:
        return None
