"""Results in the scene without a job, for tests of the Slicer module. No test itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PROVENANCE = {
    "adapter": "liver, site A",
    "adapter_version": "2",
    "adapter_hash": "ab" * 32,
    "base": "tiny",
    "base_fingerprint": "cd" * 32,
}


def write_result(folder: Path, scan, masks: dict[str, np.ndarray], code: str = "") -> Path:
    """What the worker writes for a scan: the scan is exported, read by the engine, and masks (K, J, I) written on its grid."""
    from peftseg.models import Structure
    from peftseg.volume import read_volume, write_segmentation
    from PEFTSegmentLib import exchange

    folder.mkdir(parents=True, exist_ok=True)
    exchange.write_image(folder / "scan_1.nrrd", exchange.image_of(scan))
    grid = read_volume(folder / "scan_1.nrrd").grid
    wanted = [Structure(name, n, (10 * n % 250, 200, 30), code) for n, name in enumerate(masks, start=1)]
    target = folder / "scan_1_seg.seg.nrrd"
    target.unlink(missing_ok=True)
    stack = np.stack([mask.transpose(2, 1, 0) for mask in masks.values()]).astype(bool)
    facts = {**PROVENANCE, "software": "peftseg 1.0", "time": "2026-01-02T03:04:05+00:00"}
    write_segmentation(target, stack, grid, wanted, facts)
    return target


def add_result(
    folder: Path,
    scan,
    masks: dict[str, np.ndarray],
    checks: dict[str, list[str]] | None = None,
    name: str = "liver, site A",
):
    """A result of `name`, version 2, in the scene."""
    from PEFTSegmentLib import results, scans

    path = write_result(folder, scan, masks)
    voxel = float(np.prod(scan.GetSpacing())) / 1000
    volumes = {name: round(int(mask.sum()) * voxel, 3) for name, mask in masks.items()}
    record = {"token": scans.token(scan), "path": path, "volumes_ml": volumes, "checks": checks or {}}
    return results.add(record, name, f"{name}, version 2", PROVENANCE)
