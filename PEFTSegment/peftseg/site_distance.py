"""How far studies are from the scans that an adapter was made from, for batches and drift charts."""

from __future__ import annotations

from pathlib import Path

import torch

from peftseg.adapter_file import read_header
from peftseg.events import Reporter
from peftseg.library import find_adapter
from peftseg.preprocess import Prepared
from peftseg.segmenter import base_for, find_base
from peftseg.site_layers import statistics_of
from peftseg.site_statistics import distance_to, read_site
from peftseg.volume import Volume


class SiteDistance:
    """Measures studies against one adapter's support set; load it once for many studies.

    Parameters
    ----------
    ref : str or Path
        An adapter file, or a reference in the library. Of an adapter that does not say what its scans are like (of earlier
        versions) every distance is None.

    Raises
    ------
    BadInput
        Unknown adapter, or its base is not here.
    """

    def __init__(self, ref: str | Path, device: torch.device) -> None:
        self._recipe, _ = read_header(find_adapter(ref))
        site = self._recipe.record.get("site")
        self._site = None if site is None else read_site(site)
        self._device = device
        if self._site is not None:
            self._entry = find_base(self._recipe)
            self._network, self._anatomy = base_for(self._recipe, self._entry)

    def of(self, volume: Volume, reporter: Reporter | None = None, prepared: Prepared | None = None) -> float | None:
        """The distance of a study: 1 is as far as the support scans are from each other; see `site_statistics`.

        `prepared` is the study with the adapter's preprocessing, where it was done before.
        """
        if self._site is None:
            return None
        statistics = statistics_of(
            volume,
            self._recipe.preprocessing,
            self._network,
            self._anatomy,
            self._entry.window,
            self._device,
            reporter or Reporter.silent(),
            prepared,
        )
        distance = distance_to(self._site, statistics)
        return None if distance is None else round(distance.total, 3)
