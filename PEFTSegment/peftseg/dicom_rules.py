"""Rules that pick the right DICOM series: a list a person can read and change, the first rule that fits decides. Torch-free."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftseg.dicom_sort import Series, as_number
from peftseg.errors import BadInput
from peftseg.strict_json import record_from

FORMAT = "peftseg-series-rules-1"
DEFAULT = "default"
ORIENTATIONS = ("axial", "coronal", "sagittal", "oblique")
PICKS = ("all", "most-slices", "thinnest", "lowest-number")
SHOWN = 5  # reasons that an error lists
_REMEDY = "Correct the file; `peftseg dicom rules` prints one to start from."


def _check_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise BadInput(f"{name} '{pattern}' is no regular expression ({error}).", _REMEDY) from error


@dataclass(frozen=True)
class Rule:
    """One rule: what happens to the series that meet all its conditions.

    Attributes
    ----------
    keep, drop : str
        One of the two, with the reason in words.
    modality, orientation : tuple of str
        One of these; none: any.
    description, not_description, image_type, kernel, part : str
        A regular expression that must be found (or not) in the series description, the image type (as
        "ORIGINAL\\PRIMARY\\AXIAL"), the convolution kernel, or what tells the volume from others of its series; case does
        not matter; "": anything.
    min_slices, max_slices : int or None
        Number of slices, both ends included.
    min_step, max_step : float or None
        Distance of the slices in mm, both ends included.
    contrast, localiser, secondary_capture : bool or None
        Whether a contrast agent is named; a scout; a screenshot. None: either.
    """

    keep: str = ""
    drop: str = ""
    modality: tuple[str, ...] = ()
    orientation: tuple[str, ...] = ()
    description: str = ""
    not_description: str = ""
    image_type: str = ""
    kernel: str = ""
    part: str = ""
    min_slices: int | None = None
    max_slices: int | None = None
    min_step: float | None = None
    max_step: float | None = None
    contrast: bool | None = None
    localiser: bool | None = None
    secondary_capture: bool | None = None

    def __post_init__(self) -> None:
        if bool(self.keep) == bool(self.drop):
            raise BadInput('A rule has "keep" and "drop", or neither; expected one of the two with a reason.', _REMEDY)
        wrong = sorted(set(self.orientation) - set(ORIENTATIONS))
        if wrong:
            raise BadInput(f"orientation is '{wrong[0]}'; expected {', '.join(ORIENTATIONS)}.", _REMEDY)
        for name in ("description", "not_description", "image_type", "kernel", "part"):
            _check_pattern(name, getattr(self, name))

    def fits(self, series: Series) -> bool:
        """Whether a series meets all conditions."""
        return all(condition(self, series) for condition in _CONDITIONS)


@dataclass(frozen=True)
class Rules:
    """What `choose` goes by.

    Attributes
    ----------
    rules : tuple of Rule
        In order; the first that fits decides. A series that none fits is left out.
    pick : str
        Of the kept series of a study: "all", or the one with "most-slices", the "thinnest" slices or the "lowest-number".
    regularise : bool
        Resample missing slices, uneven steps and tilt; otherwise such series are left out.
    """

    rules: tuple[Rule, ...]
    pick: str = "all"
    regularise: bool = False
    format: str = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise BadInput(f"The rules have the format '{self.format}'; expected '{FORMAT}'.", _REMEDY)
        if self.pick not in PICKS:
            raise BadInput(f"pick is '{self.pick}'; expected {', '.join(PICKS)}.", _REMEDY)
        if not any(rule.keep for rule in self.rules):
            raise BadInput("No rule keeps anything.", _REMEDY)


@dataclass(frozen=True)
class LeftOut:
    """A series that was not chosen, and why, in words."""

    series: Series
    reason: str

    @property
    def key(self) -> str:
        """The series' opaque id."""
        return self.series.key

    @property
    def sentence(self) -> str:
        """Which series it is, and the reason, e.g. "Series 3f0a... (CT 2, Scout): a localiser or scout"."""
        words = f"{self.series.modality} {self.series.number}".strip()
        facts = ", ".join(part for part in (words, self.series.description, self.series.part) if part)
        return f"Series {self.key}{f' ({facts})' if facts else ''}: {self.reason}"


DEFAULT_RULES = Rules(
    (
        Rule(drop="a localiser or scout", localiser=True),
        Rule(drop="a screenshot (secondary capture)", secondary_capture=True),
        Rule(
            drop="made from other images (projection, reformat, subtraction, rendering)",
            image_type=r"\b(MIP|MINIP|MNIP|MPR|CPR|PROJECTION|REFORMATTED|SUBTRACTION|SUB|VRT|SSD|RENDERED|SCREEN SAVE|DOSE)\b",
        ),
        Rule(
            drop="a phase image or a map, not anatomy",
            modality=("MR",),
            image_type=r"\\(P|R|I|PHASE|PHASE MAP|REAL|IMAGINARY|FIELD_MAP|ADC|ADC_UNSPECIFIED|FA|B0 MAP)(\\|$)",
        ),
        Rule(drop="fewer than 5 slices", max_slices=4),
        Rule(keep="CT, MR or PET slices", modality=("CT", "MR", "PT")),
    )
)


def _found(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


def _between(low: float | None, value: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


def _same(wanted: bool | None, value: bool) -> bool:
    return wanted is None or wanted == value


_CONDITIONS: tuple[Callable[[Rule, Series], bool], ...] = (
    lambda r, s: not r.modality or s.modality in r.modality,
    lambda r, s: not r.orientation or s.orientation in r.orientation,
    lambda r, s: not r.description or _found(r.description, s.description),
    lambda r, s: not r.not_description or not _found(r.not_description, s.description),
    lambda r, s: not r.image_type or _found(r.image_type, s.image_type),
    lambda r, s: not r.kernel or _found(r.kernel, s.kernel),
    lambda r, s: not r.part or _found(r.part, s.part),
    lambda r, s: _between(r.min_slices, s.slices, r.max_slices),
    lambda r, s: _between(r.min_step, s.step, r.max_step),
    lambda r, s: _same(r.contrast, s.contrast),
    lambda r, s: _same(r.localiser, s.localiser),
    lambda r, s: _same(r.secondary_capture, s.secondary_capture),
)


def choose(series: Sequence[Series], rules: Rules = DEFAULT_RULES) -> tuple[list[Series], list[LeftOut]]:
    """The series that the rules keep, in their order, and the others with the reason in words.

    What can be no volume is left out whatever the rules say; what is irregular, too, unless `rules.regularise`.
    """
    kept: list[Series] = []
    left_out: list[LeftOut] = []
    for item in series:
        reason = _why_not(item, rules)
        if reason:
            left_out.append(LeftOut(item, reason))
        else:
            kept.append(item)
    picked = _picked(kept, rules.pick)
    keys = {item.key for item in picked}
    left_out += [
        LeftOut(s, f"another series of its study was picked ({rules.pick})") for s in kept if s.key not in keys
    ]
    return picked, left_out


def none_chosen(left_out: Sequence[LeftOut]) -> BadInput:
    """The error for inputs of which the rules chose no series, with the first reasons."""
    reasons = "; ".join(item.sentence for item in left_out[:SHOWN])
    more = f"; and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
    return BadInput(
        f"No series was chosen of {len(left_out)} that were found. {reasons}{more}".strip(),
        "Look at them with `peftseg dicom list`, and change the rules (`peftseg dicom rules` prints them).",
    )


def _why_not(series: Series, rules: Rules) -> str:
    """Why a series is left out; "" where it is kept."""
    if series.unusable:
        return series.unusable
    rule = next((rule for rule in rules.rules if rule.fits(series)), None)
    if rule is None:
        return f"no rule keeps it ({series.modality or 'no modality'}, {series.slices} slices, {series.orientation})"
    if rule.drop:
        return rule.drop
    if series.problems and not rules.regularise:
        return f'{"; ".join(series.problems)} (rules with "regularise": true would have it resampled)'
    return ""


def _picked(kept: list[Series], pick: str) -> list[Series]:
    if pick == "all":
        return kept
    studies: dict[str, list[Series]] = defaultdict(list)
    for series in kept:
        studies[series.study].append(series)
    orders: dict[str, Callable[[Series], Any]] = {
        "most-slices": lambda s: -s.slices,
        "thinnest": lambda s: s.step or float("inf"),
        "lowest-number": lambda s: as_number(s.number)[0],
    }
    return [min(those, key=orders[pick]) for those in studies.values()]


def load_rules(source: Path | str) -> Rules:
    """The rules of a JSON file, or the built-in ones for "default".

    Raises
    ------
    BadInput
        No such file; not JSON; an unknown field (the closest is named), a wrong type or value.
    """
    if str(source) == DEFAULT:
        return DEFAULT_RULES
    path = Path(source)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"The series rules {path} cannot be read: {error.strerror}.", f"Give a file, or '{DEFAULT}'."
        ) from error
    except ValueError as error:
        raise BadInput(f"The series rules {path.name} are not valid JSON ({error}).", _REMEDY) from error
    try:
        return record_from(Rules, data, "series rules")
    except BadInput as error:
        raise BadInput(f"{path.name}: {error.message}", _REMEDY) from error


def rules_text(rules: Rules = DEFAULT_RULES) -> str:
    """Rules as JSON, as `load_rules` reads them: conditions that are not set are left away."""
    empty = {field.name: field.default for field in dataclasses.fields(Rule)}
    lines = [
        {name: value for name, value in dataclasses.asdict(rule).items() if value != empty[name]}
        for rule in rules.rules
    ]
    return json.dumps(
        {"format": rules.format, "pick": rules.pick, "regularise": rules.regularise, "rules": lines}, indent=2
    )
