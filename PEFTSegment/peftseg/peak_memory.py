"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import threading
from types import TracebackType

import torch

MIB = 1 << 20
SAMPLE_S = 0.02
GPU, PROCESS = "GPU, allocated by torch", "process, resident set"


class PeakMemory:
    """Context that measures: on a GPU what torch allocates, elsewhere the process's resident set, sampled.

    Parameters
    ----------
    device : torch.device
        Where the work is done.

    Attributes
    ----------
    mib : float
        Peak in MiB, after the context.
    measures : str
        What was measured, in words: `GPU` or `PROCESS`; they do not compare with each other.
    """

    def __init__(self, device: torch.device) -> None:
        self.mib = 0.0
        self.measures = GPU if device.type == "cuda" else PROCESS
        self._device = device
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self.measures == GPU:
            torch.cuda.init()  # before it there is nothing to reset, which is an error
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.measures == GPU:
            self.mib = torch.cuda.max_memory_allocated(self._device) / MIB
            return
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        import psutil

        process = psutil.Process()
        last = False
        while not last:
            last = self._done.wait(SAMPLE_S)
            self.mib = max(self.mib, process.memory_info().rss / MIB)
