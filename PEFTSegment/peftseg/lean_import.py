"""MONAI without the packages that it imports where they are installed, though nothing here needs them. Torch-free.

`import monai` imports all of MONAI, and with it whatever optional package it finds, transformers with its thousand modules
among them, in every job. MONAI works without them. Only for processes of our own (`python -m peftseg`): in another program
somebody may want the parts of MONAI that need these packages.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# Optional for MONAI, and used by no part of it that the engine calls. They can be imported once MONAI is there.
UNUSED = (
    "huggingface_hub",
    "ignite",
    "itk",
    "matplotlib",
    "pandas",
    "PIL",
    "scipy.signal",
    "skimage",
    "sklearn",
    "tensorboard",
    "tensorboardX",
    "torchvision",
    "transformers",
)


class _Lean(Loader):
    """Loads MONAI while the unused packages cannot be found."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        hidden = [name for name in UNUSED if name not in sys.modules]
        sys.modules.update(dict.fromkeys(hidden))  # None: importing it raises ModuleNotFoundError
        module.__spec__.loader = module.__loader__ = self.inner
        try:
            self.inner.exec_module(module)
        finally:
            for name in hidden:
                sys.modules.pop(name, None)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "monai":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Lean(spec.loader)
        return spec


def import_monai_lean() -> None:
    """From now on MONAI, once it is imported, comes without `UNUSED`; without effect where it is there already."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
