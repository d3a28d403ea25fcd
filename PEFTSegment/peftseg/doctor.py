"""What is installed here and what works, as a report to paste into a question.

Torch-free; torch is asked in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from peftseg.errors import BadInput
from peftseg.gpu import judge_cuda, nvidia_gpus
from peftseg.models import catalogue
from peftseg.paths import home, owner_only
from peftseg.version import __version__

PACKAGES = (
    "torch",
    "monai",
    "numpy",
    "scipy",
    "SimpleITK",
    "safetensors",
    "psutil",
    "pydicom",
    "highdicom",
    "matplotlib",
)
TORCH_PATIENCE_S = 120
GIB = 1 << 30
_PROBE = """
import json, torch

def free_and_total(i):
    try:
        return [round(n / 2**30, 1) for n in torch.cuda.mem_get_info(i)]
    except RuntimeError:  # a GPU that this torch was not built for, or one that is full
        return [None, round(torch.cuda.get_device_properties(i).total_memory / 2**30, 1)]

print(json.dumps({
    "works": True,
    "version": torch.__version__,
    "threads": torch.get_num_threads(),
    "cuda_build": torch.version.cuda,
    "arch_list": torch.cuda.get_arch_list(),
    "cuda": [
        {"name": torch.cuda.get_device_name(i), "capability": list(torch.cuda.get_device_capability(i)),
         "memory_gib": free_and_total(i)[1], "free_gib": free_and_total(i)[0]}
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)  # else the driver is too old
    ],
    "mps": torch.backends.mps.is_available(),
}))
"""


def examine() -> dict[str, Any]:
    """Facts about this environment as JSON data; nothing of the user's scans, adapters and jobs is in it.

    "nvidia" is what NVIDIA's own tool says, also where torch is missing; "cuda_usable" and "cuda_note" say whether torch can
    use the first GPU, and what to do where it cannot. Memory and disk are in GiB.
    """
    torch, nvidia = _torch(), nvidia_gpus()
    usable, note = judge_cuda(torch, nvidia)
    return {
        "peftseg": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "torch": torch,
        "nvidia": nvidia,
        "cuda_usable": usable,
        "cuda_note": note,
        "memory_gib": _memory(),
        "home": _home(),
        "models": {entry.id: entry.weights_path is not None for entry in catalogue().values()},
    }


def report_text(facts: dict[str, Any]) -> str:
    """The facts of `examine` as lines of text, with what is wrong at the end."""
    torch, folder, memory = facts["torch"], facts["home"], facts["memory_gib"]
    lines = [
        f"PEFTSegment {facts['peftseg']}, Python {facts['python']} ({facts['executable']})",
        f"{facts['platform']}, {facts['processors']} processors",
        f"Memory: {memory['free']} of {memory['total']} GiB free" if memory else "Memory: not known without psutil",
        f"Home folder: {folder['path']}, {folder['free_gib']} GiB free, {'' if folder['writable'] else 'NOT '}writable",
        "Packages: " + ", ".join(f"{name} {version or 'missing'}" for name, version in facts["packages"].items()),
    ]
    if torch["works"]:
        gpus = [f"{gpu['name']} ({gpu['free_gib']} of {gpu['memory_gib']} GiB free)" for gpu in torch["cuda"]]
        gpus += ["Apple GPU (mps)"] if torch["mps"] else []
        lines.append(f"torch {torch['version']} works; {', '.join(gpus) or 'no GPU'}; {torch['threads']} threads")
    else:
        lines.append(f"torch does not work: {torch['error']}")
    lines += [
        f"NVIDIA driver {gpu['driver']}: {gpu['name']} ({gpu['free_gib']} of {gpu['memory_gib']} GiB free)"
        for gpu in facts["nvidia"]
    ]
    lines += [facts["cuda_note"]] if facts["cuda_note"] else []
    here = [f"{name} ({'weights here' if found else 'weights not here'})" for name, found in facts["models"].items()]
    lines.append(f"Models: {', '.join(here) or 'none'}")
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch() -> dict[str, Any]:
    """Ask torch in a process of its own: a broken installation may end the process that imports it."""
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TORCH_PATIENCE_S)
    except subprocess.TimeoutExpired:
        return {"works": False, "error": f"importing it takes longer than {TORCH_PATIENCE_S} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    words = done.stderr.strip().splitlines()
    return {"works": False, "error": words[-1] if words else f"its process ended with code {done.returncode}"}


def _memory() -> dict[str, float] | None:
    try:
        import psutil
    except ImportError:
        return None
    memory = psutil.virtual_memory()
    return {"total": round(memory.total / GIB, 1), "free": round(memory.available / GIB, 1)}


def _home() -> dict[str, Any]:
    folder = home()
    writable = True
    try:
        owner_only(folder)
        probe = folder / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except (OSError, BadInput):
        writable = False
    return {"path": str(folder), "writable": writable, "free_gib": round(_free(folder) / GIB, 1)}


def _free(folder: Path) -> int:
    """Free bytes of the disk on which a folder is, or would be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
