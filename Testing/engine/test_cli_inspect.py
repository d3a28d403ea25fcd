"""`peftseg inspect`: files and words that a person, and the module, can use; jobs that survive JSON; errors that help."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from explain_cases import write_adapter
from peftseg.cli import main
from peftseg.config import GradCamJob, ProtoSegJob, from_json, kind_of, to_json, with_absolute_paths
from peftseg.errors import BadInput
from peftseg.explain.support import largest_drops
from peftseg.explain.targets import Target
from peftseg.models import Structure, read_model_dir
from peftseg.paths import models_dir
from peftseg.study import SupportItem
from peftseg.volume import read_labels, read_volume
from small_scans import make_scan_files, write_tiny_model

RUN = ("--device", "cpu", "--precision", "fp32")
BALL = "bright ball"


@pytest.fixture
def case(tmp_path):
    """A tiny model in the catalogue, an adapter of it, and a labelled scan."""
    entry = read_model_dir(write_tiny_model(models_dir() / "tiny"))
    item = make_scan_files(tmp_path, 1)
    return write_adapter(tmp_path / "a.safetensors", entry), item, tmp_path / "out"


def finished(capfd) -> dict:
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert events[-1]["event"] == "finished", events[-1]
    return events[-1]


def test_layers_are_listed_in_network_order_with_kind_and_notes(case, capfd):
    adapter, _, _ = case
    assert main(["inspect", "layers", "--adapter", str(adapter), "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert rows[0]["layer"] == "convInit.conv"
    assert rows[-1] | {"channels": 3} == rows[-1]
    assert (rows[-1]["kind"], rows[-1]["note"]) == ("head", "trivial: this is the logit")
    assert {row["kind"] for row in rows} == {"encoder", "decoder", "head"}
    assert any(row["adapted"] for row in rows)
    assert main(["inspect", "layers", "--model", "tiny"]) == 0
    assert "convInit.conv" in capfd.readouterr().out


def test_grad_cam_leaves_a_float_map_on_the_scans_grid_a_picture_and_a_report(case, capfd):
    adapter, item, out = case
    words = ["inspect", "grad-cam", "--adapter", str(adapter), "--input", item.image, "--structure", BALL]
    words += [
        "--labels",
        item.labels,
        "--out",
        str(out),
        "--layer",
        "up_layers.0.0.conv2.conv",
        "conv_final.2.conv",
        *RUN,
    ]
    assert main([*words, "--json"]) == 0
    result = finished(capfd)
    scan = read_volume(item.image)
    assert [row["layer"] for row in result["layers"]] == ["up_layers.0.0.conv2.conv", "conv_final.2.conv"]
    for row in result["layers"]:
        found = read_volume(row["map"])
        assert found.grid.same_as(scan.grid)
        assert (found.array.min(), found.array.max()) == (0.0, 1.0)
        assert Path(row["picture"]).read_bytes()[:4] == b"\x89PNG"
        assert 0 <= row["match_labels"] <= 1
    assert result["layers"][1]["note"] == "trivial: this is the logit"
    assert "does not show that the result is right" in result["reading"]
    assert (
        json.loads((out / "grad-cam.json").read_text(encoding="utf-8"))["target_voxels"] == result["target_voxels"] > 0
    )
    assert main(words) == 2
    assert "not overwritten" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "target", "voxels"),
    [
        (["--target", "truth"], "truth", None),
        (["--point=7,12,12"], "point", 1),
        (["--region=2,3,4,5,6,8"], "region", 4 * 4 * 5),
        (["--target", "all"], "all", 24**3),
    ],
)
def test_each_target_explains_its_voxels(case, capfd, more, target, voxels):
    adapter, item, out = case
    words = ["inspect", "grad-cam", "--adapter", str(adapter), "--input", item.image, "--structure", BALL, *more]
    assert main([*words, "--labels", item.labels, "--no-pictures", "--out", str(out), "--json", *RUN]) == 0
    result = finished(capfd)
    labelled = int((read_labels(item.labels).layers[0] == 1).sum())
    assert (result["target"], result["target_voxels"]) == (target, voxels or labelled)
    assert result["layers"][0]["picture"] is None


def test_an_empty_prediction_is_no_failure_and_is_said(case, capfd):
    _, item, out = case
    entry = read_model_dir(models_dir() / "tiny")
    never = out.parent / "never.safetensors"
    write_adapter(never, entry, "linear_probe", seed=2)
    from safetensors.torch import load_file

    from peftseg.adapter_file import load_adapter, save_adapter

    recipe, state, _ = load_adapter(never)
    assert load_file(never).keys() == state.keys()
    state["conv_final.2.conv.bias::full"][1] = -1000.0
    save_adapter(out.parent / "none.safetensors", recipe, state)
    words = ["--adapter", str(out.parent / "none.safetensors"), "--input", item.image, "--structure", BALL, *RUN]
    assert main(["inspect", "grad-cam", *words, "--out", str(out)]) == 0
    printed = capfd.readouterr()
    assert f"The map is empty: there is no voxel of '{BALL}' where it is predicted." in printed.out
    result = json.loads((out / "grad-cam.json").read_text(encoding="utf-8"))
    assert result["empty"]
    assert result["layers"][0]["empty"]
    assert not read_volume(result["layers"][0]["map"]).array.any()
    words += ["--labels", item.labels]
    assert main(["inspect", "proto-seg", *words, "--out", str(out)]) == 0
    assert "not defined" in capfd.readouterr().out
    rows = json.loads((out / "proto-seg.json").read_text(encoding="utf-8"))["layers"]
    assert all(row["sa"] is None for row in rows if row["built_by"] == "prediction")
    assert all(row["sa"] is not None for row in rows if row["built_by"] == "truth")
    assert not read_labels(rows[0]["map"]).layers.any()


def test_proto_seg_leaves_a_binary_map_a_layer_a_table_a_chart_and_a_report(case, capfd):
    adapter, item, out = case
    words = ["inspect", "proto-seg", "--adapter", str(adapter), "--input", item.image, "--labels", item.labels]
    assert main([*words, "--structure", BALL, "--out", str(out), "--json", *RUN]) == 0
    result = finished(capfd)
    assert main(["inspect", "layers", "--adapter", str(adapter), "--json"]) == 0
    listed = [row["layer"] for row in json.loads(capfd.readouterr().out)]
    assert [row["layer"] for row in result["layers"]] == [name for name in listed for _ in range(2)]
    scan = read_volume(item.image)
    maps = [row["map"] for row in result["layers"] if row["built_by"] == "prediction"]
    assert len(set(maps)) == len(listed)
    for path in maps:
        found = read_labels(path)
        assert found.grid.same_as(scan.grid)
        assert set(np.unique(found.layers)) <= {0, 1}
    assert Path(result["charts"][BALL]).read_bytes()[:4] == b"\x89PNG"
    with open(result["table"], encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["sa"]) for row in rows] == [row["sa"] for row in result["layers"]]


def test_over_a_support_set_there_are_means_before_and_after_and_the_layers_that_lose(case, tmp_path, capfd):
    adapter, _, out = case
    for part in ("images", "labels"):
        (tmp_path / "support" / part).mkdir(parents=True)
    for number in (1, 2):
        item = make_scan_files(tmp_path, number)
        for part, path in (("images", item.image), ("labels", item.labels)):
            source = tmp_path / path
            source.rename(tmp_path / "support" / part / f"scan_{number}.nii.gz")
    words = ["inspect", "proto-seg", "--adapter", str(adapter), "--support", str(tmp_path / "support")]
    assert main([*words, "--out", str(out), *RUN]) == 0
    assert "Layers whose ability drops most by the adaptation" in capfd.readouterr().out
    result = json.loads((out / "proto-seg.json").read_text(encoding="utf-8"))
    assert (result["scans"], result["basis"], result["failed"]) == (2, "truth", [])
    telling = [row for row in result["layers"] if not row["note"]]
    assert all(
        row["drop"] == pytest.approx(row["before"]["truth"] - row["after"]["truth"], abs=1e-3) for row in telling
    )
    assert set(result["drops"]) <= {row["layer"] for row in telling}
    assert (out / "proto-seg.png").is_file()
    assert not list(out.glob("*.nii.gz"))
    assert set(result["layers"][0]["structures"]) == {BALL, "dark ball"}


def test_the_layers_that_lose_most_come_first_and_trivial_ones_and_noise_do_not_count():
    rows = [
        {"layer": name, "note": note, "drop": drop}
        for name, note, drop in (
            ("a", "", 0.1),
            ("b", "", 0.3),
            ("c", "trivial", 0.9),
            ("d", "", 0.001),
            ("e", "", None),
        )
    ]
    assert largest_drops(rows) == ["b", "a"]


@pytest.mark.parametrize(
    ("verb", "more", "text"),
    [
        ("grad-cam", ["--layer", "convInt.conv"], "Closest: convInit.conv"),
        ("grad-cam", ["--structure", "bright bal"], "no structure 'bright bal'; it has: bright ball, dark ball"),
        ("grad-cam", ["--target", "trueth"], "truth"),
        ("grad-cam", ["--target", "truth"], "no labels were given"),
        ("grad-cam", ["--point=900,0,0"], "no voxel of what the network sees"),
        ("grad-cam", ["--point=1,2"], "3 numbers"),
        ("grad-cam", ["--input", "/no/such.nii.gz"], "does not exist"),
        ("proto-seg", ["--layer", "convInit"], None),
        ("proto-seg", ["--structure", "liver=4"], "Unknown structure of this network 'liver'"),
    ],
)
def test_what_cannot_be_is_told_with_what_can(case, capfd, verb, more, text):
    adapter, item, out = case
    words = ["inspect", verb, "--adapter", str(adapter), "--out", str(out), "--no-pictures", *RUN]
    words += [] if "--input" in more else ["--input", item.image]
    words += [] if "--structure" in more else ["--structure", BALL]
    code = main([*words, *more])
    assert code == (0 if text is None else 2)
    assert (text or "") in capfd.readouterr().err
    if text is not None:
        assert not list(out.glob("*")) if out.exists() else True


def test_without_matplotlib_the_maps_come_without_pictures(case, capfd, monkeypatch):
    adapter, item, out = case
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["inspect", "grad-cam", "--adapter", str(adapter), "--input", item.image, "--structure", BALL]
    assert main([*words, "--out", str(out), "--json", *RUN]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert any("No pictures were drawn" in event.get("message", "") for event in events)
    assert events[-1]["layers"][0]["picture"] is None


JOBS = [
    GradCamJob(
        "a.safetensors", None, "i.nii.gz", Structure(BALL, 1), "out", ("x",), Target("point", (1.0, 2.5, 3.0)), "l"
    ),
    GradCamJob(None, "tiny", "i", Structure(BALL, 1), "out", target=Target("region", region=(0.0, 0, 0, 1, 1, 1))),
    ProtoSegJob("a", None, "out", input="i.nii.gz", structures=(Structure(BALL, 1),), maps=False),
    ProtoSegJob("a", None, "out", support=(SupportItem("i", "l"),), layers=("x", "y")),
]


@pytest.mark.parametrize("job", JOBS)
def test_a_job_comes_back_from_json_and_its_paths_are_absolute(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_json(to_json(job)) == job
    assert kind_of(job) == ("grad_cam" if isinstance(job, GradCamJob) else "proto_seg")
    absolute = with_absolute_paths(job)
    assert absolute.out == str(tmp_path / "out")
    given = absolute.support[0].image if getattr(job, "support", ()) else absolute.input
    assert given == str(tmp_path / (job.support[0].image if getattr(job, "support", ()) else job.input))
    if job.__dict__.get("labels"):
        assert absolute.labels == str(tmp_path / "l")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"input": None}, "one scan or a support set"),
        ({"model": "m"}, "an adapter or a model"),
        ({"out": ""}, "result"),
    ],
)
def test_a_job_that_cannot_be_is_refused(change, text):
    with pytest.raises(BadInput, match=text):
        ProtoSegJob(**{"adapter": "a", "model": None, "out": "o", "input": "i", **change})
