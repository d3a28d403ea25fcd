"""2D networks on 3D scans: planes, voxel sizes through every order of axes, bounded batches, back on the scan's own grid."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from peftseg.apply import run_apply
from peftseg.cli import main
from peftseg.config import AdaptJob, ApplyJob, PretrainJob, from_json, to_json
from peftseg.early_head import EarlyBranch, load_early_head, load_head_state
from peftseg.errors import BadInput, JobCancelled
from peftseg.events import Reporter
from peftseg.foundation_models import FOUNDATION_MODELS
from peftseg.infer import predict_logits, segment
from peftseg.metrics import evaluate_folders
from peftseg.models import (
    Intensity,
    NetworkSpec,
    Preprocessing,
    Structure,
    catalogue,
    preprocessing_from_dict,
    read_model_dir,
    to_dict,
)
from peftseg.networks import build, is_slicewise
from peftseg.planes import PLANES, in_orientation, orientation_for, spacing_along
from peftseg.preprocess import prepare, prepare_mask
from peftseg.pretrain import parse_intensity, recipe_for, run_pretrain
from peftseg.segmenter import model_segmenter, segment_volume
from peftseg.study import LabelState, SupportItem
from peftseg.train import run_adapt
from peftseg.volume import Grid, Volume, read_volume, write_segmentation, write_volume
from peftseg.weights import load_base
from peftseg.windows import SLICES_AT_ONCE, tile

CPU = torch.device("cpu")
BALL = Structure("ball", 1)
SPACING = {"R": 1.0, "A": 1.5, "S": 3.0}  # of every made-up scan: left-right, front-back, head-foot
SIZE = {"R": 30, "A": 22, "S": 12}
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
ORDERS = ("RAS", "PIL", "SRP", "ALI")


def positive(code: str) -> str:
    return code if code in SPACING else OPPOSITE[code]


def make_scan(order: str, seed: int = 0) -> tuple[Volume, np.ndarray]:
    """The same made-up patient for one seed, stored with its axes in any order; with the mask of a bright ball."""
    rng = np.random.default_rng(seed)
    centre = np.array([14.0, 16.0, 17.0]) + rng.uniform(-3, 3, 3)
    shape = tuple(SIZE[c] for c in "RAS")
    spacing = np.array([SPACING[c] for c in "RAS"])
    points = np.moveaxis(np.indices(shape), 0, -1) * spacing
    mask = ((points - centre) ** 2).sum(-1) < 8.0**2
    image = rng.normal(100, 4, shape).astype(np.float32) + 100 * mask
    axes = ["RAS".index(positive(c)) for c in order]
    flips = tuple(slice(None, None, 1 if c in SPACING else -1) for c in order)
    image, mask = (array.transpose(axes)[flips] for array in (image, mask))
    directions = np.array([DIRECTIONS[c] for c in order], float).T
    affine = np.eye(4)
    affine[:3, :3] = directions * [SPACING[positive(c)] for c in order]
    corner = np.where([c in SPACING for c in order], 0, np.array(image.shape) - 1)
    affine[:3, 3] = np.array([20.0, -30.0, 40.0]) - affine[:3, :3] @ corner
    return Volume(np.ascontiguousarray(image), Grid(image.shape, affine), f"scan_{seed}"), np.ascontiguousarray(mask)


def write_scan(folder: Path, order: str, seed: int) -> SupportItem:
    volume, mask = make_scan(order, seed)
    image, labels = folder / "images" / f"scan_{seed}.nii.gz", folder / "labels" / f"scan_{seed}.nii.gz"
    write_volume(image, volume.array, volume.grid)
    write_segmentation(labels, mask.astype(np.uint8), volume.grid, [BALL], {})
    return SupportItem(str(image), str(labels), {"ball": LabelState("labelled")})


def pretrain_job(folder: Path, plane: str = "sagittal", **changes) -> PretrainJob:
    """Scans in every order of axes; a small network, few epochs."""
    data = tuple(write_scan(folder / "data", order, n) for n, order in enumerate(ORDERS))
    job = PretrainJob(
        data=data,
        structures=(BALL,),
        out=str(folder / "model"),
        id="slices",
        title="Slices",
        network="unet2d",
        network_arguments={"filters": 4},
        plane=plane,
        epochs=24,
        device="cpu",
        precision="fp32",
    )
    return replace(job, **changes)


def test_the_made_up_patient_is_the_same_in_every_order():
    reference, mask = make_scan("RAS")
    for order in ORDERS:
        volume, own = make_scan(order)
        assert volume.grid.axcodes == order
        again = prepare(volume, Preprocessing("RAS", reference.grid.spacing, Intensity("window", 0, 1, 0, 1)))
        assert np.allclose(again.grid.affine, reference.grid.affine)
        assert np.array_equal(prepare_mask(own, again).numpy(), mask)


class TestPlanes:
    @pytest.mark.parametrize(("plane", "slicing"), [("axial", "SI"), ("coronal", "AP"), ("sagittal", "LR")])
    def test_the_last_axis_goes_from_slice_to_slice(self, plane, slicing):
        assert PLANES[plane][-1] in slicing
        assert orientation_for("unet2d", plane) == PLANES[plane]

    def test_axial_is_the_default_and_volumes_have_no_plane(self):
        assert orientation_for("unet2d", None) == PLANES["axial"]
        assert orientation_for("segresnet", None) == "RAS"
        with pytest.raises(BadInput, match="sees volumes"):
            orientation_for("segresnet", "axial")
        with pytest.raises(BadInput, match="axial, coronal, sagittal"):
            orientation_for("unet2d", "oblique")

    @pytest.mark.parametrize(("order", "plane"), [*itertools.product(ORDERS, PLANES)])
    def test_voxel_sizes_follow_every_order_of_axes(self, order, plane):
        grid = make_scan(order)[0].grid
        wanted = tuple(SPACING[positive(c)] for c in PLANES[plane])
        assert spacing_along(grid, PLANES[plane]) == pytest.approx(wanted)
        assert in_orientation((1.0, 1.5, 3.0), PLANES[plane]) == wanted

    @pytest.mark.parametrize("plane", PLANES)
    def test_one_patient_gives_one_image_whatever_the_order_of_the_file(self, plane):
        job = PretrainJob((), (BALL,), "out", "a", "A", network="unet2d", plane=plane)
        grids = [make_scan(order)[0].grid for order in ORDERS]
        recipe = recipe_for(job, grids)
        assert recipe.spacing == tuple(SPACING[positive(c)] for c in PLANES[plane])
        assert recipe_for(replace(job, spacing=(1.0, 1.5, 3.0)), grids) == recipe
        images = []
        for order in ORDERS:
            volume, mask = make_scan(order)
            prepared = prepare(volume, recipe)
            assert prepared.grid.spacing == pytest.approx(recipe.spacing)
            assert prepared.image.shape[1:] == tuple(SIZE[positive(c)] for c in PLANES[plane])
            images.append(torch.stack([prepared.image[0], prepare_mask(mask, prepared).float()]))
        assert all(torch.allclose(image, images[0], atol=1e-4) for image in images[1:])

    def test_a_job_with_a_plane_for_volumes_is_refused_before_it_runs(self):
        with pytest.raises(BadInput, match="sees volumes"):
            PretrainJob((), (BALL,), "out", "a", "A", network="segresnet", plane="axial")


class TestCC359:
    """As calgary_campinas_dataset.py of ConvLoRA: sagittal, smallest to largest value, square by repeating the edge.

    Never stretched, though Aleem et al. 2024 (sec. 4) say that slices are resized.
    """

    ENTRY = next(e for e in FOUNDATION_MODELS if e.id == "cc359-unet2d")

    def test_pretraining_can_make_that_recipe(self):
        job = PretrainJob(
            (),
            (BALL,),
            "o",
            "a",
            "A",
            network="unet2d",
            plane="sagittal",
            intensity="range",
            square=True,
            spacing=(1, 1, 1),
        )
        assert recipe_for(job, []) == self.ENTRY.preprocessing
        assert parse_intensity("range") == Intensity("percentile", 0.0, 100.0)

    def test_it_comes_back_from_json(self):
        assert preprocessing_from_dict(to_dict(self.ENTRY.preprocessing)) == self.ENTRY.preprocessing

    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("spacing", [(1.5, 3.0, 1.0), (1.0, 1.0, 1.0), (3.2, 6.0, 2.0)])
    def test_slices_are_square_with_voxels_of_the_same_size_and_repeated_edges(self, order, spacing):
        volume, mask = make_scan(order)
        square = replace(self.ENTRY.preprocessing, spacing=spacing)
        with_pad, without = (prepare(volume, recipe) for recipe in (square, replace(square, square=False)))
        height, width, slices = without.image.shape[1:]
        side = max(height, width)
        assert with_pad.image.shape[1:] == (side, side, slices)
        assert with_pad.grid.spacing == pytest.approx(without.grid.spacing)
        first = np.linalg.solve(with_pad.grid.affine, without.grid.affine)[:3, 3].round(6).astype(int)
        inner = with_pad.image[0, first[0] :, first[1] :][:height, :width]
        assert torch.equal(inner, without.image[0])
        assert torch.equal(with_pad.image[0, 0], with_pad.image[0, first[0]])
        assert torch.equal(with_pad.image[0, :, -1], with_pad.image[0, :, first[1] + width - 1])
        padded = prepare_mask(mask, with_pad)
        assert torch.equal(padded[first[0] :, first[1] :][:height, :width], prepare_mask(mask, without))
        assert int(padded.sum()) == int(prepare_mask(mask, without).sum())  # the ball touches no edge

    def test_results_come_back_without_the_repeated_edges(self):
        volume, mask = make_scan("PIL")
        prepared = prepare(volume, replace(self.ENTRY.preprocessing, spacing=(1.5, 3.0, 1.0)))

        class Threshold(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.shift = torch.nn.Parameter(torch.tensor(0.6))

            def forward(self, x):
                return x - self.shift

        found = segment(Threshold(), prepared, 1, (40, 40, 8), 0.0, "sigmoid", CPU, "fp32")
        assert found.shape == (1, *volume.grid.shape)
        assert np.array_equal(found[0], mask)


class TestBoundedBatches:
    def test_a_scan_of_300_slices_is_never_one_batch(self):
        torch.manual_seed(0)
        network, _ = build(NetworkSpec("unet2d", {"filters": 2}), 2)
        sizes = []
        network.init_path.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        grid = Grid((16, 16, 300), np.diag([1.0, 1.0, 1.0, 1.0]))
        volume = Volume(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid, "long")
        prepared = prepare(volume, Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore")))
        labels = segment(network, prepared, 2, (16, 16, 300), 0.5, "softmax", CPU, "fp32")
        assert labels.shape == grid.shape
        assert max(sizes) == SLICES_AT_ONCE
        assert 300 <= sum(sizes) < 300 + SLICES_AT_ONCE  # and none is computed twice but for the last window's

    def test_each_slice_is_segmented_as_if_it_were_alone(self):
        torch.manual_seed(0)
        network, _ = build(NetworkSpec("unet2d", {"filters": 4}), 2)
        image = torch.randn(1, 24, 32, 37)
        logits = predict_logits(network, image, 2, (24, 32, 16), 0.5, CPU, "fp32")
        with torch.inference_mode():
            alone = torch.stack([network.eval()(image[None, ..., k])[0] for k in range(37)], -1)
        assert torch.allclose(logits, alone, atol=1e-4)

    def test_only_networks_of_slices_are_cut_so(self):
        assert is_slicewise(build(NetworkSpec("unet2d", {"filters": 2}), 1)[0])
        assert not is_slicewise(build(NetworkSpec("unet3d_bn", {"width": 2}), 1)[0])
        assert tile((32, 32, 64), (16, 16, 64), 0.5).window == (16, 16, 64)
        of_slices = tile((32, 32, 40), (16, 16, 64), 0.5, slicewise=True)
        assert of_slices.window == (16, 16, SLICES_AT_ONCE)
        assert of_slices.starts == ((0, 8, 16), (0, 8, 16), (0, 16, 24))

    def test_a_scan_of_one_slice_is_one_slice(self):
        network, _ = build(NetworkSpec("unet2d", {"filters": 2}), 1)
        assert predict_logits(network, torch.randn(1, 16, 16, 1), 1, (16, 16, 16), 0.0, CPU).shape == (1, 16, 16, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A 2D network trained in sagittal slices of scans in every order of axes; the job and its result."""
    folder = tmp_path_factory.mktemp("slices")
    job = pretrain_job(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTSEGMENT_HOME", str(folder / "home"))
        return job, run_pretrain(job, Reporter.silent())


class TestTheWholeWay:
    @pytest.mark.slow
    def test_the_model_knows_its_plane_its_voxels_and_its_early_head(self, trained):
        job, result = trained
        entry = read_model_dir(Path(job.out))
        assert entry.preprocessing.orientation == PLANES["sagittal"]
        assert entry.preprocessing.spacing == (1.5, 3.0, 1.0)
        assert entry.window == (24, 16, SLICES_AT_ONCE)
        assert result["early_level"] == entry.record["early_level"] == load_early_head(entry)[0]
        volumes = entry.record["structure_facts"]["ball"]["volume_ml"]
        assert volumes["min"] <= 4 / 3 * np.pi * 8**3 / 1000 <= volumes["max"] * 1.1

    def test_its_early_head_has_learnt_the_structure_too(self, trained):
        entry = read_model_dir(Path(trained[0].out))
        network, anatomy = load_base(entry)
        level, state = load_early_head(entry)
        branch = EarlyBranch(network, anatomy, level, 2)
        load_head_state(branch, state)
        volume, mask = make_scan("SRP", 50)
        prepared = prepare(volume, entry.preprocessing)
        image = torch.nn.functional.pad(prepared.image, (0, 0, 2, 2, 1, 1), value=prepared.background)
        with torch.inference_mode():
            final, early = (logits[0].argmax(0)[1:-1, 2:-2].bool() for logits in branch.eval()(image[None]))
        truth = prepare_mask(mask, prepared)
        for found in (final, early):
            assert 2 * int((found & truth).sum()) / int(found.sum() + truth.sum()) > 0.7

    def test_its_early_head_goes_along_when_the_folder_is_imported(self, trained):
        assert main(["models", "import", trained[0].out]) == 0
        copy = catalogue()["slices"]
        assert copy.directory != Path(trained[0].out)
        assert load_early_head(copy)[0] == trained[1]["early_level"]

    @pytest.mark.parametrize("order", ORDERS)
    def test_a_result_lies_on_the_scans_own_grid_voxel_for_voxel(self, trained, order):
        segmenter = model_segmenter(trained[0].out)
        volume, mask = make_scan(order, 60)
        labels = segment_volume(segmenter, volume, CPU, precision="fp32")
        assert labels.shape == volume.grid.shape
        assert 2 * (mask & (labels == 1)).sum() / (mask.sum() + (labels == 1).sum()) > 0.8
        reference, _ = make_scan("RAS", 60)
        same = segment_volume(segmenter, reference, CPU, precision="fp32")
        back = prepare(Volume(labels.astype(np.float32), volume.grid, "l"), _as_it_is()).image[0].numpy()
        assert np.mean(back != same) < 1e-4

    def test_applied_and_evaluated_from_files_it_scores_the_same_in_every_order(self, trained, tmp_path):
        rows = []
        for order in ORDERS:
            item = write_scan(tmp_path / order, order, 70)
            out = tmp_path / order / "out"
            run_apply(
                ApplyJob(None, trained[0].out, (item.image,), str(out), device="cpu", precision="fp32"),
                Reporter.silent(),
            )
            written = read_volume(next(out.glob("*.nii.gz")))
            assert written.grid.same_as(read_volume(Path(item.image)).grid)
            rows += evaluate_folders(out, tmp_path / order / "labels", [BALL])
        assert rows[0]["dice"] > 0.8
        for measure in ("dice", "surface_dice", "hd95_mm"):
            assert [row[measure] for row in rows] == pytest.approx([rows[0][measure]] * len(rows), abs=2e-3)

    def test_an_adapter_of_it_comes_back_on_the_scans_grid(self, trained, tmp_path):
        support = tuple(write_scan(tmp_path / "support", order, 80 + n) for n, order in enumerate(ORDERS[:2]))
        job = AdaptJob(
            model=trained[0].out,
            support=support,
            structures=(BALL,),
            out=str(tmp_path / "a.safetensors"),
            method="convlora",
            epochs=2,
            device="cpu",
            precision="fp32",
        )
        run_adapt(job, Reporter.silent())
        item = write_scan(tmp_path / "study", "ALI", 90)
        run_apply(
            ApplyJob(job.out, None, (item.image,), str(tmp_path / "out"), device="cpu", precision="fp32"),
            Reporter.silent(),
        )
        rows = evaluate_folders(tmp_path / "out", tmp_path / "study" / "labels", [BALL])
        assert rows[0]["dice"] > 0.8

    def test_a_cancelled_job_leaves_no_model(self, tmp_path):
        reporter = Reporter.silent()
        job = pretrain_job(tmp_path, epochs=1)

        def stop(stage, *arguments, **facts):
            if stage == "early_head":
                raise JobCancelled("stop", "")

        reporter.progress = stop
        with pytest.raises(JobCancelled):
            run_pretrain(job, reporter)
        assert not Path(job.out).exists()

    def test_the_command_line_takes_plane_square_and_early_level(self, tmp_path):
        for n, order in enumerate(ORDERS[:2]):
            write_scan(tmp_path, order, n)
        words = [
            "--network",
            "unet2d",
            "--argument",
            "filters=2",
            "--plane",
            "coronal",
            "--square",
            "--early-level",
            "0",
        ]
        words += ["--structures", "ball=1", "--epochs", "1", "--spacing", "1,1.5,3", "--patch", "16,8,16"]
        assert main(["pretrain", "--data", str(tmp_path), "--out", str(tmp_path / "model"), *words]) == 0
        entry = read_model_dir(tmp_path / "model")
        assert entry.preprocessing == Preprocessing("RSA", (1.0, 3.0, 1.5), Intensity("zscore"), square=True)
        assert entry.window == (16, 16, SLICES_AT_ONCE)
        assert load_early_head(entry)[0] == 0

    @pytest.mark.parametrize(
        ("changes", "words"), [({"early_level": 4}, "early_level is 4"), ({"plane": "top"}, "'top'")]
    )
    def test_what_cannot_be_is_refused_before_it_runs(self, tmp_path, changes, words):
        with pytest.raises(BadInput, match=words):
            pretrain_job(tmp_path, **changes)

    def test_the_job_comes_back_from_json(self, tmp_path):
        job = pretrain_job(tmp_path, plane="coronal", square=True, early_level=2)
        assert from_json(to_json(job)) == job

    def test_no_early_head_is_fitted_where_none_is_wanted_or_statistics_do_not_run(self, tmp_path):
        job = pretrain_job(tmp_path, epochs=1, early_level=-1)
        assert run_pretrain(job, Reporter.silent())["early_level"] is None
        small = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
        group = replace(
            job, network="segresnet", network_arguments=small, plane=None, early_level=None, out=f"{job.out}2"
        )
        assert run_pretrain(group, Reporter.silent())["early_level"] is None
        assert not list(tmp_path.rglob("early_head*"))
        assert "ball" in read_model_dir(Path(group.out)).record["structure_facts"]


def _as_it_is() -> Preprocessing:
    return Preprocessing("RAS", tuple(SPACING[c] for c in "RAS"), Intensity("window", 0, 1, 0, 1))
