"""Applying adapters and models to files: values, grid and provenance of results, and bad studies among good ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from peftseg.adapter_file import FORMAT, Recipe, save_adapter
from peftseg.adapters import attach, check_options
from peftseg.apply import load_adapted_network, plan_studies, run_apply
from peftseg.config import ApplyJob
from peftseg.device import within_memory
from peftseg.errors import BadInput, JobCancelled, OutOfMemory
from peftseg.events import Reporter
from peftseg.infer import segment
from peftseg.library import store
from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure, read_model_dir
from peftseg.networks import build, head_of, replace_head
from peftseg.paths import models_dir
from peftseg.preprocess import prepare
from peftseg.segmenter import find_base
from peftseg.volume import Grid, read_labels, read_volume, write_volume
from peftseg.weights import architecture, fingerprint, load_base, save_model

CPU = torch.device("cpu")
ARGUMENTS = {"spatial_dims": 3, "init_filters": 4, "in_channels": 1, "blocks_down": [1, 1], "blocks_up": [1]}
ARGUMENTS |= {"norm": ["GROUP", {"num_groups": 2}]}
ENTRY = ModelEntry(
    id="tiny",
    title="Tiny",
    modality="CT",
    structures=(Structure("liver", 6), Structure("spleen", 2)),
    network=NetworkSpec("segresnet", ARGUMENTS),
    activation="softmax",
    preprocessing=Preprocessing("RAS", (2.0, 2.0, 2.0), Intensity("zscore")),
    window=(16, 16, 16),
    overlap=0.5,
    licence="Apache-2.0",
)
LEFT_RIGHT = (Structure("left kidney", 40), Structure("right kidney", 300))
OBLIQUE = np.array([[-1.9, 0.3, 0, 20], [0.3, 1.9, 0, -30], [0, 0, 2.5, 5], [0, 0, 0, 1]])


@pytest.fixture
def base() -> ModelEntry:
    """A random model in the user's models folder."""
    torch.manual_seed(0)
    network, _ = build(ENTRY.network, 3)
    save_model(models_dir() / "tiny", ENTRY, network)
    return read_model_dir(models_dir() / "tiny")


def attached_to(entry: ModelEntry, n_outputs: int):
    """The base with a random adapter, whose rows win about equally often; always the same one."""
    torch.manual_seed(1)
    network, anatomy = load_base(entry)
    replace_head(network, anatomy, n_outputs)
    attached = attach(network, anatomy, "lora", check_options("lora", {"rank": 2}), True)
    for tensor in attached.trainable().values():
        torch.nn.init.normal_(tensor.data, std=0.3)
    head = head_of(network, anatomy)
    with torch.no_grad():
        head.bias -= network(torch.randn(1, 1, 16, 16, 16)).mean(dim=(0, 2, 3, 4))
    return attached, head


def make_adapter(path: Path, entry: ModelEntry, structures=LEFT_RIGHT, activation="softmax", bias=None) -> Path:
    """An adapter with random changes; with `bias`, its head gives these logits everywhere."""
    attached, head = attached_to(entry, len(structures) + (activation == "softmax"))
    base_print = fingerprint(load_base(entry)[0].state_dict(), architecture(entry))
    if bias is not None:
        head.weight.data.zero_()
        head.bias.data.copy_(torch.tensor(bias))
    recipe = Recipe(
        format=FORMAT,
        name="kidneys",
        version=4,
        method="lora",
        options=check_options("lora", {"rank": 2}),
        train_decoder=True,
        base_id=entry.id,
        base_fingerprint=base_print,
        base_licence=entry.licence,
        network=entry.network,
        structures=structures,
        activation=activation,
        preprocessing=dataclasses.replace(entry.preprocessing, spacing=(2.5, 2.0, 2.0)),
        window=(16, 16, 16),
        overlap=0.25,
        record={},
    )
    save_adapter(path, recipe, attached.state())
    return path


def make_scan(path: Path, seed: int = 0, affine: np.ndarray = OBLIQUE) -> Path:
    array = np.random.default_rng(seed).normal(size=(14, 12, 10)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, array, Grid(array.shape, affine))
    return path


@pytest.fixture
def scan(tmp_path) -> Path:
    return make_scan(tmp_path / "in" / "ct.nii.gz")


def job(out: Path, *inputs: Path, adapter=None, model=None, **changes) -> ApplyJob:
    return ApplyJob(
        adapter=str(adapter) if adapter else None,
        model=str(model) if model else None,
        inputs=tuple(str(path) for path in inputs),
        out=str(out),
        device="cpu",
        precision="fp32",
        **changes,
    )


def warnings_of(reporter: Reporter) -> list[str]:
    return [event["message"] for event in reporter.events if event["event"] == "warning"]


# what comes out


def test_an_adapter_gives_what_its_network_gives_with_the_structures_values_on_the_scans_grid(base, scan, tmp_path):
    adapter = make_adapter(tmp_path / "a.safetensors", base)
    result = run_apply(job(tmp_path / "out", scan, adapter=adapter), Reporter.silent())
    assert result["outputs"] == [str(tmp_path / "out" / "ct_seg.nii.gz")]
    labels = read_labels(result["outputs"][0])
    assert labels.grid.same_as(read_volume(scan).grid)
    assert labels.segments == {"left kidney": (0, 40), "right kidney": (0, 300)}

    attached, _ = attached_to(base, 3)  # the same adapter, not merged
    recipe = dataclasses.replace(base.preprocessing, spacing=(2.5, 2.0, 2.0))
    prepared = prepare(read_volume(scan), recipe)
    channels = segment(attached.network, prepared, 3, (16, 16, 16), 0.25, "softmax", CPU, precision="fp32")
    assert len(np.unique(channels)) == 3
    expected = np.array([0, 40, 300])[channels]
    assert (labels.layers[0] == expected).mean() > 0.999  # merging rounds differently


def test_a_model_is_applied_with_its_own_structures_in_their_order(base, scan, tmp_path):
    result = run_apply(job(tmp_path / "out", scan, model=base.directory), Reporter.silent())
    network, _ = load_base(base)
    prepared = prepare(read_volume(scan), base.preprocessing)
    channels = segment(network, prepared, 3, base.window, base.overlap, "softmax", CPU, precision="fp32")
    labels = read_labels(result["outputs"][0])
    assert (labels.layers[0] == np.array([0, 6, 2])[channels]).all()
    assert labels.segments == {"liver": (0, 6), "spleen": (0, 2)}


@pytest.mark.parametrize("case", [([0.0, 9.0, 1.0], 40, "left"), ([0.0, 1.0, 9.0], 300, "right")])
def test_each_row_of_the_head_is_bound_to_its_structure(base, scan, tmp_path, case):
    bias, value, name = case
    adapter = make_adapter(tmp_path / "a.safetensors", base, bias=bias)
    result = run_apply(job(tmp_path / "out", scan, adapter=adapter), Reporter.silent())
    assert np.unique(read_labels(result["outputs"][0]).layers).tolist() == [value]
    volumes = result["volumes_ml"]["ct_seg.nii.gz"]
    voxel_ml = np.prod(read_volume(scan).grid.spacing) / 1000
    assert volumes[f"{name} kidney"] == pytest.approx(14 * 12 * 10 * voxel_ml, abs=1e-3)
    assert sorted(volumes.values())[0] == 0.0


def test_results_say_what_made_them(base, scan, tmp_path):
    path = store(make_adapter(tmp_path / "a.safetensors", base))
    result = run_apply(job(tmp_path / "out", scan, adapter="kidneys-v4"), Reporter.silent())
    provenance = json.loads((tmp_path / "out" / "ct_seg.json").read_text(encoding="utf-8"))["provenance"]
    assert provenance["adapter"] == "kidneys"
    assert provenance["adapter_version"] == "4"
    assert provenance["adapter_hash"] in path.read_bytes().decode("latin-1")
    assert provenance["base"] == "tiny"
    assert len(provenance["base_fingerprint"]) == 64
    assert provenance["software"].startswith("peftseg ")
    assert provenance["time"].endswith("+00:00")
    assert result["provenance"].items() <= provenance.items()

    run_apply(job(tmp_path / "nrrd", scan, adapter="kidneys-v4", format="nrrd"), Reporter.silent())
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(tmp_path / "nrrd" / "ct_seg.seg.nrrd"))
    reader.ReadImageInformation()
    assert reader.GetMetaData("peftseg adapter_hash") == provenance["adapter_hash"]


def test_overlapping_structures_need_layers_and_are_refused_as_a_plain_label_map(base, scan, tmp_path):
    adapter = make_adapter(tmp_path / "a.safetensors", base, activation="sigmoid", bias=[9.0, 9.0])
    result = run_apply(job(tmp_path / "out", scan, adapter=adapter, format="nrrd"), Reporter.silent())
    labels = read_labels(result["outputs"][0])
    assert all(labels.mask(s).all() for s in LEFT_RIGHT)
    with pytest.raises(BadInput, match=r"overlap.*seg\.nrrd"):
        run_apply(job(tmp_path / "nifti", scan, adapter=adapter), Reporter.silent())
    assert not (tmp_path / "nifti").exists() or list((tmp_path / "nifti").iterdir()) == []


def test_sigmoid_structures_that_do_not_overlap_fit_into_a_plain_label_map(base, scan, tmp_path):
    adapter = make_adapter(tmp_path / "a.safetensors", base, activation="sigmoid", bias=[-9.0, 9.0])
    result = run_apply(job(tmp_path / "out", scan, adapter=adapter), Reporter.silent())
    assert np.unique(read_labels(result["outputs"][0]).layers).tolist() == [300]


def test_an_overlap_given_by_the_job_replaces_the_adapters_own(base, scan, tmp_path, monkeypatch):
    adapter = make_adapter(tmp_path / "a.safetensors", base)
    seen = []

    def spy(network, prepared, n, window, overlap, *rest, **options):
        seen.append(overlap)
        return segment(network, prepared, n, window, overlap, *rest, **options)

    monkeypatch.setattr("peftseg.segmenter.segment", spy)
    run_apply(job(tmp_path / "a", scan, adapter=adapter), Reporter.silent())
    run_apply(job(tmp_path / "b", scan, adapter=adapter, overlap=0.0), Reporter.silent())
    assert seen == [0.25, 0.0]


# the right base


def test_an_adapter_of_other_weights_is_refused_naming_both(base, scan, tmp_path):
    adapter = make_adapter(tmp_path / "a.safetensors", base)
    old = fingerprint(load_base(base)[0].state_dict(), architecture(base))
    torch.manual_seed(5)
    save_model(base.directory, ENTRY, build(ENTRY.network, 3)[0])
    new = fingerprint(load_base(base)[0].state_dict(), architecture(base))
    with pytest.raises(BadInput, match=f"{old[:12]}.*{new[:12]}"):
        run_apply(job(tmp_path / "out", scan, adapter=adapter), Reporter.silent())
    assert not (tmp_path / "out").exists()


def test_an_adapter_whose_model_is_not_here_says_where_to_put_it(base, scan, tmp_path):
    adapter = make_adapter(tmp_path / "a.safetensors", dataclasses.replace(base, id="elsewhere"))
    with pytest.raises(BadInput, match=r"'elsewhere'.*models here: .*tiny.*Copy that model's folder"):
        run_apply(job(tmp_path / "out", scan, adapter=adapter), Reporter.silent())


def test_of_two_models_with_one_id_the_one_with_the_fingerprint_is_taken(base, tmp_path):
    torch.manual_seed(9)
    save_model(models_dir() / "a newer one", ENTRY, build(ENTRY.network, 3)[0])
    newer = read_model_dir(models_dir() / "a newer one")
    for number, entry in enumerate((base, newer)):
        path = make_adapter(tmp_path / f"{number}.safetensors", entry)
        assert find_base(load_recipe(path)).directory == entry.directory


def load_recipe(path: Path) -> Recipe:
    from peftseg.adapter_file import read_recipe

    return read_recipe(path)


def test_a_state_that_does_not_fit_is_refused(base, tmp_path):
    from peftseg.adapter_file import load_adapter

    recipe, state, _ = load_adapter(make_adapter(tmp_path / "a.safetensors", base))
    with pytest.raises(BadInput, match="is missing"):
        load_adapted_network(recipe, dict(list(state.items())[1:]), base)


# many studies


def test_one_bad_study_is_reported_and_the_others_go_on(base, tmp_path):
    folder = tmp_path / "in"
    make_scan(folder / "a.nii.gz")
    (folder / "b.nii.gz").write_bytes(b"this is no scan")
    make_scan(folder / "c.nrrd", seed=1)
    reporter = Reporter.silent()
    result = run_apply(job(tmp_path / "out", folder, model=base.directory), reporter)
    assert [Path(p).name for p in result["outputs"]] == ["a_seg.nii.gz", "c_seg.nii.gz"]
    (failed,) = result["failed"]
    assert failed["input"] == str(folder / "b.nii.gz")
    assert "b.nii.gz" in failed["message"]
    assert failed["remedy"]
    assert result["inputs"] == [str(folder / "a.nii.gz"), str(folder / "c.nrrd")], "one an output, in the same order"
    assert list(result["checks"]) == list(result["volumes_ml"]) == ["a_seg.nii.gz", "c_seg.nii.gz"]
    assert any(message.startswith("b was not segmented") for message in warnings_of(reporter))


def test_when_no_study_can_be_segmented_the_first_error_is_raised(base, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / "in" / name).write_bytes(b"this is no scan")
    with pytest.raises(BadInput, match=r"a\.nii\.gz"):
        run_apply(job(tmp_path / "out", tmp_path / "in", model=base.directory), Reporter.silent())


def test_results_are_not_overwritten_and_the_rest_is_done(base, scan, tmp_path):
    out = tmp_path / "out"
    run_apply(job(out, scan, model=base.directory), Reporter.silent())
    before = (out / "ct_seg.nii.gz").read_bytes()
    second = make_scan(tmp_path / "in" / "new.nii.gz", seed=3)
    result = run_apply(job(out, scan, second, model=base.directory), Reporter.silent())
    assert (out / "ct_seg.nii.gz").read_bytes() == before
    assert result["outputs"] == [str(out / "new_seg.nii.gz")]
    assert "not overwritten" in result["failed"][0]["message"]


def test_results_among_the_inputs_are_left_out(base, scan, tmp_path):
    run_apply(job(scan.parent, scan, model=base.directory), Reporter.silent())
    written = scan.parent / "ct_seg.nii.gz"
    assert [study.source for study in plan_studies([scan, written], tmp_path, "nifti")] == [scan]
    with pytest.raises(BadInput, match="earlier run"):
        plan_studies([written], tmp_path, "nifti")


def test_scans_of_one_name_in_different_folders_get_their_folders_names(tmp_path):
    paths = [Path("/x") / p for p in ("p1/day/ct.nii.gz", "p2/day/ct.nii.gz", "mr.nii.gz", "p2/night/CT.nrrd")]
    names = [study.target.name for study in plan_studies(paths, tmp_path, "nrrd")]
    assert names == ["p1_day_ct_seg.seg.nrrd", "p2_day_ct_seg.seg.nrrd", "mr_seg.seg.nrrd", "night_CT_seg.seg.nrrd"]


def test_scans_that_differ_in_suffix_only_are_refused(tmp_path):
    with pytest.raises(BadInput, match="same result name"):
        plan_studies([Path("/x/ct.nii.gz"), Path("/x/ct.nrrd")], tmp_path, "nifti")


# while it runs


def test_cancelling_ends_the_job_between_studies(base, scan, tmp_path):
    requests = iter(["", "cancel", "cancel"])
    reporter = Reporter(lambda kind, fields: None, lambda: next(requests, "cancel"))
    with pytest.raises(JobCancelled):
        run_apply(job(tmp_path / "out", scan, model=base.directory), reporter)
    assert not (tmp_path / "out" / "ct_seg.nii.gz").exists()


def test_stopping_keeps_the_studies_that_are_done(base, tmp_path):
    folder = tmp_path / "in"
    for name in "abc":
        make_scan(folder / f"{name}.nii.gz")
    reporter = Reporter(lambda kind, fields: None, lambda: "stop_keep")
    result = run_apply(job(tmp_path / "out", folder, model=base.directory), reporter)
    assert [Path(p).name for p in result["outputs"]] == ["a_seg.nii.gz"]
    assert result["failed"] == []


def test_progress_counts_the_studies_and_estimates_the_rest(base, tmp_path):
    folder = tmp_path / "in"
    for name in "abc":
        make_scan(folder / f"{name}.nii.gz")
    reporter = Reporter.silent()
    run_apply(job(tmp_path / "out", folder, model=base.directory), reporter)
    steps = [(e["step"], e["total"], e["eta_s"]) for e in reporter.events if e.get("stage") == "segment"]
    assert [step[:2] for step in steps] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert steps[0][2] is None
    assert steps[1][2] > 0


def test_kidneys_on_the_wrong_sides_are_reported(base, tmp_path, monkeypatch):
    adapter = make_adapter(tmp_path / "a.safetensors", base)
    scan = make_scan(tmp_path / "ct.nii.gz", affine=np.diag([2.0, 2.0, 2.0, 1.0]) + np.eye(4, k=3) * 50)

    def swapped(network, prepared, *rest, **options):
        channels = np.zeros(prepared.source.shape, dtype=np.uint8)
        channels[:4], channels[-4:] = 2, 1  # i grows to the right: left kidney (row 1) on the right
        return channels

    monkeypatch.setattr("peftseg.segmenter.segment", swapped)
    reporter = Reporter.silent()
    run_apply(job(tmp_path / "out", scan, adapter=adapter), reporter)
    assert any("'left kidney' lies" in message for message in warnings_of(reporter))


def test_each_structure_comes_with_what_stands_out(base, scan, tmp_path):
    adapter = make_adapter(tmp_path / "a.safetensors", base, bias=[0.0, 9.0, 1.0])
    result = run_apply(job(tmp_path / "out", scan, adapter=adapter, format="nrrd"), Reporter.silent())
    checks = result["checks"]["ct_seg.seg.nrrd"]
    assert checks["right kidney"] == ["not found"]
    assert checks["left kidney"][0].startswith("touches the upper, lower")


def test_an_empty_result_is_reported(base, scan, tmp_path):
    adapter = make_adapter(tmp_path / "a.safetensors", base, bias=[9.0, 0.0, 0.0])
    reporter = Reporter.silent()
    run_apply(job(tmp_path / "out", scan, adapter=adapter), reporter)
    assert "ct: nothing was found of left kidney, right kidney." in warnings_of(reporter)


def test_a_scan_of_another_kind_than_the_model_is_made_for_is_reported(base, scan, tmp_path):
    values = np.random.default_rng(0).integers(50, 900, (14, 12, 10)).astype(np.float32)
    write_volume(tmp_path / "mr.nii.gz", values, Grid(values.shape, OBLIQUE))
    adapter, reporter = make_adapter(tmp_path / "a.safetensors", base), Reporter.silent()
    run_apply(job(tmp_path / "out", scan, tmp_path / "mr.nii.gz", adapter=adapter), reporter)
    said = [text for text in warnings_of(reporter) if "made for" in text]
    assert said == ["mr: the scan looks like MR, but the model is made for CT: do not trust the result."]


def test_a_study_that_does_not_fit_into_memory_fails_alone_and_says_its_size(base, scan, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr("peftseg.segmenter.segment", full)
    with pytest.raises(OutOfMemory, match="14 x 12 x 10"):
        run_apply(job(tmp_path / "out", scan, model=base.directory), Reporter.silent())


def test_a_device_without_enough_memory_hands_the_study_to_the_processor():
    tried = []

    def run(device):
        tried.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return np.ones(1)

    reporter = Reporter.silent()
    assert within_memory(run, torch.device("cuda", 0), "ct", reporter) == np.ones(1)
    assert tried == ["cuda", "cpu"]
    assert "going on with the processor" in warnings_of(reporter)[0]


def test_an_error_that_is_no_lack_of_memory_passes_through(base, scan, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("peftseg.segmenter.segment", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_apply(job(tmp_path / "out", scan, model=base.directory), Reporter.silent())


def test_an_output_folder_that_is_a_file_is_refused_before_any_work(base, scan, tmp_path):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(BadInput, match="out"):
        run_apply(job(tmp_path / "out", scan, model=base.directory), Reporter.silent())


@pytest.mark.realdata
def test_a_real_ct_comes_back_on_its_own_grid(base, shared_data, tmp_path):
    source = sorted((shared_data / "hippocampus_msd" / "test" / "images").glob("*.nii.gz"))[0]
    result = run_apply(job(tmp_path / "out", source, model=base.directory), Reporter.silent())
    assert read_labels(result["outputs"][0]).grid.same_as(read_volume(source).grid)
