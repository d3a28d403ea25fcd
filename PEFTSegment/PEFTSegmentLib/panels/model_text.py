"""What the module says of a foundation model, in words. No widgets."""

from __future__ import annotations

import html

from slicer.i18n import tr as _

from peftseg import licences
from peftseg.models import BUNDLED, ModelEntry

MB = 1e6


def name(entry: ModelEntry) -> str:
    """Title and number of structures."""
    count = len(entry.structures)
    if not count:
        return entry.title
    return _("{title} ({count} structures)").format(title=entry.title, count=count) if count > 1 else entry.title


def facts(entry: ModelEntry) -> str:
    """One line: modality, voxel size, licence, and whether its weights are here."""
    spacing = entry.preprocessing.spacing
    same = max(spacing) - min(spacing) < 0.01
    size = f"{spacing[0]:g} mm" if same else " x ".join(f"{s:g}" for s in spacing) + " mm"
    parts = [entry.modality, entry.body_part, size, entry.licence or _("no licence named"), weights(entry)]
    return " - ".join(part for part in parts if part)


def weights(entry: ModelEntry) -> str:
    """Whether the weights are on this computer, or how to get them."""
    if entry.weights_path is not None:
        return _("ready")
    if entry.source is None:
        return _("weights missing")
    if not entry.source.address:
        return _("to be fetched by hand, then imported")
    if not entry.source.size:
        return _("not downloaded")
    return _("{size:.0f} MB, not downloaded").format(size=max(entry.source.size / MB, 1))


def reason_against_download(entry: ModelEntry | None) -> str:
    """Why the model's weights cannot be downloaded, or ""."""
    if entry is None:
        return _("Choose a model first")
    if entry.weights_path is not None:
        return _("Its weights are on this computer")
    if entry.source is None or not entry.source.address:
        return _("There is no public address; get the file by hand and import it")
    return ""


def reason_against_removal(entry: ModelEntry) -> str:
    """Why the model's files cannot be deleted, or ""."""
    if entry.weights_path is None:
        return _("It has no files on this computer")
    if entry.directory.parent == BUNDLED:
        return _("It comes with PEFTSegment")
    return ""


def reason_against_use(entry: ModelEntry | None) -> str:
    """Why the model cannot be run, or ""."""
    if entry is None:
        return _("Choose a model in step 1")
    if entry.weights_path is None:
        return _("Download or import the model's weights first")
    if licences.acknowledgement(entry) == "needed":
        return _("Accept the model's licence first (Details)")
    return ""


def details(entry: ModelEntry) -> str:
    """All facts as rich text."""
    record = {key: value for key, value in entry.record.items() if isinstance(value, (str, int, float))}
    rows = [
        (_("What it is for"), entry.description),
        (_("Scans"), " - ".join(part for part in (entry.modality, entry.body_part) if part)),
        (_("Voxel size"), " x ".join(f"{s:g}" for s in entry.preprocessing.spacing) + " mm"),
        (_("Licence"), entry.licence or _("none named")),
        (_("Notice"), entry.licence_notice),
        (_("Patents"), entry.patents),
        (_("Please cite"), entry.citation),
        (_("Trained"), "; ".join(f"{key}: {value}" for key, value in record.items())),
        (_("Weights"), weights(entry)),
        (_("Files"), str(entry.directory) if entry.weights_path is not None else ""),
        (_("Identifier"), entry.id),
    ]
    text = "".join(f"<p><b>{html.escape(what)}</b><br>{html.escape(value)}</p>" for what, value in rows if value)
    page = entry.source.page if entry.source is not None else ""
    link = f'<p><a href="{html.escape(page)}">{html.escape(page)}</a></p>' if page else ""
    return text + link


def licence(entry: ModelEntry) -> str:
    """What is accepted, as plain text."""
    return licences.licence_text(entry)
