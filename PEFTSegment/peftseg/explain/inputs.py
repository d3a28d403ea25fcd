"""What the jobs of this package look at: the network of a job, scans, and what is known of structures in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftseg.events import Reporter
from peftseg.explain.abilities import Mask
from peftseg.explain.subject import Subject, adapter_subject, model_subject
from peftseg.models import Structure
from peftseg.preprocess import Prepared, prepare_mask
from peftseg.study import LoadedScan, SupportItem, load_support_item
from peftseg.volume import read_volume


def load_subject(adapter: str | None, model: str | None) -> Subject:
    """The network of a job."""
    return adapter_subject(adapter)[0] if adapter is not None else model_subject(str(model))


def read_scan(
    image: str, labels: str | None, structures: Sequence[Structure], replace: float | None, reporter: Reporter
) -> LoadedScan:
    """A scan, with labels or without."""
    if labels:
        scan = load_support_item(SupportItem(image, labels), structures, replace)
    else:
        volume = read_volume(Path(image), replace)
        scan = LoadedScan(volume, {}, {}, notes=tuple(volume.notes))
    for note in scan.notes:
        reporter.warning(note)
    return scan


def masks_of(scan: LoadedScan, structures: Sequence[Structure], prepared: Prepared) -> dict[str, Mask]:
    """What is known of structures on the model grid."""
    masks = {}
    for name in (s.name for s in structures):
        known = scan.known.get(name, False)
        if known is False:
            masks[name] = Mask()
            continue
        where = known if isinstance(known, bool) else prepare_mask(known, prepared)
        masks[name] = Mask(prepare_mask(scan.masks[name], prepared), where)
    return masks
