"""What an adapter's file says of itself, as text for a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from peftseg import library
from peftseg.errors import BadInput
from peftseg.gate import ACCEPTED, REFUSED, WARNING

from .panels.apply_adapters import AdapterList, Row, added_on, title


def patient_data() -> str:
    """What has to be known before an adapter is given away."""
    return _("An adapter is derived from patient data: obtain local approval before sharing it.")


def as_text(row: Row, adapters: AdapterList) -> str:
    """The record of an adapter: what it is for, what it was trained on, how well it did, licence, hash, preprocessing."""
    if row["problem"]:
        return _("{path}\nThis file cannot be used.\n{problem}").format(path=row["path"], problem=row["problem"])
    try:
        facts = library.show_adapter(Path(row["path"]))
    except BadInput as error:
        return str(error)
    record = facts["record"]
    parts = [
        (_("Adapter"), title(row)),
        (_("Structures"), ", ".join(s["name"] for s in facts["structures"])),
        (_("Learnt from"), _learnt_from(record)),
        (_("On scans it had not seen"), _estimate(record.get("estimate"))),
        (_("Check without labels"), _gate(record.get("gate"))),
        (_("Model"), adapters.base_title(row)),
        (_("Licence of the model"), facts["base_licence"]),
        (_("Made with"), _made_with(facts)),
        (_("Method chosen because"), " ".join(record.get("choice", {}).get("why", []))),
        (_("Scans are prepared"), _preparation(facts["preprocessing"])),
        (_("Hash"), facts["hash"]),
        (_("Hash of the model"), facts["base_fingerprint"]),
        (_("Earlier hashes"), ", ".join(row["earlier_hashes"])),
        (_("Added"), added_on(row)),
        (_("File"), _("{path} ({size:.1f} MB)").format(path=facts["path"], size=facts["size_bytes"] / 1e6)),
    ]
    lines = [f"{name}: {text}" for name, text in parts if text]
    return "\n".join([*lines, "", patient_data()])


def _learnt_from(record: dict[str, Any]) -> str:
    if record.get("unlabelled_scans"):
        return _("unlabelled scans of one scanner: {count}").format(count=record["unlabelled_scans"])
    if not record.get("shots"):
        return ""
    labelled = [
        f"{name}: {', '.join(f'{count} {state}' for state, count in states.items())}"
        for name, states in record.get("labelled", {}).items()
    ]
    text = _("{count} scans").format(count=record["shots"])
    return f"{text} ({'; '.join(labelled)})" if labelled else text


def _gate(verdict: Any) -> str:
    """What the check after an adaptation without labels said."""
    if not isinstance(verdict, dict):
        return ""
    said = {ACCEPTED: _("accepted"), WARNING: _("accepted with a warning"), REFUSED: _("refused")}
    return " ".join([said.get(verdict.get("status"), "") + ":", *verdict.get("reasons", [])])


def _estimate(estimate: Any) -> str:
    """Leave-one-out values by structure; the engine's own words where there are none."""
    if not isinstance(estimate, dict):
        return str(estimate or "")
    texts = []
    for name, values in estimate.items():
        numbers = values if isinstance(values, list) else [values]
        texts.append(
            f"{name} {', '.join('-' if v is None else f'{v:.2f}' for v in numbers if not isinstance(v, dict))}"
        )
    return _("overlap (Dice) {values}").format(values="; ".join(texts))


def _made_with(facts: dict[str, Any]) -> str:
    software = facts["record"].get("software", {})
    programs = [f"{name} {version}" for name, version in software.items()] if isinstance(software, dict) else []
    return ", ".join([_("method {method}").format(method=facts["method"]), *programs])


def _preparation(preprocessing: dict[str, Any]) -> str:
    spacing = " x ".join(f"{s:g}" for s in preprocessing["spacing"])
    intensity = preprocessing["intensity"]
    grey = intensity["kind"]
    if grey in ("window", "percentile"):
        grey = f"{grey} {intensity['low']:g} .. {intensity['high']:g}"
    return _("voxels of {spacing} mm, axes {axes}, grey values: {grey}").format(
        spacing=spacing, axes=preprocessing["orientation"], grey=grey
    )
