"""Train models and score them: `python Testing/bench/make_models.py MODEL`, one of `MODELS`.

The MODELDIR is written to `--out` (default: where the package bundles it; required for those that are not bundled).
The `brain` ones need the real volumes. `brain-t1-bn` and `brain-t1-2d` normalise by running statistics and have an early
segmentation head: they are the sources of unlabelled site adaptation. `brain-t1-swin` has the attention that LoRA and ARENA
were published for; it learns the structures of `brain-t1` from the same scans. `--facts` trains nothing: it measures the
training scans of a model that is there (sizes and shapes of its structures, what the scans are like) and puts that into its
record.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import torch

from peftseg.config import PretrainJob
from peftseg.dataset import load_scans
from peftseg.events import Reporter
from peftseg.metrics import dice
from peftseg.models import BUNDLED, ModelEntry, Structure, read_model_dir, to_dict
from peftseg.paths import write_text
from peftseg.pretrain import run_pretrain, scan_facts
from peftseg.segmenter import model_segmenter, segment_volume
from peftseg.study import SupportItem, read_support_folder
from peftseg.weights import load_base

ROOT = Path(__file__).resolve().parents[2]

BRAIN = (
    Structure("thalamus", 2, (242, 206, 142), "SCT^42695009^Thalamus"),
    Structure("caudate", 3, (122, 186, 220), "SCT^11000004^Caudate nucleus"),
    Structure("putamen", 4, (236, 13, 176), "SCT^89278009^Putamen"),
    Structure("pallidum", 5, (12, 48, 255), "SCT^14738005^Globus pallidus"),
    Structure("lateral ventricle", 7, (120, 18, 134), "SCT^66720007^Lateral ventricle"),
    Structure("brainstem", 8, (119, 159, 176), "SCT^15926001^Brainstem"),
)
SITE_BRAIN = (
    Structure("hippocampus", 1, (230, 159, 0), "SCT^5366008^Hippocampus"),
    *(s for s in BRAIN if s.name in ("thalamus", "putamen", "lateral ventricle")),
)
MODELS = ("brain-t1", "brain-t1-bn", "brain-t1-2d", "brain-t1-swin", "phantom-ct")
NOT_BUNDLED = ("brain-t1-2d", "brain-t1-swin")
# The fewest features that MONAI takes, and windows of attention (MONAI's are 7 wide) that divide every level of the patch.
SWIN = {"in_channels": 1, "feature_size": 12, "window_size": 4, "merging": "monai-1.5"}
SWIN_PATCH = (64, 64, 64)
BRAIN_NOTICE = (
    "Trained on 40 crops of the IXI data set (Hammersmith site, brain-development.org), CC BY-SA 3.0, resampled to 2 mm "
    "and cropped; the labels are automatic (DLMUSE). The weights are published under CC BY-SA 3.0 with this attribution; "
    "see LICENSE.txt beside them."
)


def brain_job(
    data: Path, out: Path, epochs: int, model: str = "brain-t1"
) -> tuple[PretrainJob, tuple[SupportItem, ...]]:
    """A `brain` model: 40 scans to train on, and the 12 support scans to score the known structures on."""
    structures, title, network, further = {
        "brain-t1": (BRAIN, "Deep grey matter on T1 MR (demonstration)", "segresnet", {}),
        "brain-t1-bn": (SITE_BRAIN, "Brain structures on T1 MR, with batch norm (demonstration)", "unet3d_bn", {}),
        "brain-t1-2d": (SITE_BRAIN, "Brain structures on T1 MR, 2D (demonstration)", "unet2d", {"plane": "axial"}),
        "brain-t1-swin": (
            BRAIN,
            "Deep grey matter on T1 MR, with attention (demonstration)",
            "swinunetr",
            {"network_arguments": SWIN, "patch": SWIN_PATCH},
        ),
    }[model]
    job = PretrainJob(
        data=read_support_folder(data / "subcortical_ixi" / "pretrain", structures),
        structures=structures,
        out=str(out),
        id=model,
        title=title,
        network=network,
        intensity="zscore",
        spacing=(2.0, 2.0, 2.0),
        epochs=epochs,
        modality="MR",
        body_part="brain",
        licence="CC-BY-SA-3.0",
        licence_notice=BRAIN_NOTICE,
        description=(
            "A small demonstration model trained on 40 cropped T1 scans of one scanner; not a foundation model. Its labels "
            "are automatic, so its scores are agreement with them."
        ),
        seed=0,
        **further,
    )
    return job, read_support_folder(data / "subcortical_ixi" / "support", structures)


def phantom_job(folder: Path, out: Path, epochs: int) -> tuple[PretrainJob, tuple[SupportItem, ...]]:
    """`phantom-ct`: made-up abdomens of the training site, 40 to train on and 10 to score on."""
    from peftseg import phantom

    structures = phantom.BASE_STRUCTURES
    names = [s.name for s in structures]
    phantom.write_dataset(folder / "train", range(1000, 1040), phantom.SITE_A, names)
    phantom.write_dataset(folder / "score", range(2000, 2010), phantom.SITE_A, names)
    job = PretrainJob(
        data=read_support_folder(folder / "train", structures),
        structures=structures,
        out=str(out),
        id="phantom-ct",
        title="Made-up abdomen (demonstration)",
        intensity="window:-160,320",
        spacing=(3.0, 3.0, 3.0),
        patch=(48, 48, 48),
        epochs=epochs,
        modality="CT",
        body_part="abdomen",
        licence="Apache-2.0",
        description="Trained on procedural anatomy that this software makes up. For the demo and the tests, not for patients.",
        seed=0,
    )
    return job, read_support_folder(folder / "score", structures)


def score(entry: ModelEntry, items: tuple[SupportItem, ...]) -> dict[str, float]:
    """Mean Dice of every structure over scans that the training did not see."""
    segmenter = model_segmenter(entry.directory)
    values: dict[str, list[float]] = {s.name: [] for s in entry.structures}
    for scan in load_scans(items, entry.structures, None, Reporter.silent()):
        labels = segment_volume(segmenter, scan.volume, torch.device("cpu"))
        for structure in entry.structures:
            values[structure.name].append(float(dice(labels == structure.value, scan.masks[structure.name])))
    return {name: round(sum(found) / len(found), 3) for name, found in values.items()}


def add_facts(job: PretrainJob, entry: ModelEntry) -> None:
    """Put into model.json what a pre-training notes of its scans; the weights stay as they are."""
    reporter = Reporter.silent()
    loaded = load_scans(job.data, job.structures, None, reporter)
    facts = scan_facts(loaded, entry, *load_base(entry), torch.device("cpu"), reporter)
    write_record(entry, entry.record | facts)


def write_record(entry: ModelEntry, record: dict) -> None:
    """Replace the record in a model folder's model.json."""
    text = json.dumps(to_dict(dataclasses.replace(entry, record=record)), indent=2)
    write_text(Path(entry.directory) / "model.json", text + "\n")


def show(kind: str, fields: dict) -> None:
    """Print progress."""
    if kind == "progress" and "loss" in fields and fields["step"] % 5 == 0:
        loss = fields.get("smoothed_loss", fields["loss"])  # that of an early head is not smoothed
        print(fields["stage"], fields["step"], round(loss, 4), fields.get("match", ""), fields["eta_s"], flush=True)
    elif kind in ("log", "warning"):
        print(kind, fields["message"], flush=True)


def main() -> None:
    """Train, score, and write the scores and the command into model.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--facts", action="store_true", help="no training: measure the scans of the model in --out")
    arguments = parser.parse_args()
    if arguments.out is None and arguments.model in NOT_BUNDLED:
        parser.error(f"{arguments.model} is not bundled: give --out")
    out = arguments.out or BUNDLED / arguments.model
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.model.startswith("brain"):
            job, scored = brain_job(arguments.data, out, arguments.epochs, arguments.model)
        else:
            job, scored = phantom_job(Path(scratch), out, arguments.epochs)
        if arguments.facts:
            add_facts(job, read_model_dir(out))
            return
        run_pretrain(job, Reporter(show))
        entry = read_model_dir(out)
        scores = score(entry, scored)
    record = entry.record | {
        "command": " ".join(
            ["python", "Testing/bench/make_models.py", arguments.model, "--epochs", str(arguments.epochs)]
        ),
        "scored_scans": len(scored),
        "mean_dice": scores,
    }
    write_record(entry, record)
    if arguments.model.startswith("brain") and not (out / "LICENSE.txt").exists():
        text = (BUNDLED / "brain-t1" / "LICENSE.txt").read_text(encoding="utf-8")
        write_text(out / "LICENSE.txt", text.replace("(brain-t1)", f"({arguments.model})"))
    print(scores)
    sys.exit(0)


if __name__ == "__main__":
    main()
