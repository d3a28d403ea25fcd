"""What all job kinds check of their fields. Torch-free."""

from __future__ import annotations

import re
from typing import Any

from peftseg.errors import BadInput, unknown_name
from peftseg.models import Structure

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    """A name among the valid ones."""
    if value not in valid:
        raise unknown_name(name, str(value), valid)


def check_common(job: Any) -> None:
    """Device, precision and the file to write: what many kinds have."""
    check_choice("precision", getattr(job, "precision", "fp32"), PRECISIONS)
    if not _DEVICE.fullmatch(job.device):
        raise BadInput(f"Unknown device '{job.device}'; valid: auto, cpu, cuda, cuda:n, mps.", "Choose a valid device.")
    if not getattr(job, "out", "nothing is written"):
        raise BadInput("The job does not say where to write its result.", "Give an output path.")
    if getattr(job, "seed", 0) < 0:
        raise BadInput(f"seed is {job.seed}; expected 0 or more.", "Choose another seed.")


def check_source(job: Any, what: str) -> None:
    """An adapter or a model, and not both."""
    if (job.adapter is None) == (job.model is None):
        raise BadInput(
            f"{what} takes an adapter or a model, got {job.adapter!r} and {job.model!r}.", "Give one of them."
        )


def check_amount(job: Any) -> None:
    """Time limit and number of epochs."""
    if job.budget_minutes is not None and not job.budget_minutes > 0:
        raise BadInput(f"budget_minutes is {job.budget_minutes}; expected more than 0.", "Give more time, or none.")
    if job.epochs is not None and job.epochs < 1:
        raise BadInput(f"epochs is {job.epochs}; expected 1 or more.", "Give a larger number.")


def check_structures(structures: tuple[Structure, ...]) -> None:
    """At least one structure, each name and value once."""
    if not structures:
        raise BadInput("No structure was given.", "Name at least one structure and its label value.")
    for attribute in ("name", "value"):
        values = [getattr(s, attribute) for s in structures]
        twice = sorted({str(v) for v in values if values.count(v) > 1})
        if twice:
            raise BadInput(f"Structures share the {attribute} {', '.join(twice)}.", f"Give each its own {attribute}.")
    for structure in structures:
        if not structure.name or not 1 <= structure.value <= 65535:
            raise BadInput(
                f"Structure '{structure.name}' has the value {structure.value}; expected a name and 1 to 65535.",
                "Correct the structure.",
            )
