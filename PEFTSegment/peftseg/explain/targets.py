"""Which voxels a Grad-CAM explains. Torch-free, for job files."""

from __future__ import annotations

from dataclasses import dataclass

from peftseg.errors import BadInput, unknown_name

TARGETS = ("predicted", "truth", "point", "region", "all")


@dataclass(frozen=True)
class Target:
    """Which voxels the structure's score is summed over.

    Attributes
    ----------
    kind : str
        "predicted" (as the structure), "truth" (its labels), "point", "region" (a box), or "all".
    point : tuple of float or None
        RAS mm; for "point".
    region : tuple of float or None
        Two opposite corners of the box, RAS mm, one after the other; for "region".
    """

    kind: str = "predicted"
    point: tuple[float, float, float] | None = None
    region: tuple[float, float, float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in TARGETS:
            raise unknown_name("target", str(self.kind), TARGETS)
        for kind, value, count in (("point", self.point, 3), ("region", self.region, 6)):
            if (self.kind == kind) != (value is not None) or (value is not None and len(value) != count):
                raise BadInput(
                    f"The target '{self.kind}' has {kind} {value}; expected {count} numbers (RAS, mm) for the target "
                    f"'{kind}', and none otherwise.",
                    "Correct the target.",
                )
