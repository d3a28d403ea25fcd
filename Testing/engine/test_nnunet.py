"""nnU-Net model folders: what is read, what is refused, and that results are nnU-Net's own."""

from __future__ import annotations

import copy
import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from peftseg import models
from peftseg.cli import main
from peftseg.device import _block_modules, activation_checkpointing
from peftseg.errors import BadInput
from peftseg.grid import Grid, image_to_itk
from peftseg.models import Intensity, catalogue
from peftseg.networks import build, head_of, replace_head
from peftseg.nnunet import network_arguments, read_nnunet
from peftseg.nnunet_preprocess import coarse_axis, prepare_nnunet, window_starts, window_weights
from peftseg.segmenter import model_segmenter, segment_volume
from peftseg.volume import Volume, read_volume
from peftseg.weights import architecture, fingerprint, load_base, save_model

pytest.importorskip("dynamic_network_architectures", reason="the extra `nnunet` is not installed")

CPU = torch.device("cpu")
PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
LABELS = {"background": 0, "pale": 1, "bright": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


@dataclass(frozen=True)
class Model:
    """A tiny nnU-Net; sizes and spacings along the axes of nnU-Net's arrays, transposed."""

    network: str = PLAIN
    spacing: tuple[float, float, float] = (3.0, 0.9, 0.9)
    patch: tuple[int, int, int] = (12, 32, 32)
    normalisation: str = "CTNormalization"
    masked: bool = False
    transpose: tuple[int, int, int] = (0, 1, 2)
    labels: dict = field(default_factory=lambda: LABELS)


def make_plans(model: Model) -> dict:
    strides = [[1, 1, 1], [1, 2, 2] if model.patch[0] < model.patch[1] else [2, 2, 2], [2, 2, 2]]
    blocks = "n_conv_per_stage" if model.network == PLAIN else "n_blocks_per_stage"
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    orders = {"data": {}, "seg": {"is_seg": True, "order": 1}, "probabilities": {"order": 1}}
    return {
        "dataset_name": "Dataset001_Blobs",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(model.transpose),
        "transpose_backward": np.argsort(model.transpose).tolist(),
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 110.0, "std": 60.0, "percentile_00_5": -20.0, "percentile_99_5": 250.0}
        },
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(model.patch),
                "spacing": list(model.spacing),
                "normalization_schemes": [model.normalisation],
                "use_mask_for_norm": [model.masked],
                "batch_dice": False,
                **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in orders},
                **{f"resampling_fn_{what}_kwargs": {**resampling, **own} for what, own in orders.items()},
                "architecture": {
                    "network_class_name": f"dynamic_network_architectures.architectures.unet.{model.network}",
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                    "arch_kwargs": {
                        "n_stages": 3,
                        "features_per_stage": [8, 16, 32],
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
                        "strides": strides,
                        blocks: [1, 1, 2],
                        "n_conv_per_stage_decoder": [1, 2],
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                },
            }
        },
    }


def make_dataset(labels: dict) -> dict:
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    return dataset if labels is not REGIONS else {**dataset, "regions_class_order": [1, 2]}


def write_folder(folder: Path, plans: dict, dataset: dict, checkpoint: dict | None = None, fold: str = "0") -> Path:
    """A model folder without nnU-Net: random weights, unless a checkpoint is given."""
    (folder / f"fold_{fold}").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    torch.save(checkpoint or make_checkpoint(plans), folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def make_checkpoint(plans: dict, outputs: int = 3) -> dict:
    from peftseg.networks.nnunet import untrimmed

    torch.manual_seed(0)
    network = untrimmed(network_arguments(plans["configurations"]["3d_fullres"]), outputs)
    return {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "3d_fullres", "device": CPU},
        "trainer_name": "nnUNetTrainer",
        "_best_ema": np.float64(0.5),
        "logging": {"dice_per_class_or_region": [[np.float32(0.1), np.float64(0.2)]], "epochs": [np.int64(3)]},
    }


def blobs(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Label map 0, 1, 2 of smooth random shapes and its noisy image in Hounsfield units."""
    values = ndimage.gaussian_filter(rng.normal(size=shape), [5.0 / s for s in spacing])
    labels = np.digitize(values, np.quantile(values, (0.5, 0.75)))
    return labels, 40 + 100.0 * labels + 25 * rng.normal(size=shape)


def train_with_nnunet(model: Model, home: Path, steps: int = 60) -> Path:
    """A model folder of the released nnunetv2: its trainer's network, loss, steps and checkpoint."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans, dataset = make_plans(model), make_dataset(model.labels)
    cases = home / "preprocessed" / plans["dataset_name"] / plans["configurations"]["3d_fullres"]["data_identifier"]
    cases.mkdir(parents=True)
    (cases / "case.b2nd").touch()
    torch.manual_seed(0)
    trainer = nnUNetTrainer({**copy.deepcopy(plans), "continue_training": False}, "3d_fullres", 0, dataset, CPU)
    trainer.initialize()
    trainer.network.train()
    rng = np.random.default_rng(0)
    for _ in range(steps):
        pairs = [blobs(rng, model.patch, model.spacing) for _ in range(2)]
        labels = torch.from_numpy(np.stack([pair[0] for pair in pairs])[:, None])
        images = np.stack([pair[1] for pair in pairs])[:, None]
        images = (images - 110) / 60 if model.normalisation == "CTNormalization" else (images - 115) / 87
        target = torch.cat([labels >= 1, labels >= 2], dim=1) if model.labels is REGIONS else labels
        scales = [[round(1 / factor) for factor in level] for level in trainer._get_deep_supervision_scales()]
        targets = [target[:, :, ::a, ::b, ::c].float() for a, b, c in scales]
        trainer.train_step({"data": torch.from_numpy(images).float(), "target": targets})
    trainer._best_ema = np.float32(0.5)
    trainer.logger.log("dice_per_class_or_region", [np.float64(0.5), np.float32(0.5)], 0)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    folder = Path(trainer.output_folder).parent
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


MODELS = {
    "plain-ct": Model(),
    "residual-mr-transposed": Model(
        RESIDUAL, (1.4, 1.2, 1.3), (16, 24, 24), "ZScoreNormalization", masked=True, transpose=(2, 0, 1)
    ),
    "regions": Model(spacing=(1.5, 1.5, 1.5), patch=(24, 24, 24), normalisation="ZScoreNormalization", labels=REGIONS),
}
# Voxels and mm along i, j, k; whether the border is 0.
STUDIES = {
    "coarse": ((70, 64, 14), (0.7, 0.8, 4.0), False),
    "small": ((40, 36, 8), (0.7, 0.8, 2.5), False),
    "fine": ((40, 44, 42), (1.3, 0.9, 1.0), True),
}
PAIRS = [
    ("plain-ct", "coarse"),
    ("plain-ct", "small"),
    ("plain-ct", "fine"),
    ("residual-mr-transposed", "fine"),
    ("residual-mr-transposed", "small"),
    ("regions", "coarse"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Model folders of nnunetv2 by name, each trained once."""
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed")
    folders: dict[str, Path] = {}
    with pytest.MonkeyPatch.context() as patch:

        def folder(name: str) -> Path:
            if name not in folders:
                home = tmp_path_factory.mktemp(name)
                for what in ("raw", "preprocessed", "results"):
                    patch.setenv(f"nnUNet_{what}", str(home / what))
                folders[name] = train_with_nnunet(MODELS[name], home)
            return folders[name]

        patch.setenv("nnUNet_def_n_proc", "1")
        yield folder


def write_study(path: Path, name: str) -> Path:
    shape, spacing, border = STUDIES[name]
    _, values = blobs(np.random.default_rng(1), shape, spacing)
    if border:
        values = np.maximum(3 * values + 500, 1)
        values[:6] = values[:, -5:] = values[:, :, :3] = 0
        values[20:24, 20:24, 20:24] = 0  # a hole
    turn = np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = (5, -7, 11)
    sitk.WriteImage(image_to_itk(values.astype(np.float32), Grid(shape, affine)), str(path / "study_0000.nii.gz"))
    return path / "study_0000.nii.gz"


def predict_with_nnunet(folder: Path, study: Path) -> np.ndarray:
    """nnU-Net's label map (I, J, K)."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False, device=CPU, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    return predictor.predict_single_npy_array(*SimpleITKIO().read_images([str(study)])).transpose(2, 1, 0)


@pytest.mark.parametrize(("model", "study"), PAIRS)
def test_a_folder_that_nnunetv2_wrote_gives_its_own_prediction(trained, tmp_path, model, study):
    entry, state = read_nnunet(trained(model))
    outputs = len(entry.structures) + (entry.activation == "softmax")
    network, _ = build(entry.network, outputs)
    network.load_state_dict(state)
    save_model(tmp_path / "model", entry, network)
    file = write_study(tmp_path, study)

    theirs = predict_with_nnunet(trained(model), file)
    ours = segment_volume(model_segmenter(tmp_path / "model"), read_volume(file), CPU, precision="fp32")
    if entry.activation == "sigmoid":
        layers, ours = ours, np.zeros(theirs.shape, dtype=np.uint8)
        for structure, mask in zip(entry.structures, layers, strict=True):
            ours[mask] = structure.value
    for value in (0, 1, 2):
        first, second = theirs == value, ours == value
        assert first.mean() > 0.05
        assert 2 * (first & second).sum() / (first.sum() + second.sum()) >= 0.999


@pytest.mark.parametrize("normalisation", ["CTNormalization", "ZScoreNormalization", "RescaleTo01Normalization"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 2, 0)])
def test_the_network_gets_the_image_that_nnunet_would_give_it(tmp_path, normalisation, masked, study, transpose):
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed")
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    model = Model(normalisation=normalisation, masked=masked, transpose=transpose)
    plans, file = make_plans(model), write_study(tmp_path, study)
    entry, _ = read_nnunet(write_folder(tmp_path / "model", plans, make_dataset(LABELS)))
    manager = PlansManager(copy.deepcopy(plans))
    theirs, _, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(file)], None, manager, manager.get_configuration("3d_fullres"), make_dataset(LABELS)
    )
    ours = prepare_nnunet(read_volume(file), entry.preprocessing)
    np.testing.assert_allclose(ours.image.numpy(), theirs, atol=2e-5)


@pytest.mark.parametrize("network", [PLAIN, RESIDUAL])
def test_every_tensor_of_the_checkpoint_is_loaded_and_has_one_name(tmp_path, network):
    plans = make_plans(Model(network))
    checkpoint = make_checkpoint(plans)
    entry, state = read_nnunet(write_folder(tmp_path / "model", plans, make_dataset(LABELS), checkpoint))
    weights = checkpoint["network_weights"]
    unused = {name for name in weights if name.startswith("decoder.seg_layers.0.")}
    assert {t.data_ptr() for n, t in weights.items() if n not in unused} == {weights[n].data_ptr() for n in state}
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.items())

    ours, anatomy = build(entry.network, 3)
    ours.load_state_dict(state)
    save_model(tmp_path / "saved", entry, ours)
    again, _ = load_base(replace(entry, directory=tmp_path / "saved"))
    from peftseg.networks.nnunet import untrimmed

    theirs = untrimmed(entry.network.arguments, 3)
    theirs.load_state_dict(weights)
    image = torch.randn(1, 1, *entry.window)
    with torch.no_grad():
        assert torch.equal(again(image), theirs.eval()(image))
    assert anatomy.divisor == (2, 4, 4)
    assert head_of(ours, anatomy).out_channels == 3


@pytest.mark.parametrize("network", [PLAIN, RESIDUAL])
def test_a_new_head_is_run_and_every_tensor_gets_a_gradient(network):
    arguments = network_arguments(make_plans(Model(network))["configurations"]["3d_fullres"])
    net, anatomy = build(models.NetworkSpec("nnunet", arguments), 3)
    replace_head(net, anatomy, 2)
    out = net(torch.randn(1, 1, 8, 16, 16))
    assert out.shape == (1, 2, 8, 16, 16)
    out.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("network", [PLAIN, RESIDUAL])
def test_activations_are_recomputed_stage_by_stage(network):
    arguments = network_arguments(make_plans(Model(network))["configurations"]["3d_fullres"])
    net, _ = build(models.NetworkSpec("nnunet", arguments), 3)
    blocks = _block_modules(net)
    assert net.encoder not in blocks
    assert len(blocks) >= 5  # three stages down, two up
    image = torch.randn(1, 1, 8, 16, 16)
    net(image).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    with activation_checkpointing(net):
        net(image).square().sum().backward()
    assert all(torch.allclose(expected[name], p.grad, rtol=1e-4, atol=1e-5) for name, p in net.named_parameters())


def test_the_entry_says_what_the_folder_says(tmp_path):
    folder = write_folder(tmp_path / "model", make_plans(Model(transpose=(1, 0, 2))), make_dataset(LABELS))
    entry, _ = read_nnunet(folder)
    assert [(s.name, s.value) for s in entry.structures] == [("pale", 1), ("bright", 2)]
    assert len({s.colour for s in entry.structures}) == 2
    assert (entry.activation, entry.modality, entry.window, entry.overlap) == ("softmax", "CT", (12, 32, 32), 0.5)
    assert entry.preprocessing.orientation == "jki"
    assert entry.preprocessing.spacing == (3.0, 0.9, 0.9)
    intensity = entry.preprocessing.intensity
    assert (intensity.kind, intensity.low, intensity.high) == ("window", -20.0, 250.0)
    assert (intensity.out_low, intensity.out_high) == pytest.approx((-130 / 60, 140 / 60))
    assert entry.record["folds"] == ["0"]
    assert models.entry_from_dict(models.to_dict(entry)) == entry


def test_files_that_were_turned_before_training_are_turned_here(tmp_path):
    plans = make_plans(Model())
    folder = write_folder(tmp_path / "model", plans, make_dataset(LABELS))
    recipe = read_nnunet(folder, orientation="RAS")[0].preprocessing
    assert recipe.orientation == "SAR"
    with pytest.raises(BadInput, match="Orientation 'RAX'"):
        read_nnunet(folder, orientation="RAX")
    plans["image_reader_writer"] = "NibabelIOWithReorient"
    (folder / "plans.json").write_text(json.dumps(plans))
    assert read_nnunet(folder)[0].preprocessing.orientation == "SAR"

    array = np.random.default_rng(0).normal(size=(20, 18, 8)).astype(np.float32)
    ras = Volume(array, Grid(array.shape, np.diag([1.0, 1.1, 3.1, 1.0])), "ras")
    lps = np.diag([-1.0, -1.1, 3.1, 1.0])
    lps[:2, 3] = 19 * 1.0, 17 * 1.1
    turned = Volume(array[::-1, ::-1].copy(), Grid(array.shape, lps), "lps")
    torch.testing.assert_close(prepare_nnunet(ras, recipe).image, prepare_nnunet(turned, recipe).image)


def test_a_fold_of_all_scans_goes_before_single_folds(tmp_path):
    plans, dataset = make_plans(Model()), make_dataset(LABELS)
    folder = write_folder(tmp_path / "model", plans, dataset, fold="2")
    assert read_nnunet(folder)[0].record["fold"] == "2"
    (folder / "fold_all").mkdir()
    torch.save(make_checkpoint(plans), folder / "fold_all" / "checkpoint_best.pth")
    record = read_nnunet(folder)[0].record
    assert (record["fold"], record["folds"], record["checkpoint"]) == ("all", ["2", "all"], "checkpoint_best.pth")
    assert read_nnunet(folder, fold="2")[0].record["fold"] == "2"
    with pytest.raises(BadInput, match="Fold '7' is not in"):
        read_nnunet(folder, fold="7")


@pytest.mark.parametrize("network", [PLAIN, RESIDUAL])
def test_plans_of_the_first_format_describe_the_same_network(network):
    new = make_plans(Model(network))["configurations"]["3d_fullres"]
    options = new["architecture"]["arch_kwargs"]
    old = {
        "UNet_class_name": network,
        "UNet_base_num_features": 8,
        "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": [1, 1, 2],
        "n_conv_per_stage_decoder": [1, 2],
        "pool_op_kernel_sizes": options["strides"],
        "conv_kernel_sizes": options["kernel_sizes"],
    }
    shapes = []
    for configuration in (old, new):
        net, _ = build(models.NetworkSpec("nnunet", network_arguments(configuration)), 3)
        shapes.append({name: tensor.shape for name, tensor in net.state_dict().items()})
    assert shapes[0] == shapes[1]


def changed(path: tuple[str, ...], value) -> dict:
    """Plans of the usual model with one value of the configuration or, from "plans", of the whole changed."""
    plans = make_plans(Model())
    place = plans if path[0] == "plans" else plans["configurations"]["3d_fullres"]
    for key in path[1:-1]:
        place = place[key]
    place[path[-1]] = value
    return plans


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("", "patch_size"), [32, 32], "is 2D"),
        (("", "previous_stage"), "3d_lowres", "second stage of a cascade"),
        (("", "preprocessor_name"), "MyPreprocessor", "preprocessor 'MyPreprocessor'"),
        (("", "normalization_schemes"), ["RGBTo01Normalization"], "normalisation 'RGBTo01Normalization'"),
        (("", "resampling_fn_data"), "no_resampling_hack", "resampling 'no_resampling_hack'"),
        (("", "resampling_fn_probabilities_kwargs"), {"order": 3}, "resamples its probabilities with"),
        (("", "architecture", "network_class_name"), "a.b.PrimusM", "network 'PrimusM'"),
        (("", "architecture", "arch_kwargs", "conv_op"), "os.system", "layer of an nnU-Net network 'os.system'"),
        (("", "architecture", "arch_kwargs", "n_stages"), 4, "do not fit each other"),
        (("", "architecture", "arch_kwargs", "colour"), "red", "do not fit each other"),
        (("", "patch_size"), None, "not complete"),
        (("plans", "image_reader_writer"), "NaturalImage2DIO", "image reader 'NaturalImage2DIO'"),
        (("plans", "configurations"), {}, "no usable configuration"),
    ],
)
def test_plans_that_are_not_supported_are_refused_with_the_reason(tmp_path, path, value, words):
    folder = write_folder(
        tmp_path / "model", changed(path, value), make_dataset(LABELS), make_checkpoint(make_plans(Model()))
    )
    with pytest.raises(BadInput, match=words) as caught:
        read_nnunet(folder)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channel_names": {"0": "T1", "1": "T2"}}, "2 channels"),
        ({"labels": {"background": 0, "a": 1, "b": 3}}, "without a gap"),
        ({"labels": REGIONS, "regions_class_order": [1]}, "regions_class_order"),
        ({"labels": {"background": 0, "a": 1}}, "does not fit the network"),
    ],
)
def test_a_dataset_that_is_not_supported_is_refused_with_the_reason(tmp_path, change, words):
    folder = write_folder(tmp_path / "model", make_plans(Model()), {**make_dataset(LABELS), **change})
    with pytest.raises(BadInput, match=words):
        read_nnunet(folder)


def test_a_folder_without_plans_weights_or_readable_text_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"has no plans\.json"):
        read_nnunet(tmp_path)
    folder = write_folder(tmp_path / "model", make_plans(Model()), make_dataset(LABELS))
    (folder / "dataset.json").write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        read_nnunet(folder)
    (folder / "dataset.json").write_text(json.dumps(make_dataset(LABELS)))
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be read"):
        read_nnunet(folder)
    checkpoint.unlink()
    with pytest.raises(BadInput, match="has no weights"):
        read_nnunet(folder)


def test_a_checkpoint_of_numpy_1_is_read(tmp_path):
    folder = write_folder(tmp_path / "model", make_plans(Model()), make_dataset(LABELS))
    file = folder / "fold_0" / "checkpoint_final.pth"
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    new, old = (f"c{core}.multiarray\nscalar".encode() for core in ("numpy._core", "numpy.core"))
    assert any(new in data or old in data for data in parts.values())
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data.replace(new, old))
    assert read_nnunet(folder)[0].record["checkpoint"] == file.name


def test_a_checkpoint_that_would_run_code_is_refused_and_not_run(tmp_path):
    witness = tmp_path / "witness"

    class Trap:
        def __reduce__(self):
            return Path.touch, (witness,)

    plans = make_plans(Model())
    folder = write_folder(
        tmp_path / "model", plans, make_dataset(LABELS), {**make_checkpoint(plans), "logging": Trap()}
    )
    with pytest.raises(BadInput, match="more than tensors, numbers and text"):
        read_nnunet(folder)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("first", "second", "axis"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 3.0), None),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 3.1), 2),
        ((5.0, 1.0, 1.0), (1.0, 1.0, 5.0), 0),
        ((1.0, 5.0, 5.0), (1.0, 1.0, 5.0), None),
    ],
)
def test_the_coarse_axis_follows_nnunets_rule(first, second, axis):
    assert coarse_axis(first, second) == axis


def test_windows_are_spread_evenly_and_weighted_around_the_upper_middle():
    assert window_starts(110, 64, 0.5) == (0, 23, 46)
    assert window_starts(64, 64, 0.5) == (0,)
    weights = window_weights((4, 8, 6))
    assert weights.shape == (4, 8, 6)
    assert (weights > 0).all()
    assert weights[2, 4, 3] == weights.max() == 10


def test_a_study_of_zeros_is_neither_cropped_nor_divided_by_nothing(tmp_path):
    folder = write_folder(tmp_path / "model", make_plans(Model(spacing=(2.0, 1.0, 1.0))), make_dataset(LABELS))
    recipe = read_nnunet(folder)[0].preprocessing
    volume = Volume(np.zeros((6, 5, 4), np.float32), Grid((6, 5, 4), np.eye(4)), "empty")
    for kind in ("zscore_all", "zscore_inside", "range01", "none", "zscore"):
        prepared = prepare_nnunet(volume, replace(recipe, intensity=Intensity(kind)))
        assert prepared.image.shape == (1, 2, 5, 6)
        assert not prepared.image.any()


def test_a_folder_is_imported_from_the_command_line_and_refused_a_second_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PEFTSEGMENT_HOME", str(tmp_path / "home"))
    folder = write_folder(
        tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", make_plans(Model()), make_dataset(LABELS)
    )
    assert main(["models", "import", str(folder), "--id", "our-clinic", "--orientation", "RAS"]) == 0
    entry = catalogue()["our-clinic"]
    assert entry.preprocessing.scheme == "nnunet"
    network, _ = load_base(entry)
    assert entry.record["fingerprint"] == fingerprint(network.state_dict(), architecture(entry))
    assert main(["models", "import", str(folder), "--id", "our-clinic"]) == 2
    assert "our-clinic" in capsys.readouterr().err
