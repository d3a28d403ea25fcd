"""Which models fit a scan: by its modality and body part, with the reason in words; and what grey values tell. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from peftseg.models import ModelEntry

DEMONSTRATION = re.compile(r"\b(demonstration|made-up)\b", re.IGNORECASE)  # models that were trained on no patient
# Words, as users, DICOM's BodyPartExamined and series descriptions say them -> region.
REGIONS = {
    "abdomen": "abdomen abdominal belly liver spleen kidney kidneys pancreas stomach gallbladder adrenal bowel colon",
    "thorax": "thorax thoracic chest lung lungs heart cardiac mediastinum breast aorta",
    "pelvis": "pelvis pelvic prostate bladder uterus hip rectum",
    "brain": "brain head skull cranium neuro hippocampus cerebrum cerebral",
    "neck": "neck larynx thyroid",
    "spine": "spine spinal vertebra vertebrae lumbar cspine tspine lspine",
    "limbs": "limb limbs extremity leg arm knee shoulder hand foot ankle elbow wrist thigh femur",
}
_REGION_OF = {word: region for region, words in REGIONS.items() for word in words.split()}
_JOINED = {"chestabdomen": "chest abdomen", "abdomenpelvis": "abdomen pelvis", "chestabdpelvis": "chest abdomen pelvis"}
_JOINED |= {"headneck": "head neck"}
_MODALITIES = {"ct": "CT", "mr": "MR", "mri": "MR"}

SAMPLE = 200_000  # voxels that a guess looks at
FEWEST_VALUES = 30  # different ones; label maps have fewer
SMALLEST_MR = 10.0  # a range from 0 to 1 was made by some program, from whatever
AIR, GAP, SOFT = (-1100.0, -600.0), (-600.0, -200.0), (-150.0, 250.0)  # Hounsfield units; lungs count as air
LOWEST_CT, HIGHEST_CT = -4000.0, 5000.0  # paddings down to -3024, metal up to 3071 and a little more


def rank_models(entries: Sequence[ModelEntry], modality: str, body_part: str = "") -> list[tuple[ModelEntry, str]]:
    """Models for a scan, the best first, each with the reason in plain words; equally good ones keep their order.

    What counts, in this order: the modality; no model that was made for demonstration; the body part, where a model of just
    this part comes before one of the whole body; weights that are on this machine.

    Parameters
    ----------
    modality : str
        "CT", "MR", or "" (or something else, which no model is made for) when it is not known.
    body_part : str
        Words, e.g. "abdomen", "CHEST", or a series' description; "" when it is not known.
    """
    wanted, regions = _MODALITIES.get(modality.strip().lower(), modality.strip()), regions_of(body_part)
    judged = [(_judge(entry, wanted, regions), entry) for entry in entries]
    judged.sort(key=lambda pair: pair[0][0], reverse=True)  # stable
    return [(entry, reason) for (_, reason), entry in judged]


def regions_of(text: str) -> set[str]:
    """Regions that a text speaks of; "whole body" is a region of its own, and words that are not known are left out."""
    words = re.findall(r"[a-z]+", text.lower())
    words = " ".join(_JOINED.get(word, word) for word in words).split()
    if {"whole", "body"} <= set(words) or "wholebody" in words:
        return {"whole body"}
    return {_REGION_OF[word] for word in words if word in _REGION_OF}


def guess_modality(values: np.ndarray) -> str:
    """What a scan's grey values look like: "CT", "MR", or "" when they do not tell.

    A help where no DICOM header says it, never a proof: "CT" needs Hounsfield units, with air at -1000 or most voxels
    between fat and soft tissue; "MR" is what has no negative values, and no peak where CT scanners store soft tissue
    without an offset (1000 above air); PET looks the same. Few different values (label maps), rescaled and other ranges
    give "".

    Parameters
    ----------
    values : np.ndarray
        The scan, of any shape; some 200,000 voxels are looked at. Values that are not finite are left out.
    """
    flat = np.asarray(values).reshape(-1)
    sample = flat[:: max(1, flat.size // SAMPLE)].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0 or len(np.unique(sample)) < FEWEST_VALUES:
        return ""
    low, high = (float(v) for v in np.percentile(sample, (0.5, 99.5)))
    if low < 0:
        return "CT" if _is_hounsfield(sample, low, high) else ""
    return "MR" if high > SMALLEST_MR and not _lacks_offset(sample) else ""


def made_for(modality: str) -> set[str]:
    """The kinds of scan, "CT" and "MR", that a model's modality names; empty where it names neither."""
    return {_MODALITIES[word] for word in re.findall(r"[a-z]+", modality.lower()) if word in _MODALITIES}


def other_kind(modality: str, values: np.ndarray, told: str = "") -> str:
    """The kind of a scan that a model is not made for: "CT", "MR", or what its header says; "" where nothing speaks against it.

    Parameters
    ----------
    modality : str
        Of the model.
    values : np.ndarray
        The scan's grey values, see `guess_modality`.
    told : str
        What the scan's header says, where there is one: it counts more than grey values.
    """
    kinds = made_for(modality)
    kind = (told or guess_modality(values)) if kinds else ""
    return kind if kind not in kinds else ""


def _lacks_offset(sample: np.ndarray) -> bool:
    """Whether it looks like CT as scanners store it: air at 0, soft tissue a narrow peak 1000 above, little between."""
    air, between, soft = (float(np.mean((sample >= a) & (sample < b))) for a, b in ((0, 150), (300, 800), (900, 1250)))
    return air > 0.1 and soft > 0.2 and between < 0.1


def _is_hounsfield(sample: np.ndarray, low: float, high: float) -> bool:
    if low < LOWEST_CT or not 100 < high < HIGHEST_CT:
        return False
    air, gap, soft = (float(np.mean((sample >= a) & (sample <= b))) for a, b in (AIR, GAP, SOFT))
    peaked = soft > max(0.05, 2 * gap)  # phase images are spread evenly around 0
    return peaked and (air > 0.05 or (soft > 0.6 and low < -50))


def _judge(entry: ModelEntry, wanted: str, regions: set[str]) -> tuple[tuple[float, ...], str]:
    """Score, and the reason in words."""
    offered = made_for(entry.modality)
    modality = 0.5 if not wanted or not offered else float(wanted in offered)
    real = 0.0 if DEMONSTRATION.search(f"{entry.title} {entry.description}") else 1.0
    part = _part_score(regions_of(entry.body_part), regions)
    score = (modality, real, part, float(entry.weights_path is not None))
    return score, _reason(entry, wanted, regions, modality, part) + ("" if real else "; for demonstration only")


def _part_score(offered: set[str], regions: set[str]) -> float:
    """From 0, another part, over 0.5, not known, to 1, all of the scan's parts and no more."""
    if not offered or not regions:
        return 0.5
    if "whole body" in offered:
        return 1.0 if "whole body" in regions else 0.8
    if "whole body" in regions:
        return 0.3
    return 0.8 * len(offered & regions) / len(regions) + 0.2 * len(offered & regions) / len(offered)


def _reason(entry: ModelEntry, wanted: str, regions: set[str], modality: float, part: float) -> str:
    kind, body = entry.modality or "any scan", entry.body_part
    if modality == 0:
        return f"made for {kind}: this scan looks like {wanted}"
    scope = kind if not body else f"{kind}, {body}" if body.startswith("whole") else f"{kind} of the {body}"
    if part < 0.3 and regions:
        return f"made for {scope}: this scan shows the {' and '.join(sorted(regions))}"
    return f"for {scope}"
