"""torch by the extension PyTorch: by the light-the-torch that it brings, in a process of its own.

`PyTorchUtilsLogic.installTorch` blocks the GUI and imports torch into Slicer; it is the way out where the extension is too
old for the other. `torchInstalled` imports torch too, and raises TypeError after an interrupted installation: not called.
"""

from __future__ import annotations

import inspect

from .environment import TORCH
from .install_steps import Step


def light_the_torch_arguments(step: Step) -> list[str] | None:
    """Arguments of the light-the-torch that the extension PyTorch brings; None where the extension is too old for it.

    Asking the extension for its backends makes it install light-the-torch, which takes seconds.
    """
    import PyTorchUtils

    logic = PyTorchUtils.PyTorchUtilsLogic()
    if not hasattr(logic, "getCompatibleComputationBackends"):
        return None
    known = inspect.signature(logic.getCompatibleComputationBackends).parameters
    wanted = {"torchVersionRequirement": str(TORCH.specifier)}
    try:
        backends = logic.getCompatibleComputationBackends(**{k: v for k, v in wanted.items() if k in known})
    except ValueError:  # it found none for this computer; light-the-torch then says why
        backends = []
    build = step.options[0]
    offered = {str(backend) for backend in backends}  # objects of light-the-torch that print as "cu126"
    chosen = [f"--pytorch-computation-backend={build}"] if build in offered else []
    return ["install", *step.requirements, "--no-input", *chosen]


def install_torch_by_extension() -> None:
    """Have an older extension PyTorch install torch: the GUI waits, and torch is imported into Slicer by it."""
    import PyTorchUtils

    logic = PyTorchUtils.PyTorchUtilsLogic()
    known = inspect.signature(logic.installTorch).parameters
    wanted = {"askConfirmation": False, "torchVersionRequirement": str(TORCH.specifier)}
    if logic.installTorch(**{key: value for key, value in wanted.items() if key in known}) is None:
        raise RuntimeError("the extension PyTorch did not install torch")
