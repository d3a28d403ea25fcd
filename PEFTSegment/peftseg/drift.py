"""Drift: flags, volumes and distance to the support set by month, from the manifests of batches. Torch-free.

A scanner update, a new protocol or other patients show themselves in what a batch notes of every study long before anybody
labels one. A month that stands out from the months before it is marked; the rules are `WATCHED`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from peftseg import manifest
from peftseg.errors import BadInput
from peftseg.paths import write_csv

FEWEST = 5  # studies of a month, and of those before it, for a judgement
MORE_FLAGS = 0.2  # of the studies
OTHER_VOLUME = 0.25  # of the median
FARTHER = 1.5  # times the median distance
FAR = 3.0  # times as far as the support scans are from each other
WATCHED = (
    f"A month is marked where it and the months before it have {FEWEST} studies or more, and: the share of studies with a flag "
    f"is {MORE_FLAGS:.0%} of the studies higher than before, or the median volume differs by more than {OTHER_VOLUME:.0%}, or "
    f"the median distance is {FARTHER:g} times what it was or above {FAR:g}."
)
COLUMNS = (
    "month",
    "adapter",
    "structure",
    "studies",
    "flagged",
    "flagged_share",
    "doubt_median",
    "volume_ml_q1",
    "volume_ml_median",
    "volume_ml_q3",
    "distance_median",
    "marks",
)
UNLIKE = "Scans are less like the labelled ones"
Row = dict[str, Any]


@dataclass(frozen=True)
class StudyFacts:
    """What a batch noted of one study: month ("2026-11"), adapter (name-vN or as noted), distance to the support set or None,
    and by structure flags, doubt and volume in ml."""

    month: str
    adapter: str
    distance: float | None
    flags: Mapping[str, Sequence[str]]
    doubt: Mapping[str, float]
    volumes_ml: Mapping[str, float]

    @property
    def structures(self) -> set[str]:
        """Names of everything that something is known of."""
        return {*self.flags, *self.doubt, *self.volumes_ml}


def read_studies(folders: Iterable[str | Path]) -> tuple[list[StudyFacts], list[str]]:
    """Finished studies of batches, and sentences on what could not be read.

    A study that an adapter segmented more than once, in one folder or in several, counts once: its latest result. Studies are
    the same when their key is (a hash of the DICOM series' UID, else of the path), or their content.

    Parameters
    ----------
    folders : iterable of str or Path
        Output folders of batches, or manifest files.

    Raises
    ------
    BadInput
        A manifest is missing or cannot be read, or no study is finished.
    """
    results: list[_Result] = []
    notes: list[str] = []
    for folder in folders:
        path = Path(folder)
        path = path / manifest.FILE if path.is_dir() else path
        lines, damaged = _last_lines(path)
        if damaged:
            notes.append(f"{path}: {damaged} line(s) cannot be read and are left out.")
        undated = 0
        for study, line in lines.items():
            if line.get("state") != "done":
                continue
            time = _time(line.get("time"))
            undated += time is None
            if time is not None:
                results.append(_result(study, line, time))
        if undated:
            notes.append(f"{path}: {undated} finished studies have no date and are left out.")
    if not results:
        raise BadInput("The manifests hold no finished study.", "Give the output folders of batches that have run.")
    found = _latest(results)
    if len(found) < len(results):
        notes.append(
            f"Left out because the same adapter segmented the study again later: {len(results) - len(found)} results."
        )
    return found, notes


@dataclass(frozen=True)
class _Result:
    """A result with its time, and by what its study is known again."""

    time: datetime
    identities: tuple[tuple[str, str], ...]
    facts: StudyFacts


def _result(study: str, line: Row, time: datetime) -> _Result:
    facts = _facts(line, time.strftime("%Y-%m"))
    content = line.get("input_sha256")
    known_by = (study, f"sha256:{content}") if content else (study,)
    return _Result(time, tuple((facts.adapter, name) for name in known_by), facts)


def _latest(results: Sequence[_Result]) -> list[StudyFacts]:
    """Of each study and adapter the latest result."""
    seen: set[tuple[str, str]] = set()
    found = []
    for result in sorted(results, key=lambda result: result.time, reverse=True):
        if seen.isdisjoint(result.identities):
            found.append(result.facts)
        seen.update(result.identities)
    return found[::-1]


def by_month(studies: Iterable[StudyFacts]) -> list[Row]:
    """One row a month, adapter and structure, as in `COLUMNS`; oldest first, "marks" is a list of sentences."""
    groups: dict[tuple[str, str, str], list[StudyFacts]] = {}
    for study in studies:
        for structure in study.structures:
            groups.setdefault((study.adapter, structure, study.month), []).append(study)
    rows: list[Row] = []
    earlier: dict[tuple[str, str], list[StudyFacts]] = {}
    for (adapter, structure, month), found in sorted(groups.items()):
        before = earlier.setdefault((adapter, structure), [])
        numbers = _numbers(found, structure)
        marks = _marks(numbers, _numbers(before, structure)) if min(len(found), len(before)) >= FEWEST else []
        rows.append({"month": month, "adapter": adapter, "structure": structure, **numbers, "marks": marks})
        before += found
    return sorted(rows, key=lambda row: (row["month"], row["adapter"], row["structure"]))


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as .csv; an existing file is replaced as a whole."""
    write_csv(path, [{**row, "marks": " ".join(row["marks"])} for row in rows])


def marked(rows: Iterable[Row]) -> list[str]:
    """One sentence for each mark, newest month last; what is of the scans and not of a structure is told once."""
    found: dict[str, None] = {}
    for row in rows:
        for mark in row["marks"]:
            who = row["adapter"] if mark.startswith(UNLIKE) else f"{row['adapter']}, {row['structure']}"
            found[f"{row['month']}, {who}: {mark}"] = None
    return list(found)


def months_between(rows: Iterable[Row]) -> list[str]:
    """All months from the first to the last, also those without studies."""
    all_months = [row["month"] for row in rows]
    first, last = min(all_months), max(all_months)
    year, month = (int(part) for part in first.split("-"))
    found = [first]
    while found[-1] < last:
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
        found.append(f"{year:04d}-{month:02d}")
    return found


def _last_lines(path: Path) -> tuple[dict[str, Row], int]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise BadInput(
            f"The manifest {path} cannot be read: {error.strerror or error}.",
            "Give the output folder of a batch (`peftseg apply`), or its manifest.jsonl.",
        ) from error
    lines: dict[str, Row] = {}
    damaged = 0
    for line in text.splitlines():
        entry = _parsed(line)
        if entry is not None:
            lines[str(entry["study"])] = entry
        damaged += entry is None and bool(line.strip())
    return lines, damaged


def _parsed(line: str) -> Row | None:
    """A line of a study, or None."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "study" in entry else None


def _facts(line: Row, month: str) -> StudyFacts:
    flags = line.get("flags") if isinstance(line.get("flags"), dict) else {}
    return StudyFacts(
        month,
        str(line.get("adapter") or "unknown"),
        _number(line.get("distance")),
        {name: found for name, found in flags.items() if isinstance(found, list)},
        _values(line.get("doubt")),
        _values(line.get("volumes_ml")),
    )


def _values(data: Any) -> dict[str, float]:
    found = {name: _number(value) for name, value in data.items()} if isinstance(data, dict) else {}
    return {name: value for name, value in found.items() if value is not None}


def _number(value: Any) -> float | None:
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _time(text: Any) -> datetime | None:
    """ISO time, of UTC where it names no zone; None where it is none."""
    try:
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _numbers(studies: Sequence[StudyFacts], structure: str) -> Row:
    flagged = sum(bool(study.flags.get(structure)) for study in studies)
    volumes = sorted(study.volumes_ml[structure] for study in studies if structure in study.volumes_ml)
    q1, median, q3 = statistics.quantiles(volumes, n=4) if len(volumes) > 1 else (volumes or [None]) * 3
    return {
        "studies": len(studies),
        "flagged": flagged,
        "flagged_share": round(flagged / len(studies), 3) if studies else None,
        "doubt_median": _median([study.doubt[structure] for study in studies if structure in study.doubt]),
        "volume_ml_q1": _rounded(q1),
        "volume_ml_median": _rounded(median),
        "volume_ml_q3": _rounded(q3),
        "distance_median": _median([study.distance for study in studies if study.distance is not None]),
    }


def _median(values: Sequence[float]) -> float | None:
    return _rounded(statistics.median(values)) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _marks(now: Row, before: Row) -> list[str]:
    found = []
    if now["flagged_share"] - before["flagged_share"] > MORE_FLAGS:
        found.append(
            f"{now['flagged_share']:.0%} of the studies have a flag; it was {before['flagged_share']:.0%} before."
        )
    volume, usual = now["volume_ml_median"], before["volume_ml_median"]
    if volume is not None and usual and abs(volume / usual - 1) > OTHER_VOLUME:
        found.append(f"The median volume is {volume:g} ml; it was {usual:g} ml before.")
    distance, was = now["distance_median"], before["distance_median"]
    if distance is not None and was is not None and (distance > FARTHER * was or distance > FAR >= was):
        found.append(f"{UNLIKE}: distance {distance:g}; it was {was:g} before.")
    return found
