"""Batches: one line a study, nothing twice, none that stops the others, and nothing about patients."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from batch_cases import batch_job, lines_of, said, states_of, write_model, write_scan, write_scans
from peftseg import batch_results, cli, manifest
from peftseg.apply import run_apply
from peftseg.apply_steps import load
from peftseg.batch_plan import Planner
from peftseg.batch_report import png
from peftseg.batch_results import process
from peftseg.batch_state import Batch, Tally
from peftseg.config import from_json, to_json
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.manifest import Manifest
from peftseg.measure import measure
from peftseg.models import ModelEntry, Structure, read_model_dir
from peftseg.networks import build
from peftseg.paths import models_dir
from peftseg.volume import Grid, read_labels
from peftseg.weights import save_model
from test_apply import ENTRY, make_adapter
from test_dicom import write_slice

HERE = Path(__file__).parent
KILLED_WHILE_MOVING = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from batch_cases import batch_job
from peftseg import batch_results
from peftseg.apply import run_apply
from peftseg.events import Reporter

real, moved = os.replace, []
def replace(source, target):
    moved.append(target)
    if len(moved) == int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
class Moves:
    replace = staticmethod(replace)
batch_results.os = Moves
run_apply(batch_job(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])), Reporter.silent())
"""
ON_A_SMALL_DISK = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from batch_cases import batch_job, states_of
from peftseg.apply import run_apply
from peftseg.errors import PeftsegError
from peftseg.events import Reporter

model, out, scans = Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
found = {}
try:
    run_apply(batch_job(model, out, scans), Reporter.silent())
except PeftsegError as error:
    found["error"] = f"{type(error).__name__}: {error}"
found["first"] = states_of(out)
found["left behind"] = sorted(p.name for p in out.iterdir() if p.name.startswith("."))
(out / "ballast").unlink()
found["second"] = {k: v for k, v in run_apply(batch_job(model, out, scans), Reporter.silent()).items() if isinstance(v, int)}
found["last"] = states_of(out)
found["files"] = sorted(p.name for p in out.glob("*_seg.nii.gz"))
print(json.dumps(found))
"""


def write_series(folder: Path, depths, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for depth in depths:
        write_slice(folder, (-20, 30, depth), **changes)
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    return write_model(tmp_path / "model")


def run(job, reporter=None) -> dict:
    return run_apply(job, reporter or Reporter.silent())


# what comes out


def test_a_batch_leaves_results_a_line_a_study_a_table_and_a_report(model, tmp_path):
    scans, out = write_scans(tmp_path / "in", 3), tmp_path / "out"
    reporter = Reporter.silent()
    result = run(batch_job(model, out, scans), reporter)
    assert {k: result[k] for k in ("studies", "done", "skipped", "failed_count")} == {
        "studies": 3,
        "done": 3,
        "skipped": 0,
        "failed_count": 0,
    }
    assert states_of(out) == {f"scan{n:03d}": "done" for n in range(3)}
    plain = run(batch_job(model, tmp_path / "plain", scans / "scan001.nii.gz", batch=False))
    assert (read_labels(out / "scan001_seg.nii.gz").layers == read_labels(Path(plain["outputs"][0])).layers).all(), (
        "as without a batch"
    )
    line = manifest.read(out)[next(k for k, v in manifest.read(out).items() if v["name"] == "scan001")]
    assert line["volumes_ml"] == plain["volumes_ml"]["scan001_seg.nii.gz"]
    assert line["input"] == str(scans / "scan001.nii.gz")
    assert line["adapter"] == "tiny"
    assert line["outputs"][0]["sha256"] == manifest.content_sha256([out / "scan001_seg.nii.gz"])
    with open(out / "measurements.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["study"], r["structure"]) for r in rows[:2]] == [("scan000", "bright ball"), ("scan000", "dark ball")]
    assert float(rows[2]["volume_ml"]) == line["volumes_ml"]["bright ball"]
    flags = [line["flags"].get(row["structure"], []) for row in rows if row["study"] == "scan001"]
    assert [row["flags"] for row in rows if row["study"] == "scan001"] == ["; ".join(found) for found in flags]
    page = (out / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:href|src)="([^":]+)"', page)
    assert len([link for link in links if link.endswith(".png")]) == 3
    assert all((out / link).is_file() for link in links)
    assert "http" not in page
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")], "nothing half-written"
    told = [(e["name"], e["state"], e["step"]) for e in reporter.events if e.get("state")]
    assert told == [("scan000", "done", 1), ("scan001", "done", 2), ("scan002", "done", 3)]


def test_the_report_shows_the_most_doubtful_study_first(tmp_path):
    book = Manifest(tmp_path)
    for name, doubt in (("a", 0.1), ("b", 0.9), ("c", 0.4)):
        outputs = [{"file": f"{name}_seg.nii.gz", "size": 1, "sha256": "0"}]
        book.append({"study": name, "name": name, "state": "done", "outputs": outputs, "study_doubt": doubt})
    from peftseg.batch_report import write_report

    page = write_report(book, tmp_path, ["<b>escaped</b>"]).read_text(encoding="utf-8")
    assert re.findall(r"<h3>(\w)", page) == ["b", "c", "a"]
    assert "&lt;b&gt;" in page


def test_pictures_show_the_right_of_the_patient_on_the_left_and_the_head_on_top(tmp_path):
    from peftseg.batch_report import HEIGHT, thumbnail
    from peftseg.volume import Volume

    labels = np.zeros((20, 20, 20), np.uint8)
    labels[15:, :, 12:] = 1  # i grows to the left (LPS), k to the head
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    volume = Volume(np.zeros(labels.shape, np.float32), Grid(labels.shape, affine), "x")
    path = tmp_path / "x.png"
    path.write_bytes(thumbnail(volume, labels, (Structure("s", 1, (255, 0, 0)),)))
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(int)
    coronal = pixels[:, -HEIGHT:, 0]
    rows, columns = np.nonzero(coronal > 50)
    assert rows.max() < HEIGHT / 2, "the head is on top"
    assert columns.min() > HEIGHT / 2, "the patient's left is on the right"
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).shape[0] == HEIGHT


def test_the_png_writer_writes_what_a_png_reader_reads(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    (tmp_path / "x.png").write_bytes(png(pixels))
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "x.png"))) == pixels).all()


def test_measurements_are_those_of_the_voxels_and_of_the_bodys_axes():
    labels = np.zeros((10, 12, 14), np.uint16)
    labels[2:5, 3:9, 4:6] = 300
    array = np.random.default_rng(1).normal(size=labels.shape).astype(np.float32)
    affine = np.array([[0, 0, 3.0, 7], [-2, 0, 0, 5], [0, 1.5, 0, -4], [0, 0, 0, 1]])  # i to the back, j up, k right
    structures = (Structure("a", 300), Structure("nothing", 7))
    found = measure(array, labels, structures, Grid(labels.shape, affine))
    inside = array[labels == 300].astype(float)
    a = found["a"]
    assert a.voxels == 36
    assert a.volume_ml == pytest.approx(36 * 9 / 1000)
    assert (a.mean, a.sd, a.low, a.high) == pytest.approx(
        (inside.mean(), inside.std(), inside.min(), inside.max()), abs=1e-3
    )
    assert a.extent_mm == (2 * 3.0, 3 * 2.0, 6 * 1.5)
    centre = affine @ [*ndimage.center_of_mass(labels == 300), 1]
    assert a.centre_mm == pytest.approx(tuple(centre[:3]), abs=0.01)
    assert found["nothing"].voxels == 0
    assert found["nothing"].mean is None
    masks = np.stack([labels == 300, labels == 7])
    assert measure(array, masks, structures, Grid(labels.shape, affine)) == found


def make_base() -> ModelEntry:
    """The model that `make_adapter` adapts, in the user's models folder."""
    torch.manual_seed(0)
    save_model(models_dir() / "tiny", ENTRY, build(ENTRY.network, 3)[0])
    return read_model_dir(models_dir() / "tiny")


def test_doubt_about_an_adapters_results_stands_in_the_manifest_and_in_the_table(tmp_path):
    adapter = make_adapter(tmp_path / "a.safetensors", make_base())
    scan, out = write_scan(tmp_path / "in" / "ct.nii.gz"), tmp_path / "out"
    run(batch_job(None, out, scan, adapter=str(adapter), quality="fast"))
    (line,) = manifest.read(out).values()
    assert (line["adapter"], line["state"]) == ("kidneys-v4", "done")
    assert set(line["doubt"]) == {"left kidney", "right kidney"}
    assert all(0 <= value <= 1 for value in (*line["doubt"].values(), line["study_doubt"]))
    with open(out / "measurements.csv", encoding="utf-8", newline="") as stream:
        rows = {row["structure"]: float(row["doubt"]) for row in csv.DictReader(stream)}
    assert rows == line["doubt"]


def test_checks_that_are_asked_for_after_a_run_without_them_are_not_left_out_silently(tmp_path):
    adapter = make_adapter(tmp_path / "a.safetensors", make_base())
    scan, out, reporter = write_scan(tmp_path / "in" / "ct.nii.gz"), tmp_path / "out", Reporter.silent()
    run(batch_job(None, out, scan, adapter=str(adapter)))
    run(batch_job(None, out, scan, adapter=str(adapter), quality="fast"), reporter)
    about_scans, said = [e["message"] for e in reporter.events if e["event"] == "warning"]
    assert about_scans.startswith("Nothing is kept of the labelled scans of left kidney, right kidney")
    assert "1 studies were done in an earlier run without checks of quality" in said


def test_several_adapters_make_one_result_a_study_and_another_rule_is_another_batch(tmp_path):
    base = make_base()
    kidneys = make_adapter(tmp_path / "a.safetensors", base)
    spleen = make_adapter(tmp_path / "b.safetensors", base, (Structure("spleen", 3),), bias=[0.0, 9.0])
    scan, out = write_scan(tmp_path / "in" / "ct.nii.gz"), tmp_path / "out"
    both = {"adapters": (str(kidneys), str(spleen)), "format": "nrrd"}
    run(batch_job(None, out, scan, **both))
    assert set(read_labels(out / "ct_seg.seg.nrrd").segments) == {"left kidney", "right kidney", "spleen"}
    (line,) = manifest.read(out).values()
    assert line["adapter"] == "kidneys-v4 + kidneys-v4"
    assert line["volumes_ml"]["spleen"] == pytest.approx(12**3 * 8 / 1000)
    with pytest.raises(BadInput, match="Choose another output folder"):
        run(batch_job(None, out, scan, **both, merge="union"))


# again


def test_a_second_run_does_nothing_and_a_changed_scan_is_done_again(model, tmp_path):
    scans, out = write_scans(tmp_path / "in", 3), tmp_path / "out"
    run(batch_job(model, out, scans))
    before = {p: p.read_bytes() for p in out.glob("*_seg.*")}
    again = run(batch_job(model, out, scans))
    assert (again["done"], again["skipped"]) == (0, 3)
    assert {p: p.read_bytes() for p in out.glob("*_seg.*")} == before
    os.utime(scans / "scan000.nii.gz")  # touched, with the same content
    write_scan(scans / "scan001.nii.gz", 99)
    again = run(batch_job(model, out, scans))
    assert (again["done"], again["skipped"]) == (1, 2)
    assert (out / "scan001_seg.nii.gz").read_bytes() != before[out / "scan001_seg.nii.gz"]


def test_a_result_that_went_missing_is_made_again_and_one_that_was_edited_is_never_replaced(model, tmp_path):
    scans, out = write_scans(tmp_path / "in", 2), tmp_path / "out"
    run(batch_job(model, out, scans))
    (out / "scan000_seg.nii.gz").unlink()
    (out / "scan001_seg.nii.gz").write_bytes(b"what a doctor corrected")
    result = run(batch_job(model, out, scans))
    assert (out / "scan000_seg.nii.gz").is_file()
    assert (out / "scan001_seg.nii.gz").read_bytes() == b"what a doctor corrected"
    (failed,) = result["failed"]
    assert (failed["name"], "not overwritten" in failed["message"]) == ("scan001", True)


def test_results_of_another_adapter_are_refused_with_both_names(model, tmp_path):
    scans, out = write_scans(tmp_path / "in", 1), tmp_path / "out"
    run(batch_job(model, out, scans))
    other = write_model(tmp_path / "other", "another", seed=1)
    before = sorted(p.name for p in out.rglob("*"))
    with pytest.raises(BadInput, match=r"'tiny' .*'another'"):
        run(batch_job(other, out, scans))
    assert sorted(p.name for p in out.rglob("*")) == before


def test_files_that_lie_in_the_output_folder_already_are_not_overwritten(model, tmp_path):
    scans, out = write_scans(tmp_path / "in", 2), tmp_path / "out"
    out.mkdir()
    (out / "scan000_seg.nii.gz").write_bytes(b"mine")
    result = run(batch_job(model, out, scans))
    assert (out / "scan000_seg.nii.gz").read_bytes() == b"mine"
    assert (result["done"], result["failed_count"]) == (1, 1)


@pytest.mark.parametrize("moves", [1, 2, 3])
def test_a_batch_that_is_killed_while_it_moves_files_goes_on_where_it_was(model, tmp_path, moves):
    scans, out = write_scans(tmp_path / "in", 3), tmp_path / "out"
    arguments = (HERE, model, out, scans, 3 + moves)  # of a study three files are moved; the second study's are hit
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_MOVING, *map(str, arguments)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert states_of(out) == {"scan000": "done", "scan001": "started"}
    with open(out / "manifest.jsonl", "ab") as stream:
        stream.write(b'{"format": 1, "study": "half a li')
    result = run(batch_job(model, out, scans))
    assert (result["done"], result["skipped"], result["failed_count"]) == (2, 1, 0)
    assert set(states_of(out).values()) == {"done"}
    assert sorted(p.name for p in out.glob("*.nii.gz")) == [f"scan{n:03d}_seg.nii.gz" for n in range(3)]
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]


# bad studies


def test_a_corrupt_study_among_good_ones_gets_its_line_and_is_tried_again_by_the_next_run(model, tmp_path):
    scans, out = write_scans(tmp_path / "in", 3), tmp_path / "out"
    good = (scans / "scan001.nii.gz").read_bytes()
    (scans / "scan001.nii.gz").write_bytes(good[: len(good) // 2])
    reporter = Reporter.silent()
    result = run(batch_job(model, out, scans), reporter)
    assert states_of(out) == {"scan000": "done", "scan001": "failed", "scan002": "done"}
    line = next(line for line in lines_of(out) if line["state"] == "failed")
    assert (line["kind"], bool(line["remedy"])) == ("bad_input", True)
    assert result["failed"][0]["message"] == line["message"]
    assert "scan001" in (out / "report.html").read_text(encoding="utf-8")
    (scans / "scan001.nii.gz").write_bytes(good)
    result = run(batch_job(model, out, scans))
    assert (result["done"], result["skipped"]) == (1, 2)
    assert set(states_of(out).values()) == {"done"}


@pytest.mark.parametrize("names", ["keep", "auto"])
def test_a_compressed_file_that_is_cut_off_is_named_and_the_other_studies_go_on(model, tmp_path, names):
    for name in ("a", "b"):
        folder = write_series(
            tmp_path / "in" / name, np.arange(8) * 2.0, Rows=12, Columns=12, SeriesInstanceUID=f"1.{ord(name)}"
        )
        for path in folder.iterdir():
            data = pydicom.dcmread(path)
            data.compress(pydicom.uid.RLELossless)
            data.save_as(path)
    broken = tmp_path / "in" / "a" / "slice005.dcm"
    broken.write_bytes(broken.read_bytes()[:-20])
    result = run(batch_job(model, tmp_path / "out", tmp_path / "in", names=names))
    assert (result["done"], result["failed_count"]) == (1, 1)
    (failed,) = [line for line in lines_of(tmp_path / "out") if line["state"] == "failed"]
    file = "slice005.dcm" if names == "keep" else "[withheld]"
    assert f"{file} (file 6 of 8) cannot be read as a DICOM image" in failed["message"]
    assert "Export the series again" in failed["remedy"]


def test_an_error_inside_the_engine_is_that_studys_only(model, tmp_path, monkeypatch):
    scans = write_scans(tmp_path / "in", 3)
    from peftseg import segmenter

    real, calls = segmenter.segment, []

    def broken(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("shapes do not match")
        return real(*arguments, **options)

    monkeypatch.setattr(segmenter, "segment", broken)
    run(batch_job(model, tmp_path / "out", scans))
    assert states_of(tmp_path / "out") == {"scan000": "done", "scan001": "failed", "scan002": "done"}
    line = next(line for line in lines_of(tmp_path / "out") if line["state"] == "failed")
    assert (line["kind"], "shapes do not match" in line["message"]) == ("internal", True)


def test_a_result_whose_study_fails_later_stays_the_batchs_own_also_where_a_worker_says_so(model, tmp_path):
    scan, out = write_scan(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"
    run(batch_job(model, out, scan))
    good = scan.read_bytes()
    scan.write_bytes(good[: len(good) // 2])
    job, book, reporter = batch_job(model, out, scan), Manifest(out), Reporter.silent()
    (study,) = Planner(job, book).plan(tmp_path, reporter).studies
    loaded, device = load(job), torch.device("cpu")
    line, folder = process(study, loaded, job, device, reporter)  # as on a worker, which does not know the manifest
    assert (line["state"], folder) == ("failed", None)
    Batch(job, book, loaded, device, reporter, Tally(), threading.Event()).settle(study, line, folder)
    write_scan(scan, 99)
    assert run(batch_job(model, out, scan))["done"] == 1
    assert states_of(out) == {"a": "done"}


def test_a_result_that_cannot_be_moved_to_its_place_is_that_studys_failure_and_no_fault_of_the_scan(
    model, tmp_path, monkeypatch
):
    def refused(source, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(batch_results, "os", SimpleNamespace(replace=refused))
    scans, out = write_scans(tmp_path / "in", 1), tmp_path / "out"
    with pytest.raises(BadInput, match=r"cannot be written \(Permission denied"):
        run(batch_job(model, out, scans))
    assert states_of(out) == {"scan000": "failed"}


def test_when_nothing_can_be_segmented_the_first_error_is_raised_and_the_manifest_says_it_too(model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").write_bytes(b"this is no scan")
    with pytest.raises(BadInput, match=r"a\.nii\.gz"):
        run(batch_job(model, tmp_path / "out", tmp_path / "in"))
    assert states_of(tmp_path / "out") == {"a": "failed"}


def test_scans_of_one_name_keep_names_of_their_own_in_every_run(model, tmp_path):
    for folder in ("p1", "p2"):
        write_scan(tmp_path / "in" / folder / "ct.nii.gz", seed=len(folder))
    write_scan(tmp_path / "in" / "p2" / "ct.nrrd", seed=5)
    out = tmp_path / "out"
    run(batch_job(model, out, tmp_path / "in" / "p1"))
    assert states_of(out) == {"ct": "done"}
    run(batch_job(model, out, tmp_path / "in"))
    names = states_of(out)
    assert len(names) == 3
    assert "ct" in names
    again = run(batch_job(model, out, tmp_path / "in"))
    assert (again["done"], again["skipped"]) == (0, 3)
    assert len({line["input"] for line in manifest.read(out).values()}) == 3


def test_results_in_the_output_folder_are_no_studies(model, tmp_path):
    folder = write_scans(tmp_path / "both", 1)
    run(batch_job(model, folder, folder, format="nrrd"))
    write_scan(folder / "scan001.nii.gz", 1)
    result = run(batch_job(model, folder, folder, format="nrrd"))
    assert (result["done"], result["skipped"]) == (1, 1)


def test_a_full_disk_keeps_what_is_complete_and_the_rest_is_done_by_the_next_run(model, tmp_path):
    scans, out = write_scans(tmp_path / "in", 6), tmp_path / "disk"
    out.mkdir()
    inside = f'mount -t tmpfs -o size=400k none "{out}" && head -c 340000 /dev/zero > "{out}/ballast" && exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", inside, "sh", sys.executable, "-c", ON_A_SMALL_DISK]
    probe = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", str(out)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let users mount a small disk of their own")
    done = subprocess.run([*command, *map(str, (HERE, model, out, scans))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert re.match(r"DiskFull: The disk of .* has [\d.]+ MB free", found["error"])
    complete = [name for name, state in found["first"].items() if state == "done"]
    assert 0 < len(complete) < 6
    assert set(found["first"].values()) <= {"done", "retry", "started"}
    assert found["left behind"] == []
    assert found["second"]["skipped"] == len(complete)
    assert found["second"]["done"] == 6 - len(complete)
    assert set(found["last"].values()) == {"done"}
    assert len(found["files"]) == 6


# patients


def test_names_of_patients_are_nowhere_unless_they_are_asked_for(model, tmp_path):
    folder = tmp_path / "in" / "DOE^JANE_19610203"
    write_series(folder / "CT_Doe", np.arange(8) * 2.0, Rows=12, Columns=12, PatientID="PID12345")
    broken = write_series(
        tmp_path / "in" / "DOE^JOHN" / "Doe_broken", [0, 2, 9], PatientName="Doe^John", SeriesInstanceUID="1.9"
    )
    (broken / "slice001.dcm").rename(broken / "Doe_John_1.dcm")
    out, reporter = tmp_path / "out", Reporter.silent()
    result = run(batch_job(model, out, tmp_path / "in"), reporter)
    assert (result["done"], result["failed_count"]) == (1, 1)
    told = [json.dumps(result), said(reporter), *(str(p.relative_to(out)) for p in out.rglob("*"))]
    told += [p.read_text(encoding="utf-8") for p in out.rglob("*") if p.suffix in (".jsonl", ".csv", ".html", ".json")]
    assert not [text for text in told if re.search(r"doe|jane|john|PID12345", text, re.IGNORECASE)]
    assert all(name.startswith("study-") for name in states_of(out))
    kept = run(batch_job(model, tmp_path / "kept", tmp_path / "in", names="keep"))
    assert kept["done"] == 1
    assert (tmp_path / "kept" / "CT_Doe_seg.nii.gz").is_file()


def test_two_copies_of_one_series_are_two_studies_with_names_that_stay(model, tmp_path):
    write_series(tmp_path / "in" / "a", np.arange(8) * 2.0, Rows=12, Columns=12)
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "in" / "b")
    plan = [Planner(batch_job(model, tmp_path / "o", tmp_path / "in"), Manifest(tmp_path / "o")) for _ in range(2)]
    first, second = ([s.name for s in p.plan(tmp_path, Reporter.silent()).studies] for p in plan)
    assert first == second
    assert len(set(first)) == 2


def test_a_name_is_withheld_as_a_word_and_not_within_others(model, tmp_path):
    write_series(tmp_path / "in" / "Li", np.arange(8) * 2.0, PatientName="Lung^Li An", Rows=12, Columns=12)
    job = batch_job(model, tmp_path / "o", tmp_path / "in")
    (study,) = Planner(job, Manifest(tmp_path / "o")).plan(tmp_path, Reporter.silent()).studies
    assert study.nameless("Lung^Li An: the left lungs of Lung") == "[withheld]: the left lungs of [withheld]"
    assert "Lung" not in repr(study)
    assert str(tmp_path) not in repr(study)


# while it runs


def test_a_cancelled_batch_ends_within_two_seconds_and_leaves_nothing_half_written(model, tmp_path):
    scans, out = write_scans(tmp_path / "in", 40), tmp_path / "out"
    asked: list[float] = []

    def request() -> str:
        done = (out / "manifest.jsonl").is_file() and list(states_of(out).values()).count("done") >= 2
        if done and not asked:
            asked.append(time.monotonic())
        return "cancel" if asked else ""

    reporter = Reporter(lambda kind, fields: None, request)
    with pytest.raises(JobCancelled):
        run(batch_job(model, out, scans), reporter)
    assert time.monotonic() - asked[0] < 2
    time.sleep(0.2)
    complete = [name for name, state in states_of(out).items() if state == "done"]
    assert 2 <= len(complete) < 40
    assert {p.name for p in out.glob("*.nii.gz")} == {f"{name}_seg.nii.gz" for name in complete}
    result = run(batch_job(model, out, scans))
    assert result["skipped"] == len(complete)
    assert result["done"] == 40 - len(complete)


def test_stopping_keeps_what_is_done(model, tmp_path):
    scans, out = write_scans(tmp_path / "in", 30), tmp_path / "out"
    reporter = Reporter(lambda kind, fields: None, lambda: "stop_keep" if list(out.glob("*.gz")) else "")
    result = run(batch_job(model, out, scans), reporter)
    assert 1 <= result["done"] < 30
    assert set(states_of(out).values()) == {"done"}
    assert (out / "report.html").is_file()


@pytest.mark.slow
def test_two_batches_never_work_in_one_folder(model, tmp_path):
    scans, out = write_scans(tmp_path / "in", 1), tmp_path / "out"
    script = (
        "import sys; from pathlib import Path; from peftseg.batch import _only_batch_in\n"
        "with _only_batch_in(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(BadInput, match="Another batch"):
            run(batch_job(model, out, scans))
    finally:
        other.communicate("", timeout=30)
    assert run(batch_job(model, out, scans))["done"] == 1


def test_a_watched_folder_takes_files_when_they_are_complete(model, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    whole = write_scan(tmp_path / "later.nii.gz", 3).read_bytes()
    ends = threading.Event()

    def arrive() -> None:
        write_scan(folder / "first.nii.gz", 1)
        with open(folder / "second.nii.gz", "wb") as stream:  # written slowly
            for start in range(0, len(whole), len(whole) // 6 + 1):
                stream.write(whole[start : start + len(whole) // 6 + 1])
                stream.flush()
                time.sleep(0.15)
        limit = time.monotonic() + 60
        while len([s for s in states_of(out).values() if s == "done"]) < 2 and time.monotonic() < limit:
            time.sleep(0.05)
        ends.set()

    thread = threading.Thread(target=arrive)
    (out).mkdir()
    (out / "manifest.jsonl").write_text("", encoding="utf-8")
    thread.start()
    reporter = Reporter(lambda kind, fields: None, lambda: "stop_keep" if ends.is_set() else "")
    result = run(batch_job(model, out, folder, watch=True, settle_s=0.6), reporter)
    thread.join()
    assert (result["done"], result["failed_count"]) == (2, 0), "a file that still grows is not taken"
    assert states_of(out) == {"first": "done", "second": "done"}


# the command line and the job file


def test_what_only_a_batch_has_is_refused_without_one(tmp_path):
    for changes in ({"watch": True}, {"workers": 2}, {"cluster": "tcp://x:1"}):
        with pytest.raises(BadInput, match="batch"):
            batch_job(tmp_path, tmp_path, tmp_path, batch=False, **changes)
    with pytest.raises(BadInput, match="Choose one"):
        batch_job(tmp_path, tmp_path, tmp_path, workers=2, cluster="tcp://x:1")
    with pytest.raises(BadInput, match=r"'secret'.*opaque"):
        batch_job(tmp_path, tmp_path, tmp_path, names="secret")
    job = batch_job(tmp_path, tmp_path, tmp_path, watch=True, settle_s=1.0)
    assert from_json(to_json(job)) == job


def test_a_folder_on_the_command_line_is_a_batch_and_one_file_is_not(model, tmp_path, capsys):
    scans = write_scans(tmp_path / "in", 2)
    common = ["apply", "--model", str(model), "--device", "cpu", "--precision", "fp32"]
    assert cli.main([*common, "--input", str(scans), "--out", str(tmp_path / "a")]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("Segmented 2 studies in ")
    assert (tmp_path / "a" / "manifest.jsonl").is_file()
    assert cli.main([*common, "--input", str(scans / "scan000.nii.gz"), "--out", str(tmp_path / "b")]) == 0
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["scan000_seg.json", "scan000_seg.nii.gz"]


def test_the_bench_refuses_an_unknown_part_before_it_runs_any():
    bench = HERE.parent / "bench" / "bench_batch.py"
    command = [sys.executable, str(bench), "speed", "nonsense"]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2
    assert "'nonsense' is none of speed, memory, workers, large" in found.stderr


def test_lines_that_are_damaged_count_for_nothing_and_are_told(model, tmp_path):
    scans, out = write_scans(tmp_path / "in", 1), tmp_path / "out"
    run(batch_job(model, out, scans))
    text = (out / "manifest.jsonl").read_text(encoding="utf-8")
    (out / "manifest.jsonl").write_text("\x00\x00 not JSON\n" + text, encoding="utf-8")
    reporter = Reporter.silent()
    assert run(batch_job(model, out, scans), reporter)["skipped"] == 1
    assert "1 damaged line" in said(reporter)
