"""What a job segments when it is given mixed DICOM folders and archives: the series that rules choose. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from peftseg.dicom import Plane, read_planes
from peftseg.dicom_rules import LeftOut, Rules, choose, none_chosen
from peftseg.dicom_sort import Series, all_files, find_series
from peftseg.events import Reporter
from peftseg.volume import Volume, file_suffix, finite_voxels


@dataclass(frozen=True)
class SeriesSource:
    """One series to segment.

    Attributes
    ----------
    name : str
        Opaque and unique; for result files and messages: the keys of the study and of the series.
    series : Series
        Facts and planes.
    regularise : bool
        Resample what is irregular.
    """

    name: str
    series: Series
    regularise: bool

    @property
    def files(self) -> tuple[Path, ...]:
        """The DICOM files."""
        return self.series.files

    @property
    def planes(self) -> tuple[Plane, ...]:
        """File and frame of each slice."""
        return self.series.planes

    def read(self, replace_nonfinite: float | None = None) -> Volume:
        """The volume; its notes say what was resampled and what may lack.

        Raises
        ------
        BadInput
            As `dicom.read_planes`; voxels that are not finite. No file name is told.
        """
        array, grid, notes = read_planes(self.series.planes, self.name, self.regularise)
        array, more = finite_voxels(array, replace_nonfinite, self.name)
        return Volume(array, grid, self.name, (*notes, *(f"{self.name}: {note}." for note in self.series.notes), *more))


@dataclass(frozen=True)
class Inputs:
    """What was found in the inputs of a job.

    Attributes
    ----------
    series : tuple of SeriesSource
        DICOM series that the rules chose.
    files : tuple of Path
        Volume files (NIfTI, NRRD, MetaImage) in the folders, or given themselves.
    left_out : tuple of LeftOut
        Series that were not chosen, with reasons.
    """

    series: tuple[SeriesSource, ...]
    files: tuple[Path, ...]
    left_out: tuple[LeftOut, ...]


def dicom_inputs(paths: Iterable[Path | str], rules: Rules, scratch: Path, reporter: Reporter | None = None) -> Inputs:
    """Series and volume files in files, folders and archives.

    Parameters
    ----------
    paths : iterable of Path or str
        Files, folders (searched with their sub-folders) and archives.
    rules : Rules
        Which series are taken.
    scratch : Path
        Folder to unpack archives into; the caller deletes it after the last series was read.
    reporter : Reporter, optional
        Told how far it is; asked whether to go on.

    Raises
    ------
    BadInput
        A path does not exist; nothing is chosen: the reasons are listed; pydicom is missing.
    """
    paths = [Path(path) for path in paths]
    chosen, left_out = choose(find_series(paths, reporter, scratch), rules)
    files = _volume_files(paths)
    if not chosen and not files:
        raise none_chosen(left_out)
    sources = (SeriesSource(f"{s.study}_{s.key}", s, rules.regularise) for s in chosen)
    return Inputs(tuple(sources), tuple(files), tuple(left_out))


def _volume_files(paths: Iterable[Path]) -> list[Path]:
    """Volume files as `study.find_inputs` takes them: no segmentations, nothing hidden."""
    inside = (file for path in paths for file in sorted(all_files([path])))
    wanted = (file for file in inside if file_suffix(file) not in ("", ".seg.nrrd") and file.is_file())
    return list(dict.fromkeys(wanted))
