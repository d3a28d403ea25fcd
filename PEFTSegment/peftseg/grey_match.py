"""A site's grey values brought to those that the base learnt from, by one rising curve for all of its scans. Torch-free.

Histogram matching by landmarks (Nyul, Udupa and Zhang, "New variants of a method of MRI scale standardization", IEEE TMI
19(2), 2000), here with the quantiles that `site_statistics` keeps of a base's training scans, and with one curve a site: it is
the scanner's, and a curve for each scan would take away what differs between patients, too. The curve becomes part of
the adapter's preprocessing (`models.Intensity.curve`).

Scans that show another part of the body, or less of it, have other quantiles for that reason, and matching harms them. So a
curve is tried, and kept only where the base's own results get no worse by it (`site_matching`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftseg.scan_statistics import GREY
from peftseg.site_statistics import ScanStatistics, SiteStatistics

Curve = tuple[tuple[float, float], ...]
USUAL_SPREADS = 2.0  # so far from the mean, every quantile is as usual
NARROWEST = 0.001  # of the range of the quantiles: two that are closer are one knot
STEEPEST = 3.0  # times the overall slope: the curve does not rise faster beyond the outer quantiles
BEYOND = 10.0  # ranges: the outer knots, which say how it goes on


def site_curve(scans: Sequence[ScanStatistics], source: SiteStatistics) -> Curve | None:
    """The curve from the mean quantiles of the scans to those of the source.

    Parameters
    ----------
    scans : sequence of ScanStatistics
        Of the site, measured with the base's preprocessing.
    source : SiteStatistics
        Of the base's training scans.

    Returns
    -------
    tuple of pairs or None
        See `models.Intensity.curve`. None where the scans are as usual, or the source is not known or one grey value.
    """
    if GREY not in source.means or not scans:
        return None
    wanted = source.means[GREY]
    found = np.mean([scan.features[GREY] for scan in scans], axis=0)
    if (np.abs(found - wanted) <= USUAL_SPREADS * source.spreads[GREY]).all():
        return None
    width, height = found[-1] - found[0], wanted[-1] - wanted[0]
    if width <= 0 or height <= 0:
        return None
    knots = [(found[0], wanted[0])]
    for before, after in zip(found[1:-1], wanted[1:-1], strict=True):
        if before - knots[-1][0] > NARROWEST * width and found[-1] - before > NARROWEST * width:
            knots.append((before, after))
    knots.append((found[-1], wanted[-1]))
    first, last = (min(_slope(*pair), STEEPEST * height / width) for pair in (knots[:2], knots[-2:]))
    far = BEYOND * width
    below, above = (found[0] - far, wanted[0] - far * first), (found[-1] + far, wanted[-1] + far * last)
    return tuple((float(f"{x:.6g}"), float(f"{y:.6g}")) for x, y in (below, *knots, above))


def _slope(start: tuple[float, float], end: tuple[float, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
