"""A small oblique DICOM series, and a result on its grid, for tests of DICOM output. No test itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peftseg.dicom import read_series
from peftseg.models import Structure
from peftseg.volume import Grid
from test_dicom import write_slice

FRAME_OF_REFERENCE = "1.2.840.99.1"
KIDNEY = Structure("left kidney", 7, (185, 102, 83))
LESION = Structure("Läsion α", 3, (230, 20, 10))
NOWHERE = Structure("spleen", 9, (157, 108, 162))
STRUCTURES = (KIDNEY, LESION, NOWHERE)
PROVENANCE = {
    "adapter": "kidneys of site A",
    "adapter_version": "2",
    "adapter_hash": "ab" * 32,
    "base": "wholebody",
    "base_fingerprint": "cd" * 32,
    "software": "peftseg 0.1.0",
    "time": "2026-11-26T02:00:00+00:00",
    "use": "research only, not a medical device",
}


def write_source(folder: Path, slices: int = 6, **changes) -> Path:
    """An oblique series of 5 columns x 4 rows (or as the changes say) whose files are not in the order of its stack."""
    row, column = np.array([0.6, 0.8, 0]), np.array([0, 0, -1.0])
    normal = np.cross(row, column)
    given = {
        "FrameOfReferenceUID": FRAME_OF_REFERENCE,
        "PatientName": "Müller^Jörg",
        "PatientID": "P1",
        "PatientSex": "O",
        "StudyDate": "20250102",
        "StudyDescription": "Bauch",
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageOrientationPatient": [*row, *column],
        **changes,
    }
    for n in np.random.default_rng(0).permutation(slices):
        write_slice(folder, np.array([-20.5, 30, 7]) + 3 * int(n) * normal, **given)
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def grid_of(folder: Path) -> Grid:
    return read_series(folder)[1]


def label_map(grid: Grid, seed: int = 0) -> np.ndarray:
    """Random voxels of kidney and lesion, none in the first and last plane; no spleen."""
    values = np.random.default_rng(seed).choice([0, 0, KIDNEY.value, LESION.value], grid.shape).astype(np.uint8)
    values[:, :, [0, -1]] = 0
    return values


def overlapping_masks(grid: Grid) -> np.ndarray:
    """(3, I, J, K): kidney and lesion share voxels; no spleen."""
    masks = np.zeros((3, *grid.shape), dtype=bool)
    masks[0, 1:4, :3, 1:4] = True
    masks[1, 2:, 1:, 2:5] = True
    return masks
