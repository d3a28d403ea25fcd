"""Names of results: those of the inputs, told apart where they are equal. Torch-free."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from peftseg.errors import BadInput
from peftseg.label_pairs import RESULT_SUFFIX
from peftseg.volume import file_stem
from peftseg.writing import SIDECAR_FORMAT, sidecar_path

SUFFIXES = {"nifti": ".nii.gz", "nrrd": ".seg.nrrd", "dicom-seg": ".dcm", "rtstruct": ".rtstruct.dcm"}


def result_name(name: str, file_format: str) -> str:
    """File name of a study's result."""
    return f"{name}{RESULT_SUFFIX}{SUFFIXES[file_format]}"


def files_of_result(target: Path, file_format: str) -> tuple[Path, ...]:
    """The files of a result: its own, and the sidecar of a plain label map."""
    return (target, sidecar_path(target)) if file_format == "nifti" else (target,)


def is_result(path: Path) -> bool:
    """Whether a file is a label map that `write_segmentation` left, with the sidecar that tells so."""
    sidecar = sidecar_path(path)
    return path.is_file() and sidecar.is_file() and SIDECAR_FORMAT in sidecar.read_text("utf-8", errors="replace")


def unique_names(paths: list[Path]) -> list[str]:
    """File or folder names without suffix; where they are equal, with as many folders in front as it takes.

    Raises
    ------
    BadInput
        Two inputs cannot be told apart by name, such as ct.nii.gz and ct.nrrd in one folder.
    """
    depths = [0] * len(paths)
    while True:
        names = [_name(path, depth) for path, depth in zip(paths, depths, strict=True)]
        counts = Counter(name.lower() for name in names)  # some systems do not tell Case from case
        twice = [i for i, name in enumerate(names) if counts[name.lower()] > 1]
        if not twice:
            return names
        if all(depths[i] >= len(paths[i].parts) - 2 for i in twice):
            raise BadInput(
                f"{paths[twice[0]]} and {paths[twice[1]]} would have the same result name.", "Rename one of them."
            )
        for i in twice:
            depths[i] = min(depths[i] + 1, len(paths[i].parts) - 2)


def _name(path: Path, depth: int) -> str:
    folders = path.parts[len(path.parts) - 1 - depth : -1]
    return "_".join([*folders, file_stem(path)])
