"""What the scans of one site are like, in a few hundred numbers, and how far a scan is from a site. Torch-free.

Four groups of facts are measured of a scan:

- **grey values**: quantiles of what the network sees, that is after preprocessing;
- **noise and sharpness**: along each axis of the model grid, the logarithms of the median second difference and of the
  95th percentile of the first difference between neighbouring voxels of the scan itself, over its tissue and in units of
  its contrast;
- **voxel size**: logarithms, along the same axes;
- **effect on the model**: mean and variance of every channel that goes into the base's first batch normalisations, measured
  by the base as it is (`site_layers.py`). Bases without such layers do without.

A site keeps of each feature its mean over the site's scans and its spread: the root mean square of what each scan differs
from the mean of the others. Of each layer it keeps mean and variance of the channels, and as spread the same of
`layer_distance`. Few scans tell little about a spread, so `PRIOR_SCANS` scans of a usual spread are thought to be among them.

The **distance** of a scan from a site is the root of the mean, over the groups that both know, of the groups' mean
squared differences in spreads, divided by the same of the site's own scans from the others of them: 1 means as far as the
site's own scans are from each other.

**Several sites** are compared by one spread, that of all of them together (`with_common_spread`): the spread of five scans is
half chance, and the site that seems to vary most would win too often. Testing/bench/site_statistics.py counts it: one real
scanner, six shifts of it and another real site, five scans of each known; of 128 new scans 102 found their own site by the
sites' own spreads, 125 by the common one, and at half the shifts' strength, where some are hardly any, 85 and 89.

Why the statistics are those under the base, and not the running statistics in the adapter: those belong to the adapter's own
weights, so that each adapter would have to run on the scan, and few-shot adapters have none; so all adapters of a base
cost one look at the scan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from peftseg.errors import BadInput
from peftseg.scan_statistics import GREY, LAYERS, TEXTURE, VOXELS, WIDTHS, Moments, ScanStatistics, measure_scan

__all__ = [
    "GREY",
    "LAYERS",
    "TEXTURE",
    "VOXELS",
    "Distance",
    "Moments",
    "ScanStatistics",
    "SiteStatistics",
    "distance_to",
    "layer_distance",
    "measure_scan",
    "read_site",
    "same_layers",
    "site_record",
    "summarise",
    "with_common_spread",
]

FORMAT = 1
# Spreads that are usual among the scans of one scanner; no spread counts as less than a quarter of them.
USUAL = {GREY: 0.06, TEXTURE: 0.1, VOXELS: 0.05, LAYERS: 0.06}
USUAL_OWN = 0.6  # distance of a site's scans from the others of them, before it is divided by that
MOST_LEFT_OUT = 30  # scans that this is measured with
PRIOR_SCANS = 2
LEAST = 0.25
MOST_CHANNELS = 128  # of all layers together; see `site_layers.watched_layers`
VARIANCE_FLOOR = 0.01  # of the layer's median variance: channels that are never active differ by rounding only


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """What the scans of one site are like.

    Attributes
    ----------
    scans : int
        How many were measured; 0 where only the running statistics of a model are known.
    means, spreads : dict
        Group -> vector over its features.
    layers : tuple of (means, variances)
        One pair a layer.
    layer_spreads : tuple of float
        Spread of `layer_distance`, one a layer.
    own : float
        Root mean square distance of the site's scans from the others of them; what distances are divided by.
    """

    scans: int
    means: dict[str, np.ndarray]
    spreads: dict[str, np.ndarray]
    layers: tuple[Moments, ...] = ()
    layer_spreads: tuple[float, ...] = ()
    own: float = 1.0


@dataclass(frozen=True)
class Distance:
    """How far a scan is from a site: `total`, and `parts` by group, all in spreads of the site's own scans."""

    total: float
    parts: dict[str, float]

    @property
    def largest(self) -> str:
        """The group in which the scan differs most."""
        return max(self.parts, key=lambda group: self.parts[group])


def summarise(scans: Sequence[ScanStatistics]) -> SiteStatistics:
    """The site of one or more scans, all measured with one base and one preprocessing."""
    if not scans:
        raise BadInput("There is no scan to describe a site by.", "Give at least one scan.")
    return replace(_pool(scans), own=_own_distance(scans))


def _pool(scans: Sequence[ScanStatistics]) -> SiteStatistics:
    means, spreads = {}, {}
    for group in scans[0].features:
        rows = np.array([scan.features[group] for scan in scans])
        means[group] = rows.mean(axis=0)
        squares = (rows - means[group]) ** 2 * (len(scans) / max(1, len(scans) - 1)) ** 2  # from the mean of the others
        spreads[group] = _with_prior(squares, USUAL[group])
    stacks = [_stacked([scan.layers[n] for scan in scans]) for n in range(len(scans[0].layers))]
    layers = tuple((mean.mean(axis=0), variance.mean(axis=0)) for mean, variance in stacks)
    return SiteStatistics(len(scans), means, spreads, layers, tuple(_layer_spread(*stack) for stack in stacks))


def _stacked(moments: Sequence[Moments]) -> Moments:
    """Means (scans, channels) and variances likewise."""
    return np.array([mean for mean, _ in moments]), np.array([variance for _, variance in moments])


def _layer_spread(means: np.ndarray, variances: np.ndarray) -> float:
    """Over (scans, channels); a site's moments are averages over scans, as adaptive batch normalisation has them."""
    count = len(means)
    squares = np.zeros(count)
    for n in range(count if count > 1 else 0):
        others = [(part.sum(axis=0) - part[n]) / (count - 1) for part in (means, variances)]
        squares[n] = layer_distance((means[n], variances[n]), (others[0], others[1])) ** 2
    return float(_with_prior(squares, USUAL[LAYERS]))


def _with_prior(squares: np.ndarray, usual: float) -> np.ndarray:
    """Root of the mean of squares (scans, ...), with the usual value thought of as that of `PRIOR_SCANS` more scans."""
    known = len(squares) - 1  # one scan says nothing about a spread
    mean = (known * squares.mean(axis=0) + PRIOR_SCANS * usual**2) / (known + PRIOR_SCANS)
    return np.maximum(np.sqrt(mean), LEAST * usual)


def _own_distance(scans: Sequence[ScanStatistics]) -> float:
    if len(scans) < 2:
        return USUAL_OWN
    chosen = range(min(len(scans), MOST_LEFT_OUT))
    found = (distance_to(_pool([*scans[:n], *scans[n + 1 :]]), scans[n]) for n in chosen)
    return float(_with_prior(np.array([distance.total**2 for distance in found if distance]), USUAL_OWN))


def layer_distance(a: Moments, b: Moments) -> float:
    """Root of the symmetric Kullback-Leibler divergence of two normal distributions, averaged over a layer's channels."""
    floor = VARIANCE_FLOOR * (np.median(a[1]) + np.median(b[1])) / 2 + 1e-12
    (mean_a, var_a), (mean_b, var_b) = (a[0], a[1] + floor), (b[0], b[1] + floor)
    square = (mean_a - mean_b) ** 2
    divergence = ((var_a + square) / var_b + (var_b + square) / var_a) / 2 - 1
    return float(np.sqrt(max(0.0, divergence.mean())))


def same_layers(a: tuple[Moments, ...], b: tuple[Moments, ...]) -> bool:
    """Whether both were measured at layers of the same widths."""
    return [len(mean) for mean, _ in a] == [len(mean) for mean, _ in b]


def distance_to(site: SiteStatistics, scan: ScanStatistics) -> Distance | None:
    """How far a scan is from a site, over the groups of facts that both have; None where they share none."""
    parts = {
        group: _root_mean((scan.features[group] - site.means[group]) / site.spreads[group])
        for group in scan.features
        if group in site.means
    }
    if site.layers and same_layers(site.layers, scan.layers):
        pairs = zip(scan.layers, site.layers, site.layer_spreads, strict=True)
        parts[LAYERS] = _root_mean(np.array([layer_distance(own, its) / spread for own, its, spread in pairs]))
    parts = {group: part / site.own for group, part in parts.items()}
    return Distance(_root_mean(np.array(list(parts.values()))), parts) if parts else None


def with_common_spread(sites: Sequence[SiteStatistics]) -> list[SiteStatistics]:
    """Sites of one base with the spreads of all of them together, each counted by its scans.

    Sites of which only running statistics are known have no spread of their own and count nothing; alone they get the usual
    one.
    """
    weights = np.array([site.scans for site in sites], dtype=np.float64)
    if not weights.any():
        return [replace(site, layer_spreads=(USUAL[LAYERS],) * len(site.layers), own=USUAL_OWN) for site in sites]

    def common(values: list[Any]) -> np.ndarray:
        return np.sqrt(np.average(np.square(values), axis=0, weights=weights[weights > 0]))

    known = [site for site in sites if site.scans]
    spreads = {group: common([site.spreads[group] for site in known]) for group in known[0].spreads}
    layer_spreads = tuple(common([site.layer_spreads for site in known]).tolist()) if known[0].layers else ()
    own = float(common([site.own for site in known]))
    return [replace(site, spreads=spreads, layer_spreads=layer_spreads, own=own) for site in sites]


def _root_mean(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


# in an adapter's record


def site_record(scans: Sequence[ScanStatistics]) -> dict[str, Any]:
    """What an adapter or a model keeps of its scans, under "site" in its record: plain numbers, four digits each."""
    site = summarise(scans)
    return {
        "format": FORMAT,
        "scans": site.scans,
        "features": {group: [_rounded(site.means[group]), _rounded(site.spreads[group])] for group in site.means},
        "layers": [[_rounded(mean), _rounded(variance)] for mean, variance in site.layers],
        "layer_spreads": _rounded(site.layer_spreads),
        "own": _rounded([site.own])[0],
    }


def _rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def read_site(data: Any) -> SiteStatistics:
    """Inverse of `site_record`; BadInput where the record is another's, or not whole."""
    try:
        if data["format"] != FORMAT:
            raise BadInput(
                f"Its facts about its scans have format {data['format']!r}; this version reads {FORMAT}.",
                "Update PEFTSegment, or adapt again.",
            )
        scans = int(data["scans"])
        features = {group: [_vector(part) for part in data["features"][group]] for group in WIDTHS}
        layers = tuple((_vector(mean), _vector(variance)) for mean, variance in data["layers"])
        layer_spreads = tuple(_vector(data["layer_spreads"]).tolist())
        own = float(data["own"])
        sound = (
            scans >= 1
            and 0 < own < math.inf
            and all(mean.shape == spread.shape == (WIDTHS[g],) for g, (mean, spread) in features.items())
            and all(spread.min() > 0 for _, spread in features.values())
            and all(mean.shape == variance.shape and variance.min() >= 0 for mean, variance in layers)
            and len(layers) == len(layer_spreads)
            and all(spread > 0 for spread in layer_spreads)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(f"{type(error).__name__}: {error}") from error
    if not sound:
        raise _malformed("numbers are missing or out of range")
    means, spreads = ({group: pair[n] for group, pair in features.items()} for n in (0, 1))
    return SiteStatistics(scans, means, spreads, layers, layer_spreads, own)


def _vector(values: Any) -> np.ndarray:
    vector = np.array(values, dtype=np.float64)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise ValueError(f"expected finite numbers, got {str(values)[:40]}")
    return vector


def _malformed(why: str) -> BadInput:
    return BadInput(f"Its facts about its scans cannot be read ({why}).", "Adapt again to have it among the suggested.")
