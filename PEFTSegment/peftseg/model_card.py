"""The model card of an adapter: what it is, in plain words, as Markdown. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from peftseg.adapters.table import METHODS
from peftseg.models import ModelEntry
from peftseg.verdicts import ACCEPTED, REFUSED, REMARKS, WARNING, stored_status

Shown = Mapping[str, Any]
LOW = 0.7  # mean Dice of left-out scans under which the card warns
STATES = ("labelled", "partly labelled", "absent", "not labelled")
MOST_ANCESTORS = 5
JUDGED = {
    ACCEPTED: "accepted",
    WARNING: "accepted with a warning",
    REFUSED: "refused, and kept all the same",
}


def model_card(shown: Shown, base: ModelEntry | None = None) -> str:
    """The card of an adapter.

    Parameters
    ----------
    shown : mapping
        From `library.show_adapter`.
    base : ModelEntry or None
        The adapter's base, where the catalogue here knows it.

    Returns
    -------
    str
        Markdown, ends with a line break.
    """
    record = shown["record"]
    parts = [
        f"# {shown['name']}, version {shown['version']}",
        "**Research use only. Not a medical device: not for diagnosis or treatment. Every result is a draft that a person "
        "has to review.**",
        _section("What it segments", _structures(shown)),
        _section("What it is made of", _base(shown, base)),
        _section("What it was trained on", _training(shown)),
        _section("How good it is", _quality(record, [s["name"] for s in shown["structures"]])),
        _section("Limits", _limits(shown)),
        _section("Where it comes from", _origin(shown)),
        _section("How to cite it", _citation(shown, base)),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, lines: Iterable[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines)


def _structures(shown: Shown) -> list[str]:
    novel = shown["record"].get("novel", [])
    rows = ["| Structure | Value in label maps | Known to the model before |", "| --- | --- | --- |"]
    for structure in shown["structures"]:
        known = "no, learnt from the labelled scans" if structure["name"] in novel else "yes"
        rows.append(f"| {structure['name']} | {structure['value']} | {known} |")
    return rows


def _base(shown: Shown, base: ModelEntry | None) -> list[str]:
    title = f"{base.title} (`{shown['base_id']}`)" if base is not None else f"`{shown['base_id']}`"
    where = (
        "" if base is not None and base.weights_path is not None else " The model's weights are not on this machine."
    )
    method = METHODS[shown["method"]].title if shown["method"] in METHODS else shown["method"]
    lines = [f"- Foundation model: {title}, fingerprint `{shown['base_fingerprint'][:12]}`.{where}"]
    if base is not None and base.modality:
        lines.append(f"- Meant for: {', '.join(part for part in (base.modality, base.body_part) if part)}.")
    licence = (shown["base_licence"] or "not stated").replace("\n", ". ")
    lines.append(f"- Licence of the model, which also binds the adapter: {licence}.".replace("..", "."))
    share = shown["record"].get("trained_share", {})
    trained = sum(count for kind, count in share.items() if kind != "base_total")
    size = f", {trained:,} trained values" if trained else ""
    lines.append(f"- Method: {method} (`{shown['method']}`){size}; file of {shown['size_bytes'] / 1e6:.1f} MB.")
    return lines


def _training(shown: Shown) -> list[str]:
    record = shown["record"]
    shots = record.get("shots")
    if shots is None:
        lines = [f"- {record.get('unlabelled_scans', 'Some')} scans of the site, without labels."]
        lines += [f"- {change}" for change in record.get("recipe_changes", [])]
        if status := stored_status(record):
            reasons = " ".join(record["gate"].get("reasons", []))
            lines.append(f"- Judged before it was kept: {JUDGED[status]}. {reasons}".rstrip())
        return lines
    of = f" of {_count(record['patients'], 'patient')}" if record.get("patients") else ""
    lines = [f"- {_count(shots, 'labelled scan')}{of}."]
    for name, found in record.get("labelled", {}).items():
        words = ", ".join(f"{state} in {found[state]}" for state in STATES if state in found)
        lines.append(f"- {name}: {words}.")
    lines += [f"- {change}" for change in record.get("recipe_changes", [])]
    if record.get("epochs"):
        minutes = f" in {record['seconds'] / 60:.1f} minutes" if record.get("seconds") else ""
        lines.append(f"- {record['epochs']} epochs{minutes}; ended because: {record.get('stopped', 'unknown')}.")
    if parent := record.get("parent"):
        before = f", which had {_count(parent['shots'], 'scan')}" if parent.get("shots") else ""
        lines.append(f"- Went on from version {parent['version']} (hash `{parent['hash'][:12]}`){before}.")
    return lines


def _quality(record: Mapping[str, Any], structures: Iterable[str]) -> list[str]:
    estimate = record.get("estimate")
    if not isinstance(estimate, dict):
        return [
            "Not estimated: no scan was left out of training to score it. Look at the first results with special care, "
            "and pin labelled reference scans (`peftseg adapters references`)."
        ]
    how = "with all scans of the same patient" if (record.get("patients") or 0) > 1 else "one at a time"
    lines = [f"Dice of scans that were left out of training {how} (1: as labelled, 0: nothing in common):", ""]
    lines += ["| Structure | Mean | Lowest to highest | Scans |", "| --- | --- | --- | --- |"]
    low = []
    for name in structures:
        values = [value for value in estimate.get(name, []) if value is not None]
        if not values:
            lines.append(f"| {name} | not estimated | - | 0 |")
            continue
        mean = statistics.fmean(values)
        low += [name] if mean < LOW else []
        lines.append(f"| {name} | {mean:.2f} | {min(values):.2f} to {max(values):.2f} | {len(values)} |")
    lines += ["", "So few scans tell it roughly; scans of another kind may come out worse."]
    if low:
        lines.append(f"**Low for {', '.join(low)}: expect to correct most results.**")
    return lines


def _limits(shown: Shown) -> list[str]:
    record = shown["record"]
    spacing = " x ".join(f"{size:.3g}" for size in shown["preprocessing"]["spacing"])
    lines = [
        "- Made for scans like its own: same scanner or site, protocol and kind of patient. On others, check with "
        "`peftseg adapters suggest` and look closely.",
        f"- Works at a voxel size of {spacing} mm: what is finer than that is lost.",
        "- Segments nothing but the structures above, and does not notice that a scan is of another body part.",
    ]
    if remark := REMARKS.get(stored_status(record)):
        lines.append(f"- {remark}")
    partly = [name for name, found in record.get("labelled", {}).items() if found.get("labelled", 0) < 3]
    if partly:
        lines.append(f"- Few examples: {', '.join(partly)} was fully labelled in fewer than three scans.")
    if shown["activation"] == "sigmoid":
        lines.append("- Structures may overlap: results are layered .seg.nrrd files.")
    if record.get("shots") == 1:
        lines.append("- One scan only: it may have learnt that patient.")
    return lines


def _origin(shown: Shown) -> list[str]:
    record = shown["record"]
    software = record.get("software", {})
    made = ", ".join(f"{name} {version}" for name, version in software.items()) or "unknown"
    lines = [f"- Hash: `{shown['hash']}`", f"- Reference here: `{shown['ref']}`; file format {shown['format']}."]
    lines.append(f"- Made with: {made}.")
    if record.get("made"):
        lines.append(f"- Made on: {record['made']}.")
    line = record.get("parent", {}).get("line", [])
    if line:
        shown_line = " -> ".join(f"`{entry[:12]}`" for entry in line[-MOST_ANCESTORS:])
        lines.append(f"- Line of earlier versions, oldest first: {shown_line}.")
    if record.get("renamed_from"):
        lines.append(
            f"- Earlier hashes, under other names: {', '.join(f'`{h[:12]}`' for h in record['renamed_from'])}."
        )
    lines.append("- Holds no scan, no label, no patient data and no weights of the model.")
    return lines


def _citation(shown: Shown, base: ModelEntry | None) -> list[str]:
    lines = [
        f"> {shown['name']}, version {shown['version']}: site adapter of {shown['base_id']} made with PEFTSegment "
        f"{shown['record'].get('software', {}).get('peftseg', '')}; SHA-256 {shown['hash'][:16]}.".replace(" ;", ";")
    ]
    if base is not None and base.citation:
        lines += ["", f"And the model: {base.citation}"]
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
