"""`slicer.dicomDatabase` and `DICOMLib`, for tests that ask for them: the list of names was printed by a Slicer without DICOM.

The names and signatures are those of ctkDICOMDatabase (commontk/CTK, Libs/DICOM/Core/ctkDICOMDatabase.h) and of
DICOMLib/DICOMUtils.py (Slicer, Modules/Scripted); anything else raises.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import slicer


class ctkDICOMDatabase:
    """An index of a folder of DICOM files."""

    def __init__(self, folder: Path, is_open: bool = True):
        self.isOpen = is_open
        self._files = [_facts(path) for path in sorted(Path(folder).rglob("*.dcm"))]

    def _values(self, wanted: str, **given) -> tuple[str, ...]:
        fits = (f for f in self._files if all(f[name] == str(value) for name, value in given.items()))
        return tuple(dict.fromkeys(f[wanted] for f in fits))

    def _first(self, wanted: str, **given) -> str:
        return next(iter(self._values(wanted, **given)), "")

    def patients(self) -> tuple[str, ...]:
        return self._values("patient")

    def studiesForPatient(self, uid: str) -> tuple[str, ...]:
        return self._values("study", patient=uid)

    def seriesForStudy(self, uid: str) -> tuple[str, ...]:
        return self._values("series", study=uid)

    def instancesForSeries(self, uid: str, hits: int = -1) -> tuple[str, ...]:
        return self._values("instance", series=uid)[: hits if hits >= 0 else None]

    def filesForSeries(self, uid: str, hits: int = -1) -> tuple[str, ...]:
        return self._values("file", series=uid)[: hits if hits >= 0 else None]

    def fileForInstance(self, uid: str) -> str:
        return self._first("file", instance=uid)

    def studyForSeries(self, uid: str) -> str:
        return self._first("study", series=uid)

    def patientForStudy(self, uid: str) -> str:
        return self._first("patient", study=uid)

    def nameForPatient(self, uid: str) -> str:
        return self._first("PatientsName", patient=uid)

    def descriptionForStudy(self, uid: str) -> str:
        return self._first("StudyDescription", study=uid)

    def descriptionForSeries(self, uid: str) -> str:
        return self._first("SeriesDescription", series=uid)

    def fieldForStudy(self, field: str, uid: str) -> str:
        return self._first({"StudyDate": "StudyDate"}[field], study=uid)

    def fieldForSeries(self, field: str, uid: str) -> str:
        return self._first({"SeriesNumber": "SeriesNumber", "Modality": "Modality"}[field], series=uid)


def _facts(path: Path) -> dict[str, str]:
    import pydicom

    data = pydicom.dcmread(path, stop_before_pixels=True)
    kept = ("StudyDescription", "SeriesDescription", "StudyDate", "SeriesNumber", "Modality")
    return {
        "file": str(path),
        "patient": str(sum(map(ord, str(data.PatientID)))),  # the database numbers its patients
        "PatientsName": str(data.PatientName),
        "study": str(data.StudyInstanceUID),
        "series": str(data.SeriesInstanceUID),
        "instance": str(data.SOPInstanceUID),
        **{name: str(data.get(name, "")) for name in kept},
    }


def load_series_by_uid(uids, messages=None, progressCallback=None, enabledPluginClassNames=None) -> list[str]:
    """As DICOMUtils.loadSeriesByUID, with one reader: a regular stack of single-frame files."""
    if not isinstance(uids, list):
        raise ValueError("SeriesUIDs must contain a list")
    if not slicer.dicomDatabase.isOpen:
        raise OSError("DICOM module or database cannot be accessed")
    return [_load(uid) for uid in uids]


def _load(uid: str) -> str:
    import numpy as np
    import pydicom
    import SimpleITK as sitk

    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(
        str(Path(slicer.dicomDatabase.filesForSeries(uid)[0]).parent), uid
    )
    image = sitk.ReadImage(files)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    name = f"{headers[0].SeriesNumber}: {headers[0].get('SeriesDescription', '')}"
    node = slicer.util.addVolumeFromArray(
        sitk.GetArrayFromImage(image), ijkToRAS=np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix, name=name
    )
    node.SetAttribute("DICOM.instanceUIDs", " ".join(str(header.SOPInstanceUID) for header in headers))
    return node.GetID()


def install(monkeypatch, folder: Path, is_open: bool = True) -> ctkDICOMDatabase:
    """Give Slicer a database of a folder's files until the end of the test."""
    database = ctkDICOMDatabase(folder, is_open)
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    package = types.ModuleType("DICOMLib")
    package.DICOMUtils = types.SimpleNamespace(loadSeriesByUID=load_series_by_uid)
    monkeypatch.setitem(sys.modules, "DICOMLib", package)
    return database
