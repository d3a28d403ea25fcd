"""One training of nnU-Net v2 from scratch, and its predictions; started by references.py in the interpreter that has nnunetv2.

    python nnunet_reference.py FOLDER --epochs 30 --iterations 10 --seed 0

FOLDER holds `raw/Dataset001_reference` (nnU-Net's layout: imagesTr, labelsTr, dataset.json) and `inputs/*_0000.nii.gz`; it
gets `predictions/*.nii.gz` and `facts.json`. Fingerprint, plan, preprocessing, network, losses, augmentation, sampling,
optimiser and sliding window are nnU-Net's own (`3d_fullres`, all scans in one fold). What differs from its defaults: the
length; bfloat16 where its GPU training uses float16; no validation while training; one process with one thread. No
checkpoint is written or read.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

DATASET, CONFIGURATION = "Dataset001_reference", "3d_fullres"


def set_folders(folder: Path) -> None:
    """Tell nnU-Net where its folders are, and to work in one process; before it is imported."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
        (folder / name).mkdir(exist_ok=True)
    os.environ |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "nnUNet_compile": "0"}


def plan() -> dict:
    """nnU-Net's plan for the data set; preprocesses it, too."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    extract_fingerprint_dataset(1, num_processes=1, verbose=False, show_progress_bar=False)
    plans, name = plan_experiment_dataset(1)
    preprocess_dataset(1, name, (CONFIGURATION,), (1,), show_progress_bar=False)
    return plans


def train(plans: dict, folder: Path, trainer_name: str, epochs: int, iterations: int) -> object:
    """The trainer, trained: `epochs` steps of its learning-rate schedule with `iterations` batches each."""
    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    os.environ.update(nnUNet_n_proc_DA="0")  # batches are made in this process
    torch.set_num_threads(1)  # the planner changes it
    dataset = json.loads((folder / "preprocessed" / DATASET / "dataset.json").read_text(encoding="utf-8"))
    trainer_class = recursive_find_trainer_class_by_name(trainer_name)
    plans = plans | {"continue_training": False}
    trainer = trainer_class(plans, CONFIGURATION, "all", dataset, torch.device("cpu"))
    trainer.num_epochs = epochs
    trainer.on_train_start()
    for epoch in range(epochs):
        trainer.network.train()
        trainer.lr_scheduler.step(epoch)
        losses = [_step(trainer, next(trainer.dataloader_train)) for _ in range(iterations)]
        print(f"epoch {epoch}: mean loss {sum(losses) / iterations:.4f}", flush=True)
    return trainer


def _step(trainer: object, batch: dict) -> float:
    """nnU-Net's train_step, with bfloat16 on the processor."""
    import torch

    trainer.optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = trainer.network(batch["data"])
    loss = trainer.loss([output.float() for output in outputs], batch["target"])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), 12)
    trainer.optimizer.step()
    return float(loss.detach())


def predict(trainer: object, folder: Path) -> None:
    """Segment the inputs with the settings of nnU-Net's own validation: half-overlapping windows, mirrored if trained so."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    reader = trainer.plans_manager.image_reader_writer_class()
    for path in sorted((folder / "inputs").glob("*_0000.nii.gz")):
        image, properties = reader.read_images([str(path)])
        with torch.autocast("cpu", torch.bfloat16):
            labels = predictor.predict_single_npy_array(image, properties)
        reader.write_seg(labels, str(folder / "predictions" / path.name.replace("_0000", "")), properties)


def _processor_time() -> float:
    """Seconds of this process and of the worker processes that have ended."""
    return sum(os.times()[:4])


def main() -> None:
    """Plan, train, predict, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trainer", default="nnUNetTrainer")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    set_folders(folder)
    (folder / "predictions").mkdir(exist_ok=True)
    import numpy as np
    import torch

    started = _processor_time()
    plans = plan()
    np.random.seed(arguments.seed)  # noqa: NPY002 - what nnU-Net draws from
    torch.manual_seed(arguments.seed)
    trainer = train(plans, folder, arguments.trainer, arguments.epochs, arguments.iterations)
    trained = _processor_time()
    predict(trainer, folder)
    predicted = _processor_time()
    facts = {
        "seconds": trained - started,
        "seconds_of_prediction": predicted - trained,
        "trained": sum(p.numel() for p in trainer.network.parameters()),
        "batch_size": trainer.batch_size,
        "patch_size": [int(n) for n in trainer.configuration_manager.patch_size],
    }
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":  # nnU-Net's worker processes import this file
    main()
