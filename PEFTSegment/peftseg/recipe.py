"""Which preprocessing an adaptation uses: the base model's, unless the support set does not fit it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from peftseg.axis_map import orient_to
from peftseg.errors import BadInput
from peftseg.models import NNUNET_KINDS, Intensity, Preprocessing
from peftseg.volume import Volume

SPACING_FACTOR = 1.5
FEWEST_VOXELS = 100
SAME = 0.01  # relative difference of spacings that counts as none
AIR_SHARE = 0.001
LOWEST_HU = -3100.0  # scanners pad with values down to -3024
PERCENTILE_SAMPLES = 2_000_000
AXIS_NAMES = dict(zip("RLAPSI", ("left-right",) * 2 + ("front-back",) * 2 + ("head-foot",) * 2, strict=True))


@dataclass(frozen=True)
class SupportFacts:
    """What is known about one support scan before preprocessing.

    Attributes
    ----------
    spacing : tuple of float
        mm, along the axes of the recipe's orientation.
    shape : tuple of int
        Voxels, along the same axes.
    minimum, maximum, p1, p50, p99 : float
        Grey values and their percentiles, over all voxels.
    share_below_minus_200 : float
        Share of voxels below -200: air in a CT.
    volumes_mm3 : dict
        Volume in mm3 of each structure that is labelled and present, by name.
    """

    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    minimum: float
    maximum: float
    p1: float
    p50: float
    p99: float
    share_below_minus_200: float
    volumes_mm3: Mapping[str, float] = field(default_factory=dict)


def support_facts(volume: Volume, masks: Mapping[str, np.ndarray], orientation: str) -> SupportFacts:
    """Measure one support scan.

    Parameters
    ----------
    volume : Volume
    masks : mapping of str to bool array (I, J, K)
        Labelled structures by name; empty masks are left out.
    orientation : str
        The recipe's, e.g. "RAS".
    """
    axes, _ = orient_to(volume.grid, orientation)
    values = volume.array.ravel()
    sample = values[:: max(1, values.size // PERCENTILE_SAMPLES)]
    p1, p50, p99 = (float(p) for p in np.percentile(sample, [1, 50, 99]))
    voxel = float(abs(np.linalg.det(volume.grid.affine[:3, :3])))
    counts = {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}
    return SupportFacts(
        spacing=tuple(float(volume.grid.spacing[a]) for a in axes),
        shape=tuple(int(volume.grid.shape[a]) for a in axes),
        minimum=float(values.min()),
        maximum=float(values.max()),
        p1=p1,
        p50=p50,
        p99=p99,
        share_below_minus_200=float(np.mean(sample < -200)),
        volumes_mm3={name: count * voxel for name, count in counts.items() if count},
    )


def choose_recipe(base: Preprocessing, support: Sequence[SupportFacts]) -> tuple[Preprocessing, list[str]]:
    """The base's preprocessing, changed where the support set does not fit it.

    An axis of which the support set's median spacing differs more than 1.5 times from the base's takes the support
    set's; so do the axes that are coarser than the support set's when a structure would keep under 100 voxels. Grey
    values unlike the base's take the support set's normalisation.

    Parameters
    ----------
    base : Preprocessing
    support : sequence of SupportFacts
        At least one, measured along the axes of `base.orientation`.

    Returns
    -------
    recipe : Preprocessing
    changes : list of str
        One plain sentence a change, with the reason; empty when the base's recipe is kept.

    Raises
    ------
    BadInput
        There is no support scan.
    """
    if not support:
        raise BadInput("There is no support scan to choose the preprocessing from.", "Add at least one labelled scan.")
    spacing, changes = _choose_spacing(base, support)
    intensity, reasons = _choose_intensity(base.intensity, support)
    return replace(base, spacing=spacing, intensity=intensity), changes + reasons


def _choose_spacing(
    base: Preprocessing, support: Sequence[SupportFacts]
) -> tuple[tuple[float, float, float], list[str]]:
    own = tuple(round(float(m), 6) for m in np.median([facts.spacing for facts in support], axis=0))
    spacing, changes = list(base.spacing), []
    for axis, (model, scans) in enumerate(zip(base.spacing, own, strict=True)):
        if max(scans / model, model / scans) > SPACING_FACTOR:
            spacing[axis] = scans
            changes.append(
                f"The voxel size along {_axis_name(base, axis)} is {scans:.4g} mm, the support scans', instead of the "
                f"model's {model:.4g} mm, because they differ more than {SPACING_FACTOR} times."
            )
    name, volume = _smallest(support)
    kept = volume / float(np.prod(spacing))
    if kept >= FEWEST_VOXELS:
        return tuple(spacing), changes
    for axis, scans in enumerate(own):
        if scans < spacing[axis] * (1 - SAME):
            changes.append(
                f"The voxel size along {_axis_name(base, axis)} is {scans:.4g} mm, the support scans', instead of the "
                f"model's {spacing[axis]:.4g} mm, because '{name}' would keep only about {kept:.0f} voxels."
            )
            spacing[axis] = scans
    return tuple(spacing), changes


def _axis_name(base: Preprocessing, axis: int) -> str:
    code = base.orientation[axis]
    return f"the {AXIS_NAMES[code]} axis" if code in AXIS_NAMES else f"the scan's axis {code}"


def _smallest(support: Sequence[SupportFacts]) -> tuple[str, float]:
    """Name and median volume in mm3 of the smallest structure; infinite without any structure."""
    names = {name for facts in support for name in facts.volumes_mm3}
    medians = {n: float(np.median([f.volumes_mm3[n] for f in support if n in f.volumes_mm3])) for n in names}
    return min(sorted(medians.items()), key=lambda item: item[1], default=("", np.inf))


def _looks_like_ct(facts: SupportFacts) -> bool:
    """Air in Hounsfield units, and nothing below what CT scanners write."""
    return facts.share_below_minus_200 > AIR_SHARE and facts.minimum >= LOWEST_HU


def _misses_window(facts: SupportFacts, intensity: Intensity) -> bool:
    """Whether a window would leave hardly any contrast, or hardly any of the scan."""
    low, high = max(facts.p1, intensity.low), min(facts.p99, intensity.high)
    inside = max(0.0, high - low)
    return inside < 0.05 * (intensity.high - intensity.low) or inside < 0.02 * (facts.p99 - facts.p1)


def _choose_intensity(base: Intensity, support: Sequence[SupportFacts]) -> tuple[Intensity, list[str]]:
    if base.kind in ("nonzero_range", *NNUNET_KINDS):
        return base, []  # follows each scan, whatever its scale; "none" means the scanner's own values
    ct = 2 * sum(_looks_like_ct(f) for f in support) > len(support)
    if base.kind != "window":
        return _window_of(base, support) if ct else (base, [])
    missed = 2 * sum(_misses_window(f, base) for f in support) > len(support)
    if ct and not missed:
        return base, []
    calibrated = base.low < 0
    positive = 2 * sum(f.minimum >= 0 for f in support) > len(support)
    if not missed and not (calibrated and positive):
        return base, []
    if ct:
        return _window_of(base, support)
    why = (
        "they have no negative values, so they are no CT in Hounsfield units"
        if positive and calibrated
        else f"the model's window from {base.low:g} to {base.high:g} would clip nearly everything"
    )
    return Intensity("zscore"), [
        "Grey values are scaled to mean 0 and standard deviation 1 of each scan, instead of the model's window from "
        f"{base.low:g} to {base.high:g}, because the support scans are unlike the model's: {why}."
    ]


def _window_of(base: Intensity, support: Sequence[SupportFacts]) -> tuple[Intensity, list[str]]:
    """A window that all support scans share: their values are calibrated."""
    low = max(-1000.0, float(np.median([f.p1 for f in support])))
    high = max(low + 100.0, float(np.median([f.p99 for f in support])))
    low, high = float(round(low)), float(round(high))
    # A base that expects mean 0 and standard deviation 1 gets about that range.
    out = (-2.0, 2.0) if base.kind == "zscore" else (base.out_low, base.out_high)
    return Intensity("window", low, high, *out), [
        f"Grey values are clipped to the window from {low:g} to {high:g}, instead of the model's "
        f"{_in_words(base)}, because the support scans look like CT in Hounsfield units."
    ]


def _in_words(intensity: Intensity) -> str:
    if intensity.kind == "window":
        return f"window from {intensity.low:g} to {intensity.high:g}"
    return "scaling to mean 0 and standard deviation 1" if intensity.kind == "zscore" else "scaling by percentiles"
