"""Which scans are of one patient, so that leaving out is leaving out a patient and not a scan. Torch-free.

A patient is a number by order and nothing else: no name and no DICOM number goes into a job, a record or an event. A scan
without one (None) counts as a patient of its own. Where all scans are of one patient (follow-ups, or numbers that a
de-identification made equal), each is left out alone, for without that patient nothing would be left to learn from.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol, TypeVar

ONE_PATIENT = (
    "All {n} labelled scans are of one patient: the adapter will know that patient only, and an estimate says nothing about "
    "others; scans of about five patients are advised. Where they are of different patients, correct 'patient' in "
    "support.json (in Slicer: the patients in the module Data)."
)


class OfPatient(Protocol):
    """What has a patient: `SupportItem`, `LoadedScan`."""

    @property
    def patient(self) -> int | None:
        """Number of the patient, or None."""


Scan = TypeVar("Scan", bound=OfPatient)


def numbered(keys: Iterable[Hashable | None]) -> list[int | None]:
    """A number by order, from 1 on, in place of what tells patients apart; None stays."""
    numbers: dict[Hashable, int] = {}
    return [None if key is None else numbers.setdefault(key, len(numbers) + 1) for key in keys]


def patients_of(scans: Iterable[OfPatient]) -> list[int | None]:
    """The number of each scan's patient."""
    return [scan.patient for scan in scans]


def by_patient(patients: Sequence[int | None]) -> list[list[int]]:
    """Indices (from 0 on) of each patient's scans, in the order of the patients' first scans; one by one if all are of one."""
    if of_one_patient(patients):
        return [[index] for index in range(len(patients))]
    found: dict[Hashable, list[int]] = {}
    for index, patient in enumerate(patients):
        found.setdefault(("alone", index) if patient is None else patient, []).append(index)
    return list(found.values())


def same_patient(patients: Sequence[int | None], index: int) -> list[int]:
    """Indices of the scans that are left out together with one (its index, from 0 on), itself too."""
    return next(group for group in by_patient(patients) if index in group)


def without_patient_of(scans: Sequence[Scan], index: int) -> list[Scan]:
    """The scans that are not of the same patient as one of them (its index, from 0 on), in their order."""
    own = same_patient(patients_of(scans), index)
    return [scan for n, scan in enumerate(scans) if n not in own]


def patients_differ(patients: Sequence[int | None]) -> bool:
    """Whether scans are known to be of several patients: words then say "patient" and not "scan"."""
    return any(patient is not None for patient in patients) and not of_one_patient(patients)


def count_patients(patients: Sequence[int | None]) -> int | None:
    """How many patients the scans are of; None where nothing is known of them."""
    if of_one_patient(patients):
        return 1
    return len(by_patient(patients)) if patients_differ(patients) else None


def of_one_patient(patients: Sequence[int | None]) -> bool:
    """Whether there are several scans, all of one patient."""
    return len(patients) > 1 and patients[0] is not None and len(set(patients)) == 1
