"""The public foundation models, declared. Torch-free; Docs/add-a-model.md shows the one entry to write.

Facts are from the models' own files and code; `source.page` and Docs/references.md say which. Where an address has no pinned
revision or hash, none is published: the SHA-256 of the file is then recorded at its first import.
"""

from __future__ import annotations

from dataclasses import replace

from peftseg.models import Intensity, Layout, ModelEntry, NetworkSpec, Preprocessing, Source, Structure
from peftseg.structures import structures

_SUPREM_PAGE = "https://github.com/MrGiovanni/SuPreM"
_SUPREM_FILES = "https://huggingface.co/MrGiovanni/SuPreM/resolve/main/"
_SUPREM_NOTICE = (
    "The authors' repository says CC BY-NC-ND 4.0 (no commercial use, no sharing of changed weights); the page that holds "
    "the files says Apache-2.0. Until they clear this up, take the stricter one: keep adapters and results of this model "
    "to research, and ask the authors before you share an adapter."
)
_SUPREM_CITATION = (
    "Li W, Yuille A, Zhou Z. How Well Do Supervised 3D Models Transfer to Medical Imaging Tasks? ICLR 2024."
)
_UNIVERSAL_CITATION = (
    "Liu J et al. CLIP-Driven Universal Model for Organ Segmentation and Tumor Detection. ICCV 2023. arXiv:2301.00785."
)
_SUPREM_LICENCE = "CC BY-NC-ND 4.0 (repository) or Apache-2.0 (file page), conflicting"

_ABDOMEN = Preprocessing("RAS", (1.5, 1.5, 1.5), Intensity("window", -175.0, 250.0, 0.0, 1.0), crop_foreground=True)
_WINDOW = (96, 96, 96)

# Names in a Universal Model's checkpoint -> names here; the head lies where a plain one would.
_CLIP_PARTS = ("organ_embedding", "precls_conv", "GAP", "controller", "text_to_vision")


def _clip_layout(head: str) -> Layout:
    return Layout(renames=(("backbone", ""), *((part, f"{head}.{part}") for part in _CLIP_PARTS)))


# Of the 32 templates, SuPreM supervised these (1-based in its TEMPLATE['target']: 1 2 3 4 6 7 8 9 11).
_SUPERVISED = (0, 1, 2, 3, 5, 6, 7, 8, 10)


def _template(rows: tuple[int, ...]) -> tuple[Structure, ...]:
    """Structures of these rows of the 32 templates, numbered anew."""
    known = structures("suprem-template-32")
    return tuple(replace(known[row], value=number) for number, row in enumerate(rows, start=1))


def _clip_arguments(rows: tuple[int, ...]) -> dict:
    return {"templates": 32, "rows": list(rows)}


def _segresnet(filters: int, dropout: float) -> NetworkSpec:
    return NetworkSpec(
        "segresnet",
        {
            "in_channels": 1,
            "init_filters": filters,
            "blocks_down": [1, 2, 2, 4],
            "blocks_up": [1, 1, 1],
            "dropout_prob": dropout,
        },
    )


def _whole_body(resolution: str, spacing: float, file: str, md5: str) -> ModelEntry:
    return ModelEntry(
        id=f"monai-wholebody-ct-{resolution}",
        title=f"MONAI whole-body CT, {spacing:g} mm",
        modality="CT",
        body_part="whole body",
        structures=structures("monai-wholebody-104"),
        network=_segresnet(32, 0.2),
        activation="softmax",
        preprocessing=Preprocessing("RAS", (spacing,) * 3, Intensity("nonzero_range", out_low=-1.0, out_high=1.0)),
        window=_WINDOW,
        overlap=0.25,
        licence="Apache-2.0",
        citation=(
            "MONAI model zoo, wholeBody_ct_segmentation; Wasserthal J et al. TotalSegmentator. Radiology: AI 2023; "
            "Myronenko A. 3D MRI brain tumor segmentation using autoencoder regularization. 2018."
        ),
        description="104 structures of TotalSegmentator's first release.",
        source=Source(
            file=file,
            address=f"https://developer.download.nvidia.com/assets/Clara/monai/tutorials/model_zoo/{file}",
            page="https://github.com/Project-MONAI/model-zoo/tree/dev/models/wholeBody_ct_segmentation",
            md5=md5,
        ),
    )


def _suprem(id_: str, title: str, structures_: tuple[Structure, ...], network: NetworkSpec, file: str) -> ModelEntry:
    """What SuPreM's models have in common, and the universal ones that lie beside them."""
    return ModelEntry(
        id=id_,
        title=title,
        modality="CT",
        body_part="abdomen and thorax",
        structures=structures_,
        network=network,
        activation="sigmoid",
        preprocessing=_ABDOMEN,
        window=_WINDOW,
        overlap=0.5,
        licence=_SUPREM_LICENCE,
        licence_notice=_SUPREM_NOTICE,
        acknowledge=True,
        patents="Patents pending, says the authors' README.",
        citation=_SUPREM_CITATION,
        source=Source(file=file, address=_SUPREM_FILES + file, page=_SUPREM_PAGE),
    )


def _suprem_segresnet() -> ModelEntry:
    entry = _suprem(
        "suprem-segresnet",
        "SuPreM SegResNet",
        structures("atlas-1.1-25"),
        _segresnet(16, 0.0),
        "supervised_suprem_segresnet_2100.pth",
    )
    return replace(
        entry,
        alternatives=(structures("atlas-1.0-9"),),
        description="25 structures of AbdomenAtlas 1.1, or 9 of 1.0: the file's last layer tells which.",
    )


def _text_driven(
    id_: str, title: str, network: str, arguments: dict, head: str, file: str, rows: tuple[int, ...], citation: str
) -> ModelEntry:
    spec = NetworkSpec(network, {**arguments, "clip_driven": _clip_arguments(rows)})
    return replace(
        _suprem(id_, title, _template(rows), spec, file),
        citation=citation,
        description=(
            "Segments its own structures through a text-driven head; adapting gives it a plain, fresh head, and all "
            "structures are learnt from your scans."
        ),
        layout=_clip_layout(head),
    )


_SWIN = {"in_channels": 1, "feature_size": 48, "merging": "legacy"}
_SWIN_HEAD, _UNET_HEAD = "out.conv.conv", "out_tr.final_conv"
_ALL = tuple(range(32))


def _fseft() -> ModelEntry:
    return ModelEntry(
        id="fseft-swinunetr",
        title="FSEFT SwinUNETR",
        modality="CT",
        body_part="abdomen and thorax",
        structures=structures("fseft-29"),
        network=NetworkSpec("swinunetr", dict(_SWIN)),
        activation="sigmoid",
        preprocessing=_ABDOMEN,
        window=_WINDOW,
        overlap=0.25,
        licence="none stated",
        licence_notice=(
            "The authors state no licence for the weights. Without one they may not be shared on, nor may what is "
            "derived from them; ask the authors before you do more than research with them."
        ),
        acknowledge=True,
        citation=(
            "Silva-Rodriguez J, Dolz J, Ben Ayed I. Towards Foundation Models and Few-Shot Parameter-Efficient "
            "Fine-Tuning for Volumetric Organ Segmentation. Medical Image Analysis 2025."
        ),
        description="29 structures, base of the ARENA and FSEFT papers. Its file has to be fetched by hand.",
        source=Source(
            file="fseft.pth",
            page="https://drive.google.com/file/d/18yLNxmWGnVifQNeYYwyyu56Cg4tWV9aW/view",
        ),
        layout=Layout(renames=(("classifier", _SWIN_HEAD),)),
    )


def _ct_fm() -> ModelEntry:
    return ModelEntry(
        id="ct-fm-wholebody",
        title="CT-FM whole body",
        modality="CT",
        body_part="whole body",
        structures=structures("totalsegmentator-v2-117"),
        network=NetworkSpec("segresnet_ds", {"in_channels": 1, "init_filters": 32, "blocks_down": [1, 2, 2, 4, 4]}),
        activation="softmax",
        # No resampling in its own pipeline: it was trained on TotalSegmentator's scans, which have 1.5 mm.
        preprocessing=Preprocessing(
            "SPL", (1.5, 1.5, 1.5), Intensity("window", -1024.0, 2048.0, 0.0, 1.0), crop_foreground=True
        ),
        window=(96, 160, 160),
        overlap=0.5,
        licence="Apache-2.0",
        citation="Pai S et al. Vision Foundation Models for Computed Tomography. 2025. arXiv:2501.09001.",
        description="117 structures of TotalSegmentator's second release; pre-trained on 148,000 CT scans.",
        source=Source(
            file="model.safetensors",
            address="https://huggingface.co/project-lighter/whole_body_segmentation/resolve/main/model.safetensors",
            page="https://huggingface.co/project-lighter/whole_body_segmentation",
            size=349_000_000,
        ),
        # Heads of the coarser levels serve deep supervision in training only.
        layout=Layout(ignored=("up_layers.0.head", "up_layers.1.head", "up_layers.2.head")),
    )


def _btcv() -> ModelEntry:
    return ModelEntry(
        id="btcv-swinunetr",
        title="Tang's SwinUNETR (BTCV)",
        modality="CT",
        body_part="abdomen",
        structures=structures("btcv-13"),
        network=NetworkSpec("swinunetr", dict(_SWIN)),
        activation="softmax",
        preprocessing=replace(_ABDOMEN, spacing=(1.5, 1.5, 2.0)),
        window=_WINDOW,
        overlap=0.5,
        licence="Apache-2.0",
        citation=(
            "Tang Y et al. Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis. CVPR 2022."
        ),
        description="13 abdominal structures of BTCV.",
        source=Source(
            file="swin_unetr.base_5000ep_f48_lr2e-4_pretrained.pt",
            address=(
                "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
                "swin_unetr.base_5000ep_f48_lr2e-4_pretrained.pt"
            ),
            page="https://github.com/Project-MONAI/research-contributions/tree/main/SwinUNETR/BTCV",
        ),
    )


def _cc359() -> ModelEntry:
    return ModelEntry(
        id="cc359-unet2d",
        title="CC359 2D U-Net",
        modality="MR",
        body_part="brain",
        structures=(Structure("brain", 1, (245, 222, 179), "SCT^12738006^Brain"),),
        network=NetworkSpec("unet2d", {"in_channels": 1, "filters": 16}),
        activation="sigmoid",
        # Slices are sagittal: the last axis of the model grid runs from left to right. Grey values: smallest to largest.
        # Slices are made square by repeating their outer voxels, never by stretching them.
        preprocessing=Preprocessing("PSR", (1.0, 1.0, 1.0), Intensity("percentile", 0.0, 100.0, 0.0, 1.0), square=True),
        window=(256, 256, 16),
        overlap=0.0,
        licence="MIT (code); none stated for weights",
        citation=(
            "Aleem S et al. ConvLoRA and AdaBN Based Domain Adaptation via Self-Training. ISBI 2024. arXiv:2402.04964."
        ),
        description=(
            "Skull stripping of T1-weighted MR, slice by slice: the network of the ConvLoRA paper. No weights are "
            "published; import a file that its code trained."
        ),
        source=Source(file="cc359_unet2d.pth", page="https://github.com/aleemsidra/ConvLoRA"),
    )


FOUNDATION_MODELS: tuple[ModelEntry, ...] = (
    _whole_body("1.5mm", 1.5, "model_wholebody_ct_segmentation.pt", "aded45dea52f9c00b37922bcd0a98502"),
    _whole_body("3mm", 3.0, "model_lowres_wholebody_ct_segmentation.pt", "dbdebeae650f4fb5ea7f4ad01e0d2431"),
    _ct_fm(),
    _suprem_segresnet(),
    _text_driven(
        "suprem-unet",
        "SuPreM U-Net",
        "unet3d",
        {"in_channels": 1},
        _UNET_HEAD,
        "supervised_suprem_unet_2100.pth",
        _SUPERVISED,
        _SUPREM_CITATION,
    ),
    _text_driven(
        "suprem-swinunetr",
        "SuPreM SwinUNETR",
        "swinunetr",
        _SWIN,
        _SWIN_HEAD,
        "supervised_suprem_swinunetr_2100.pth",
        _SUPERVISED,
        _SUPREM_CITATION,
    ),
    _text_driven(
        "universal-unet",
        "CLIP-driven Universal U-Net",
        "unet3d",
        {"in_channels": 1},
        _UNET_HEAD,
        "supervised_clip_driven_universal_unet_2100.pth",
        _ALL,
        _UNIVERSAL_CITATION,
    ),
    _text_driven(
        "universal-swinunetr",
        "CLIP-driven Universal SwinUNETR",
        "swinunetr",
        _SWIN,
        _SWIN_HEAD,
        "supervised_clip_driven_universal_swin_unetr_2100.pth",
        _ALL,
        _UNIVERSAL_CITATION,
    ),
    _fseft(),
    _btcv(),
    _cc359(),
)
