"""How far the windows of a study are, for whoever started the job."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from peftseg.events import Reporter


class Progress:
    """Call it before each window: it asks whether the user cancelled, and tells how far things are.

    Parameters
    ----------
    reporter : Reporter or None
        None says nothing.
    total : int
        Windows of all passes.
    """

    def __init__(self, reporter: Reporter | None, total: int) -> None:
        self.reporter, self._total, self._done, self._begun = reporter, total, 0, time.monotonic()

    def __call__(self) -> None:
        """One more window begins."""
        if self.reporter is None:
            return
        self.reporter.check()
        left = (time.monotonic() - self._begun) / self._done * (self._total - self._done) if self._done else None
        self.reporter.progress("windows", min(self._done, self._total), self._total, eta_s=left)
        self._done += 1

    def counted(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """The same function, with each call of it counted."""

        def run(windows: torch.Tensor) -> torch.Tensor:
            self()
            return forward(windows)

        return run
