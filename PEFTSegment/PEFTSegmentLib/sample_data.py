"""Scans to try the module with, in Slicer's Sample Data module: made-up ones, and two public sets.

Each set gives five labelled scans to adapt with and two new ones to segment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _

from peftseg.download import download
from peftseg.errors import JobCancelled, PeftsegError
from peftseg.models import Source, Structure
from peftseg.structures import structure_named
from PEFTSegmentLib import dialogs, scans, support
from PEFTSegmentLib.decathlon import (
    ADDRESS,
    HIPPOCAMPUS,
    LABELLED,
    NEW,
    PAGE,
    SPLEEN,
    TASKS,
    Scan,
    Task,
    read_scans,
    unpack_scans,
)

CATEGORY = "PEFTSegment"
FIRST_PERSON = 10_000  # as in the demo, so that both give the same result
MADE_UP_STRUCTURES = ("gallbladder", "aorta")  # one that the bundled model does not know, and one that it knows

Report = Callable[[int, int], None]
Check = Callable[[], None]


def register_sample_data(resource_folder: Path | str) -> None:
    """Add the samples to Slicer's Sample Data module; to be called when the application has started.

    Parameters
    ----------
    resource_folder : Path or str
        The module's `Resources` folder, which holds the pictures.
    """
    import SampleData  # when this file is imported, Slicer may not have loaded that module yet

    logic, icons = SampleData.SampleDataLogic, Path(resource_folder) / "Icons"
    if hasattr(logic, "registerCustomSampleDataCategory"):  # not in Slicer 5.10
        logic.registerCustomSampleDataCategory(CATEGORY, title=_("PEFTSegment"))
    logic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=_("Made-up CT, 5 labelled, 2 new"),
        uris="",  # nothing is downloaded, but Slicer counts the addresses
        customDownloader=load_made_up_scans,
        thumbnailFileName=str(icons / "SampleMadeUp.png"),
    )
    public = (
        (HIPPOCAMPUS, _("Hippocampus MR, 5 labelled, 2 new (28 MB)"), "SampleHippocampus.png"),
        (SPLEEN, _("Spleen CT, 5 labelled, 2 new (1.5 GB)"), "SampleSpleen.png"),
    )
    for task, title, picture in public:
        logic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=title,
            uris=ADDRESS + task.file,
            fileNames=task.file,
            checksums=f"MD5:{task.md5}",
            customDownloader=load_decathlon,
            thumbnailFileName=str(icons / picture),
        )


def load_made_up_scans(_source: object = None) -> list:
    """Make up seven abdominal CT scans of the demo's site B and load them: "CT 1" to "CT 7", five with labels.

    Returns
    -------
    list of nodes
        Volumes and segmentations in the order of loading; empty where the user cancelled.
    """
    wanted = tuple(structure_named(name) for name in MADE_UP_STRUCTURES)

    def make(report: Report, check: Check) -> list[Scan]:
        made = []
        for number in range(LABELLED + NEW):
            check()
            report(number, LABELLED + NEW)
            made.append(made_up_scan(number, wanted if number < LABELLED else ()))
        return made

    return _load(make, _("Making up scans..."), "CT", (-160.0, 260.0))


def made_up_scan(number: int, wanted: Sequence[Structure]) -> Scan:
    """The scan of one made-up person, counted from 0, with labels of the wanted structures."""
    from peftseg import phantom  # needs half a second of imports, at the first click

    case = phantom.make_case(FIRST_PERSON + number, phantom.SITE_B)
    values = {s.name: s.value for s in case.structures}
    masks = tuple((structure, case.labels == values[structure.name]) for structure in wanted)
    return Scan(f"CT {number + 1}", case.volume.array, case.volume.grid.affine, masks)


def load_decathlon(source) -> list:
    """Download a task of the Medical Segmentation Decathlon and load five of its labelled scans and two new ones.

    The archive goes to Slicer's cache folder and is deleted once its few needed scans are unpacked beside it, so that
    the next click loads them without the internet.

    Parameters
    ----------
    source : SampleData.SampleDataSource
        With one address, file name and checksum.

    Returns
    -------
    list of nodes
        Empty where the user cancelled or something failed, which a dialog then tells.
    """
    task = TASKS[source.fileNames[0]]
    cache = Path(slicer.mrmlScene.GetCacheManager().GetRemoteCacheDirectory())
    folder = cache / f"PEFTSegment-{task.name}"
    if not folder.is_dir() and not _agreed(task, cache):
        return []

    def fetch(report: Report, check: Check) -> list[Scan]:
        if not folder.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            algorithm, _colon, digest = source.checksums[0].partition(":")
            published = Source(
                source.fileNames[0],
                source.uris[0],
                PAGE,
                sha256=digest if algorithm == "SHA256" else "",
                md5=digest if algorithm == "MD5" else "",
            )
            archive = download(published, cache, progress=report, check=check)
            unpack_scans(archive, task, folder)
            archive.unlink()
        return read_scans(folder, task, check)

    return _load(fetch, _("Downloading {file}...").format(file=task.file), task.modality, task.window)


def _agreed(task: Task, cache: Path) -> bool:
    """Whether the user agrees to a large download; small ones need no question."""
    if task.megabytes < 500:
        return True
    question = _(
        "{file} is {size:.1f} GB and will be downloaded to {folder}. It is deleted after seven scans were unpacked."
    )
    text = question.format(file=task.file, size=task.megabytes / 1000, folder=cache)
    return dialogs.ask(text, (_("Download"), _("Cancel"))) == 0


# to the scene


def _load(
    make: Callable[[Report, Check], list[Scan]], doing: str, modality: str, window: tuple[float, float] | None
) -> list:
    """Make the scans beside the application, then their nodes; problems come as a dialog."""
    try:
        made = _beside_the_application(make, doing)
    except JobCancelled:
        return []
    except (PeftsegError, OSError) as error:
        dialogs.show(_problem(error))
        return []
    nodes = []
    for scan in made:
        nodes += add_scan(scan, modality, window, visible=not nodes)
        slicer.app.processEvents()
    scans.show_scan(nodes[0])
    return nodes


def _problem(error: Exception) -> dialogs.Problem:
    cause = error.message if isinstance(error, PeftsegError) else str(error)
    remedy = _("Check the internet connection and the space on the disk, then click the sample again.")
    return dialogs.Problem(_("The sample could not be loaded."), cause, remedy)


def _beside_the_application(make: Callable[[Report, Check], list[Scan]], doing: str) -> list[Scan]:
    """Run `make(report, check)` in a thread, which touches no node, while a dialog shows how far it is."""
    state = {"percent": 0, "cancelled": False}

    def report(done: int, total: int) -> None:
        state["percent"] = min(99, 100 * done // total) if total else 0

    def check() -> None:
        if state["cancelled"]:
            raise JobCancelled("Cancelled.")

    dialog = slicer.util.createProgressDialog(
        labelText=doing, windowTitle="PEFTSegment", autoClose=False, autoReset=False
    )
    dialog.setModal(True)  # the sample's button is not clicked twice
    try:
        with ThreadPoolExecutor(max_workers=1) as pool:
            work = pool.submit(make, report, check)
            try:
                while not work.done():
                    dialog.value = state["percent"]
                    slicer.app.processEvents()
                    state["cancelled"] = bool(dialog.wasCanceled)
                    time.sleep(0.02)  # lets the thread work
            finally:
                state["cancelled"] = True  # an error here must not leave the pool waiting
        return work.result()
    finally:
        dialog.close()
        dialog.deleteLater()


def add_scan(scan: Scan, modality: str, window: tuple[float, float] | None, visible: bool = True) -> list:
    """Add a scan to the scene, and its segmentation where it has labels.

    Parameters
    ----------
    scan : Scan
        The scan.
    modality : str
        "CT" or "MR", for the choice of a model.
    window : tuple of float or None
        Grey values shown as black and white; None leaves it to Slicer.
    visible : bool
        Whether the segmentation is shown: labels of one scan would lie over all others.

    Returns
    -------
    list of nodes
        The volume, then the segmentation.
    """
    name = slicer.mrmlScene.GenerateUniqueName(scan.name)
    volume = slicer.util.addVolumeFromArray(_compact(scan.array).transpose(2, 1, 0), scan.affine, name)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(volume)
    if item:
        hierarchy.SetItemAttribute(item, "DICOM.Modality", modality)
    if window is not None:
        volume.GetDisplayNode().SetAutoWindowLevel(False)
        volume.GetDisplayNode().SetWindowLevelMinMax(*window)
    if not scan.masks:
        return [volume]
    labels = support.new_segmentation(volume, [structure for structure, _mask in scan.masks])
    ids = list(labels.GetSegmentation().GetSegmentIDs())
    for segment_id, (_structure, mask) in zip(ids, scan.masks, strict=True):
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            mask.transpose(2, 1, 0).astype(np.uint8), labels, segment_id, volume
        )
    labels.GetDisplayNode().SetVisibility(visible)
    return [volume, labels]


def _compact(array: np.ndarray) -> np.ndarray:
    """As 16-bit integers where nothing is lost by it."""
    narrow = array.astype(np.int16) if np.abs(array).max(initial=0) < 2**15 else array
    return narrow if np.array_equal(narrow, array) else array
