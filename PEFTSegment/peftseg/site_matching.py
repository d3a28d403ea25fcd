"""Whether the site's grey values are brought to those that the base learnt from, see `grey_match`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.gate import LIMITS, status_of
from peftseg.gate_measures import measures, overall
from peftseg.grey_match import Curve, site_curve
from peftseg.models import ModelEntry, Preprocessing
from peftseg.networks import Anatomy
from peftseg.preprocess import Prepared, follow_curve
from peftseg.site_evidence import Evidence
from peftseg.site_layers import with_other_grey_values
from peftseg.site_statistics import ScanStatistics, SiteStatistics, read_site
from peftseg.site_training import SiteSetting, evidence_of
from peftseg.verdicts import REFUSED


@dataclass(frozen=True, eq=False)
class Match:
    """What an adaptation starts from.

    Attributes
    ----------
    scans, statistics : sequence
        With `preprocessing`.
    preprocessing : Preprocessing
        The base's, with the curve where there is one.
    words : str
        What was done and why; "" where it was not asked for.
    """

    scans: Sequence[Prepared]
    statistics: Sequence[ScanStatistics]
    preprocessing: Preprocessing
    words: str = ""

    @property
    def curve(self) -> Curve:
        """Empty where grey values stay as they are."""
        return self.preprocessing.intensity.curve


def match_grey_values(
    setting: SiteSetting,
    network: nn.Module,
    anatomy: Anatomy,
    scans: Sequence[Prepared],
    statistics: Sequence[ScanStatistics],
    reporter: Reporter,
) -> Match:
    """Find the curve, and with the option `grey_values=auto` try whether it does good.

    Parameters
    ----------
    network, anatomy
        The base as it is; ends on the setting's device.
    scans, statistics : sequence
        Of the site, with the base's preprocessing, in the same order.

    Raises
    ------
    BadInput
        A curve is asked for and cannot be told.
    JobCancelled, OutOfMemory
    """
    asked, base = setting.options["grey_values"], setting.entry.preprocessing
    as_they_are = Match(scans, statistics, base)
    if asked == "as_they_are":
        return as_they_are
    source = _source_or_reason(setting.entry)
    known = isinstance(source, SiteStatistics)
    curve = site_curve(statistics, source) if known else None
    if curve is None:
        why = "they are as in the scans that the model learnt from" if known else source
        words = f"Grey values stay as they are: {why}."
        if asked == "matched" and not known:
            raise BadInput(words, "Choose grey_values=auto, or another model.")
        reporter.log(words)
        return replace(as_they_are, words=words)
    matched = [followed(scan, curve) for scan in scans]
    words = "Grey values are brought to those that the model learnt from."
    if asked == "auto":
        helps, words = _try(setting, network, scans, matched, reporter)
        if not helps:
            reporter.log(words)
            return replace(as_they_are, words=words)
    reporter.log(words)
    seen = [
        with_other_grey_values(facts, scan, network, anatomy, setting.entry.window, setting.device, reporter)
        for facts, scan in zip(statistics, matched, strict=True)
    ]
    return Match(matched, seen, replace(base, intensity=replace(base.intensity, curve=curve)), words)


def _source_or_reason(entry: ModelEntry) -> SiteStatistics | str:
    """The grey values of the base's training scans, or why there is nothing to match with."""
    if entry.modality == "CT":
        return f"'{entry.id}' is a model for CT, whose numbers mean something"
    if "site" not in entry.record:
        return f"the record of '{entry.id}' does not say which ones it learnt from"
    return read_site(entry.record["site"])


def followed(scan: Prepared, curve: Curve) -> Prepared:
    """The scan with the grey values that the curve gives."""
    image = scan.image.clone()
    follow_curve(image[0], curve)
    return replace(scan, image=image)


def _try(
    setting: SiteSetting, network: nn.Module, scans: Sequence[Prepared], matched: Sequence[Prepared], reporter: Reporter
) -> tuple[bool, str]:
    """Whether the base's own results get no worse by matched grey values, and why."""
    found: list[Evidence] = []
    for number, tried in enumerate((scans, matched)):
        reporter.progress("match", number, 2)
        found.append(evidence_of(setting, network, None, tried, reporter))
    reporter.progress("match", 2, 2)
    helps = is_no_worse(found[0], found[1], setting.entry)
    before, after = (overall(evidence.transform_agreement) for evidence in found)
    numbers = (
        f"when the scans are changed a little, the model's results agree with themselves by {after:.2f} with matched grey "
        f"values, and by {before:.2f} without"
    )
    if helps:
        return True, f"Grey values are brought to those that the model learnt from: {numbers}."
    return (
        False,
        f"Grey values stay as they are, because the model's results get worse when they are matched: {numbers}.",
    )


def is_no_worse(before: Evidence, after: Evidence, entry: ModelEntry) -> bool:
    """Whether nothing in the base's own results speaks against matched grey values.

    The gate would not refuse them, the results are no less confident, and agree with themselves as before. Chosen on support
    scans of made-up sites (`Testing/bench/site_matching.py`).
    """
    values = {name: m.value for name, m in measures(before, after, entry.record.get("structure_facts")).items()}
    if status_of(values, LIMITS) == REFUSED:
        return False
    return values["confidence_drop"] <= 0 and values["transform_drop"] <= LIMITS["transform_drop"].warn
