"""Two folders of label files, paired by name, read structure by structure. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftseg.errors import BadInput
from peftseg.models import Structure
from peftseg.study import SAME_PLACE
from peftseg.volume import SUFFIXES, Labels, file_stem, file_suffix, read_labels

RESULT_SUFFIX = "_seg"  # `peftseg apply` writes scan_seg.nii.gz for scan.nii.gz


@dataclass(frozen=True, eq=False)
class LabelPair:
    """A case's two segmentations on one grid.

    Attributes
    ----------
    prediction, truth : dict
        Structure name -> (I, J, K) bool; empty where a file does not have the structure. Same names on both sides.
    prediction_names, truth_names : frozenset of str
        Segment names that each file brings; empty for a plain label map.
    spacing : tuple of float
        Voxel size in mm along i, j, k.
    """

    case: str
    prediction: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    prediction_names: frozenset[str]
    truth_names: frozenset[str]
    spacing: tuple[float, float, float]


def pair_files(prediction: Path, truth: Path) -> list[tuple[str, Path, Path]]:
    """(case, prediction file, truth file), sorted by case.

    Names are compared without suffix; `scan_seg` also pairs with `scan`. Two files are paired whatever their names.

    Raises
    ------
    BadInput
        Folders without label files, or files without a partner.
    """
    if prediction.is_file() and truth.is_file():
        return [(file_stem(truth), prediction, truth)]
    mine, theirs = _label_files(prediction), _label_files(truth)
    for name in sorted(set(mine) - set(theirs)):
        short = name.removesuffix(RESULT_SUFFIX)
        if short in theirs and short not in mine:
            mine[short] = mine.pop(name)
    alone = [f"{mine[n].name} (prediction)" for n in sorted(set(mine) - set(theirs))]
    alone += [f"{theirs[n].name} (truth)" for n in sorted(set(theirs) - set(mine))]
    if alone:
        raise BadInput(
            f"{len(alone)} label files have no partner: {', '.join(alone[:10])}{' ...' if len(alone) > 10 else ''}.",
            "Give each prediction the name of its truth, and remove what should not be compared.",
        )
    return [(name, mine[name], theirs[name]) for name in sorted(mine)]


def read_pairs(files: Sequence[tuple[str, Path, Path]], structures: Sequence[Structure] | None) -> Iterator[LabelPair]:
    """Read pairs one by one.

    Structures are found by name where a file has names (.seg.nrrd, or the .json beside it), else by label value. With
    `structures` None a pair's structures are those that either file has.

    Raises
    ------
    BadInput
        The grids of a pair differ, or a file cannot be read.
    """
    for case, prediction, truth in files:
        mine, theirs = read_labels(prediction), read_labels(truth)
        if not mine.grid.same_as(theirs.grid, SAME_PLACE * min(theirs.grid.spacing)):
            raise BadInput(
                f"Case '{case}': the grids differ: prediction {mine.grid.describe()}; truth {theirs.grid.describe()}.",
                "Segment the scan that the truth was drawn on, or resample one of the two.",
            )
        wanted = structures if structures is not None else _structures_of(mine, theirs)
        yield LabelPair(
            case,
            {s.name: _mask(mine, s) for s in wanted},
            {s.name: _mask(theirs, s) for s in wanted},
            frozenset(mine.segments),
            frozenset(theirs.segments),
            mine.grid.spacing,
        )


def check_names(pairs: Sequence[tuple[frozenset[str], frozenset[str]]], structures: Sequence[Structure] | None) -> None:
    """Refuse comparisons that a spelling decides: all scores would be 0 and look like a bad model.

    Parameters
    ----------
    pairs : sequence
        Segment names of prediction and truth, one pair a case.
    structures : sequence of Structure or None
        What was asked for.
    """
    predicted = frozenset().union(*(p for p, _ in pairs))
    true = frozenset().union(*(t for _, t in pairs))
    if structures is None:
        _refuse_strangers("prediction", predicted, "truth", true)
        return
    wanted = frozenset(s.name for s in structures)
    for side, names, everywhere in (
        ("prediction", predicted, all(p for p, _ in pairs)),
        ("truth", true, all(t for _, t in pairs)),
    ):
        missing = sorted(wanted - names)
        if everywhere and missing:
            raise BadInput(
                f"No {side} file has the structures {missing}; these have {sorted(names)}.",
                "Use the same structure names on both sides.",
            )


def _refuse_strangers(side: str, names: frozenset[str], other: str, others: frozenset[str]) -> None:
    if names and others and not names & others:
        raise BadInput(
            f"The {side} names {sorted(names)}, the {other} {sorted(others)}; no name is on both sides.",
            "Rename the segments so that a structure has one name.",
        )


def _label_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder.", "Give a folder of label files for both sides, or a file for both.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not file_suffix(path) or path.name.startswith("."):
            continue
        if file_stem(path) in files:
            raise BadInput(
                f"{folder} holds both {files[file_stem(path)].name} and {path.name}.", "Keep one file for each case."
            )
        files[file_stem(path)] = path
    if not files:
        raise BadInput(
            f"{folder} holds no label file ({', '.join(SUFFIXES)}).", "Give the folder with the label files."
        )
    return files


def _structures_of(prediction: Labels, truth: Labels) -> list[Structure]:
    values = {name: value for labels in (prediction, truth) for name, (_, value) in labels.segments.items()}
    if not values:
        values = {str(v): v for v in sorted({*prediction.values(), *truth.values()})}
    return [Structure(name, value) for name, value in values.items()]


def _mask(labels: Labels, structure: Structure) -> np.ndarray:
    if labels.segments and structure.name not in labels.segments:
        return np.zeros(labels.grid.shape, dtype=bool)
    return labels.mask(structure)
