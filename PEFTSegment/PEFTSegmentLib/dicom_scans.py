"""Slicer's DICOM database, where there is one: what is in it, and the files of a scan. Only read. Nothing here needs Qt.

`slicer.dicomDatabase` (a ctkDICOMDatabase) is made by Slicer's DICOM module; a Slicer without that module has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

from peftseg.errors import BadInput

INSTANCES = "DICOM.instanceUIDs"  # attribute that Slicer's DICOM reader gives a volume: one UID a slice


@dataclass(frozen=True)
class Series:
    """One series of the database.

    Attributes
    ----------
    uid : str
        SeriesInstanceUID.
    modality, title : str
        "CT", and its number and description.
    """

    uid: str
    modality: str
    title: str


def database():
    """The open database, or None."""
    found = getattr(slicer, "dicomDatabase", None)
    return found if found is not None and found.isOpen else None


def reason_against() -> str:
    """Why the database cannot be used, in words; "" when it can."""
    if getattr(slicer, "dicomDatabase", None) is None:
        return _("This Slicer has no DICOM module; choose a folder instead")
    if database() is None:
        return _("Slicer's DICOM database is closed; open the module DICOM once and choose its folder there")
    return ""


def require_database():
    """The open database, or BadInput."""
    found = database()
    if found is None:
        raise BadInput(reason_against() + ".", _("Or choose a folder of DICOM files."))
    return found


# what is in it


def patients() -> list[tuple[str, str]]:
    """The database's own id and the name of each patient, by name."""
    found = require_database()
    named = [(uid, _words(found.nameForPatient(uid)) or _("Patient without name")) for uid in found.patients()]
    return sorted(named, key=lambda row: row[1].casefold())


def studies(patient: str) -> list[tuple[str, str]]:
    """UID, and date with description, of each study of a patient, the newest first."""
    found = require_database()
    rows = [(uid, _day(found.fieldForStudy("StudyDate", uid))) for uid in found.studiesForPatient(patient)]
    rows = sorted(rows, key=lambda row: row[1], reverse=True)
    return [(uid, _joined((day, found.descriptionForStudy(uid))) or _("Study")) for uid, day in rows]


def series(study: str) -> list[Series]:
    """The series of a study, by number."""
    found = require_database()
    rows = []
    for uid in found.seriesForStudy(study):
        number = str(found.fieldForSeries("SeriesNumber", uid) or "")
        title = _joined((number, found.descriptionForSeries(uid))) or _("Series")
        rows.append((_number(number), Series(uid, found.fieldForSeries("Modality", uid) or "", title)))
    return [row for _order, row in sorted(rows, key=lambda pair: pair[0])]


def title_of(uid: str) -> str:
    """ "Müller Jörg, 2025-01-02, Abdomen": what tells a series from others; "" where the database does not know it."""
    found = database()
    study = found.studyForSeries(uid) if found is not None else ""
    if not study:
        return ""
    name = _words(found.nameForPatient(found.patientForStudy(study)))
    return _joined((name, _day(found.fieldForStudy("StudyDate", study)), found.descriptionForSeries(uid)))


def files_of(uids: Sequence[str]) -> tuple[str, ...]:
    """The files of these series; BadInput where one has none, or is on a server and not fetched yet."""
    found, files = require_database(), []
    for uid in uids:
        own = found.filesForSeries(uid)
        if not own or not all(own):  # what a server was only asked about has images without a file, ""
            raise BadInput(
                _("The series {title} has no files in the DICOM database, or not all.").format(
                    title=title_of(uid) or uid
                ),
                _("Import it again in the module DICOM, or load it once there."),
            )
        files += own
    return tuple(files)


# the scans of the scene


def load_series(uid: str) -> slicer.vtkMRMLScalarVolumeNode | None:
    """Load a series by Slicer's own reader, under its patient and study; the volume with most slices, None: there is none."""
    from DICOMLib import DICOMUtils  # part of Slicer's DICOM module

    nodes = [slicer.mrmlScene.GetNodeByID(node_id) for node_id in DICOMUtils.loadSeriesByUID([uid])]
    volumes = [node for node in nodes if node is not None and node.IsA("vtkMRMLScalarVolumeNode")]
    return max(volumes, key=lambda node: len((node.GetAttribute(INSTANCES) or "").split()), default=None)


def loaded_scan(uid: str) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The scan of the scene that was loaded from this series, or None."""
    found = database()
    instances = set(found.instancesForSeries(uid)) if found is not None else set()
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        own = (node.GetAttribute(INSTANCES) or "").split()
        if own and own[0] in instances:
            return node
    return None


def reason_against_files(scan: slicer.vtkMRMLScalarVolumeNode) -> str:
    """Why the DICOM files of a scan cannot be found, in words; one look into the database."""
    uids = (scan.GetAttribute(INSTANCES) or "").split()
    if not uids:
        return _("Its scan was not loaded from DICOM; a DICOM result refers to the scan's own DICOM files")
    if reason_against():
        return reason_against()
    if not database().fileForInstance(uids[0]):
        return _("The scan's DICOM files are no longer in Slicer's DICOM database")
    return ""


def source_files(scan: slicer.vtkMRMLScalarVolumeNode) -> tuple[str, ...]:
    """The DICOM files that a scan was loaded from.

    Raises
    ------
    BadInput
        It was not loaded from DICOM, or some of the files are gone from the database.
    """
    reason = reason_against_files(scan)
    if reason:
        raise BadInput(reason + ".", _("Save the segmentation as a file instead, or load the scan from DICOM."))
    found = database()
    files = [found.fileForInstance(uid) for uid in dict.fromkeys(scan.GetAttribute(INSTANCES).split())]
    missing = sum(not file for file in files)
    if missing:
        raise BadInput(
            _("{missing} of {count} DICOM files of {scan} are no longer in Slicer's DICOM database.").format(
                missing=missing, count=len(files), scan=scan.GetName()
            ),
            _("Import the series again in the module DICOM."),
        )
    return tuple(dict.fromkeys(files))


# words


def _words(name: str) -> str:
    """A person's name as DICOM has it, "Müller^Jörg", in words."""
    return " ".join((name or "").replace("^", " ").split())


def _day(date: str) -> str:
    """ "2025-01-02" of "20250102"."""
    text = str(date or "")
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text


def _joined(parts: Sequence[str]) -> str:
    return ", ".join(part for part in ((p or "").strip() for p in parts) if part)


def _number(text: str) -> tuple[bool, int]:
    return (False, int(text)) if text.isdigit() else (True, 0)
