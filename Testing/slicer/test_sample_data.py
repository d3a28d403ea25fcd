"""The samples in Slicer's Sample Data module: registered, loaded as nodes, and refused where they are not the real ones."""

from __future__ import annotations

import ast
import hashlib
import http.server
import importlib.util
import io
import re
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

MODULE = Path(__file__).resolve().parents[2] / "PEFTSegment"


@pytest.fixture
def samples(host, monkeypatch):
    """The module under test, imported the way Slicer's module finds it."""
    monkeypatch.syspath_prepend(str(MODULE))
    from PEFTSegmentLib import sample_data

    return sample_data


def registered() -> dict:
    import slicer

    return {source.sampleName: source for source in slicer.modules.sampleDataSources["PEFTSegment"]}


def volumes() -> list:
    import slicer

    return slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")


def segmentations() -> list:
    import slicer

    return slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def segments(segmentation) -> dict:
    core = segmentation.GetSegmentation()
    return {core.GetSegment(i).GetName(): core.GetSegment(i) for i in core.GetSegmentIDs()}


def published_by_monai() -> dict[str, dict[str, str]]:
    """Addresses and hashes of MONAI's DecathlonDataset, read without importing it: Slicer's process takes no torch."""
    found = importlib.util.find_spec("monai")
    if found is None:
        pytest.skip("MONAI is not installed")
    file = Path(found.submodule_search_locations[0]) / "apps" / "datasets.py"
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    (dataset,) = [node for node in classes if node.name == "DecathlonDataset"]
    tables = [node for node in dataset.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in tables}


def test_three_samples_are_registered_with_pictures_and_a_downloader(samples):
    samples.register_sample_data(MODULE / "Resources")
    found = registered()
    assert [name.split(",")[0] for name in found] == ["Made-up CT", "Hippocampus MR", "Spleen CT"]
    for source in found.values():
        assert Path(source.thumbnailFileName).is_file()
        assert callable(source.customDownloader)


def test_slicer_5_10_gets_the_samples_without_a_category_title(samples, request):
    request.getfixturevalue("older_host")
    samples.register_sample_data(MODULE / "Resources")
    assert len(registered()) == 3


def test_the_public_sets_have_the_addresses_and_hashes_that_monai_publishes(samples):
    published = published_by_monai()
    samples.register_sample_data(MODULE / "Resources")
    public = [source for source in registered().values() if source.checksums[0]]
    assert [source.fileNames[0] for source in public] == ["Task04_Hippocampus.tar", "Task09_Spleen.tar"]
    for source in public:
        task = source.fileNames[0].removesuffix(".tar")
        assert source.uris == [published["resource"][task]]
        assert source.checksums == [f"MD5:{published['md5'][task]}"]


def test_the_checksums_are_of_a_kind_that_slicer_reads(samples):
    import slicer

    samples.register_sample_data(MODULE / "Resources")
    for source in registered().values():
        if source.checksums[0]:
            assert slicer.util.extractAlgoAndDigest(source.checksums[0])[0] == "MD5"


def test_made_up_scans_load_as_five_labelled_and_two_new_ones(samples):
    samples.register_sample_data(MODULE / "Resources")
    source = next(s for name, s in registered().items() if name.startswith("Made-up"))
    nodes = source.customDownloader(source)
    assert [v.GetName() for v in volumes()] == [f"CT {n}" for n in range(1, 8)]
    assert [s.GetName() for s in segmentations()] == [f"CT {n} labels" for n in range(1, 6)]
    assert len(nodes) == 12
    for labels in segmentations():
        assert list(segments(labels)) == ["gallbladder", "aorta"]


def test_made_up_segments_carry_colour_and_terminology(samples):
    from peftseg.structures import structure_named

    samples.load_made_up_scans()
    found = segments(segmentations()[0])
    for name in ("gallbladder", "aorta"):
        wanted = structure_named(name)
        assert found[name].GetTerminology() == wanted.code
        assert tuple(round(c * 255) for c in found[name].GetColor()) == wanted.colour
    assert "28231008" in found["gallbladder"].GetTerminology()


def first_person_of_the_demo() -> int:
    """Read from the file: importing it would load torch."""
    text = (MODULE / "peftseg" / "demo.py").read_text(encoding="utf-8")
    return int(re.search(r"^FIRST_PERSON = ([\d_]+)", text, re.MULTILINE)[1])


def test_made_up_scans_are_the_demos_voxel_for_voxel(samples, tmp_path):
    import slicer
    import vtk

    from peftseg import phantom
    from peftseg.volume import read_labels, read_volume

    samples.load_made_up_scans()
    (case,) = phantom.write_dataset(tmp_path, [first_person_of_the_demo()], phantom.SITE_B)
    scan = read_volume(tmp_path / "images" / f"{case}.nii.gz")
    volume, labels = volumes()[0], segmentations()[0]
    assert np.array_equal(slicer.util.arrayFromVolume(volume), scan.array.transpose(2, 1, 0))
    assert slicer.util.arrayFromVolume(volume).dtype == np.int16  # half the memory
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    assert np.allclose(slicer.util.arrayFromVTKMatrix(matrix), scan.grid.affine, atol=1e-4)
    truth = read_labels(tmp_path / "labels" / f"{case}.nii.gz")
    for structure in phantom.structures_named(["gallbladder", "aorta"]):
        segment_id = labels.GetSegmentation().GetSegmentIdBySegmentName(structure.name)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(labels, segment_id, volume)
        assert np.array_equal(mask.astype(bool), truth.mask(structure).transpose(2, 1, 0))
        assert mask.any()


def test_made_up_scans_look_like_ct_in_the_slice_view(samples, host, pictures):
    samples.load_made_up_scans()
    assert host.slice_picture(pictures / "made_up_scan.png").stat().st_size > 3000
    assert volumes()[0].GetDisplayNode().GetWindow() == 420


def test_only_the_labels_of_the_scan_in_view_are_shown(samples):
    import slicer

    samples.load_made_up_scans()
    assert [bool(s.GetDisplayNode().GetVisibility()) for s in segmentations()] == [True, False, False, False, False]
    shown = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0].GetBackgroundVolumeID()
    assert shown == volumes()[0].GetID()


def test_made_up_scans_load_in_seconds_without_freezing(samples):
    import time

    import qt

    ticks = []
    timer = qt.QTimer()
    timer.setInterval(10)
    timer.timeout.connect(lambda: ticks.append(time.monotonic()))
    timer.start()
    start = time.monotonic()
    samples.load_made_up_scans()
    end = time.monotonic()
    timer.stop()
    assert end - start < 20
    assert max(np.diff([start, *ticks, end])) < 2  # the longest time in which Slicer answered nothing


def test_a_second_load_gets_names_of_its_own(samples):
    import slicer

    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT 1")
    samples.load_made_up_scans()
    names = [v.GetName() for v in volumes()]
    assert len(names) == len(set(names)) == 8


def test_cancelling_leaves_the_scene_as_it_was(samples, monkeypatch):
    import qt
    import slicer

    make = slicer.util.createProgressDialog

    def cancelled_at_once(**options):
        dialog = make(**options)
        qt.QTimer.singleShot(0, dialog.cancel)
        return dialog

    monkeypatch.setattr(slicer.util, "createProgressDialog", cancelled_at_once)
    assert samples.load_made_up_scans() == []
    assert volumes() == []


# public sets: a small archive of the same layout on a server of this machine


def nifti(path: Path, array: np.ndarray) -> bytes:
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path.read_bytes()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def archive(folder: Path, labelled: int = 7, new: int = 3) -> Path:
    """Like Task04_Hippocampus.tar: numbers out of order, files of macOS between, more scans than needed."""
    rng = np.random.default_rng(0)
    path = folder / "Task04_Hippocampus.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "Task04_Hippocampus/dataset.json", b"{}")
        add(tar, "Task04_Hippocampus/imagesTr/._hippocampus_001.nii.gz", b"no image")
        add(tar, "Task04_Hippocampus/imagesTs/._hippocampus_001.nii.gz", b"no image")
        add(tar, "../imagesTs/evil_001.nii.gz", b"outside")
        link = tarfile.TarInfo("Task04_Hippocampus/imagesTs/hippocampus_002.nii.gz")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for number in [*range(labelled, 0, -1), 100]:
            name = f"hippocampus_{number:03d}.nii.gz"
            grey = rng.normal(100, 9, (6, 7, 8)).astype(np.float32)
            labels = np.zeros((6, 7, 8), np.uint8)
            labels[1:3], labels[3:5] = 1, 2
            add(tar, f"Task04_Hippocampus/imagesTr/{name}", nifti(folder / "a.nii.gz", grey))
            if number != 1:  # the first has no labels
                add(tar, f"Task04_Hippocampus/labelsTr/{name}", nifti(folder / "b.nii.gz", labels))
        for number in range(201, 201 + new):
            grey = rng.normal(100, 9, (6, 7, 8)).astype(np.float32)
            name = f"Task04_Hippocampus/imagesTs/hippocampus_{number}.nii.gz"
            add(tar, name, nifti(folder / "a.nii.gz", grey))
    return path


@pytest.fixture
def server(tmp_path):
    """A server for the files of `tmp_path / "web"`; gives its address and the list of requested paths."""
    web = tmp_path / "web"
    web.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_arguments):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(web))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield SimpleNamespace(folder=web, address=f"http://127.0.0.1:{running.server_port}/", asked=asked)
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(host, tmp_path):
    """An empty cache folder of the application, for this test."""
    import slicer

    manager = slicer.mrmlScene.GetCacheManager()
    before, folder = manager.GetRemoteCacheDirectory(), tmp_path / "Zwischenspeicher mit ä"
    folder.mkdir()
    manager.SetRemoteCacheDirectory(str(folder))
    yield folder
    manager.SetRemoteCacheDirectory(before)


def source_of(server, path: Path, algorithm: str = "MD5", digest: str = "") -> SimpleNamespace:
    """What Slicer hands to a downloader, for a file of the server."""
    digest = digest or hashlib.new(algorithm.lower(), path.read_bytes()).hexdigest()
    return SimpleNamespace(
        uris=[server.address + path.name], fileNames=[path.name], checksums=[f"{algorithm}:{digest}"]
    )


@pytest.mark.parametrize("algorithm", ["MD5", "SHA256"])
def test_a_public_set_is_downloaded_checked_and_loaded(samples, server, cache, algorithm):
    samples.load_decathlon(source_of(server, archive(server.folder), algorithm))
    assert [v.GetName() for v in volumes()] == [f"hippocampus_{n:03d}" for n in (2, 3, 4, 5, 6, 201, 202)]
    assert [s.GetName() for s in segmentations()] == [f"hippocampus_{n:03d} labels" for n in (2, 3, 4, 5, 6)]
    found = segments(segmentations()[0])
    assert list(found) == ["anterior hippocampus", "posterior hippocampus"]
    assert "5366008" in found["anterior hippocampus"].GetTerminology()


def test_labels_of_a_public_set_lie_where_the_file_says(samples, server, cache):
    import slicer

    samples.load_decathlon(source_of(server, archive(server.folder)))
    labels, volume = segmentations()[0], volumes()[0]
    for name, first in (("anterior hippocampus", 1), ("posterior hippocampus", 3)):
        segment_id = labels.GetSegmentation().GetSegmentIdBySegmentName(name)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(labels, segment_id, volume)
        assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [first, first + 1]


def test_grey_values_of_a_public_set_are_those_of_the_file(samples, server, cache):
    import slicer

    from peftseg.volume import read_volume

    samples.load_decathlon(source_of(server, archive(server.folder)))
    file = read_volume(cache / "PEFTSegment-Task04_Hippocampus" / "images" / "hippocampus_002.nii.gz")
    assert np.array_equal(slicer.util.arrayFromVolume(volumes()[0]), file.array.transpose(2, 1, 0))
    assert not np.array_equal(file.array, np.round(file.array))


def test_the_archive_is_deleted_and_the_next_click_needs_no_internet(samples, server, cache):
    source = source_of(server, archive(server.folder))
    samples.load_decathlon(source)
    assert [p.name for p in cache.iterdir() if p.suffix == ".tar"] == []
    asked = len(server.asked)
    samples.load_decathlon(source)
    assert len(server.asked) == asked
    assert len(volumes()) == 14


def test_nothing_in_an_archive_chooses_a_place_on_the_disk(samples, server, cache):
    samples.load_decathlon(source_of(server, archive(server.folder)))
    assert list(cache.parent.rglob("*evil*")) == []
    unpacked = sorted(p.name for p in (cache / "PEFTSegment-Task04_Hippocampus" / "images").iterdir())
    assert unpacked == [f"hippocampus_{n:03d}.nii.gz" for n in (2, 3, 4, 5, 6)]


@pytest.fixture
def problems(samples, monkeypatch):
    """The problems that a dialog would show."""
    shown: list = []
    monkeypatch.setattr(sys.modules["PEFTSegmentLib.dialogs"], "show", shown.append)
    return shown


def test_an_archive_with_another_hash_is_refused_and_leaves_nothing(samples, server, cache, problems):
    samples.load_decathlon(source_of(server, archive(server.folder), digest="0" * 32))
    assert volumes() == []
    left = [p.name for p in cache.iterdir() if "Task04" in p.name]
    assert left in ([], ["Task04_Hippocampus.tar.lock"])
    (problem,) = problems
    assert "not the published" in problem.why
    assert "click the sample again" in problem.remedy


def test_a_server_that_is_not_there_is_told_in_words(samples, server, cache, problems):
    source = source_of(server, archive(server.folder))
    source.uris = [server.address + "moved.tar"]
    assert samples.load_decathlon(source) == []
    assert "127.0.0.1 has no file" in problems[0].why


def test_an_archive_with_too_few_scans_is_refused(samples, server, cache, problems):
    assert samples.load_decathlon(source_of(server, archive(server.folder, labelled=3))) == []
    assert "expected 5" in problems[0].why
    assert not (cache / "PEFTSegment-Task04_Hippocampus").exists()


def test_a_large_download_asks_first(samples, server, cache, monkeypatch):
    asked: list[str] = []

    def cancel(text, choices, informative=""):
        asked.append(text)
        return choices.index("Cancel")

    monkeypatch.setattr(sys.modules["PEFTSegmentLib.dialogs"], "ask", cancel)
    source = SimpleNamespace(uris=[""], fileNames=["Task09_Spleen.tar"], checksums=["MD5:" + "0" * 32])
    assert samples.load_decathlon(source) == []
    assert "1.5 GB" in asked[0]
    assert server.asked == []


@pytest.mark.realdata
def test_real_scans_of_the_public_set_load_with_their_labels(samples, server, cache, shared_data):
    real = shared_data / "hippocampus_msd"
    path = server.folder / "Task04_Hippocampus.tar"
    with tarfile.open(path, "w") as tar:
        for part, inside, count in (("images", "imagesTr", 5), ("labels", "labelsTr", 5)):
            for file in sorted((real / "support" / part).glob("*.nii.gz"))[:count]:
                add(tar, f"Task04_Hippocampus/{inside}/{file.name}", file.read_bytes())
        for file in sorted((real / "test" / "images").glob("*.nii.gz"))[:2]:
            add(tar, f"Task04_Hippocampus/imagesTs/{file.name}", file.read_bytes())
    samples.load_decathlon(source_of(server, path))
    assert len(volumes()) == 7
    assert all(len(segments(s)) == 2 for s in segmentations())
