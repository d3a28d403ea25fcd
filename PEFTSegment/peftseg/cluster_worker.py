"""What runs on the workers of a cluster: one load of the model, and one study after the other. Needs `distributed`."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from distributed import WorkerPlugin, get_worker

from peftseg.apply_steps import Loaded, load
from peftseg.batch_plan import BatchStudy
from peftseg.batch_results import process
from peftseg.config import ApplyJob
from peftseg.device import choose_device
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.manifest import Line
from peftseg.version import __version__

PLUGIN = "peftseg-batch"


class Model(WorkerPlugin):
    """A worker's plugin: the job's model, loaded when the first study comes and kept.

    Parameters
    ----------
    job : ApplyJob
    identity : tuple of str
        Name and hash of what the client uses.
    threads : int
        Of the processor, for each worker; 0: as many as torch takes.
    """

    name = PLUGIN

    def __init__(self, job: ApplyJob, identity: tuple[str, str], threads: int) -> None:
        self.job = job
        self.identity = identity
        self.threads = threads
        self.version = __version__

    def setup(self, worker: Any) -> None:
        """Called on each worker, and on those that come later."""
        self.worker = worker
        self._lock = threading.Lock()
        self._loaded: tuple[Loaded, torch.device] | None = None

    def teardown(self, worker: Any) -> None:
        """Forget the model."""
        self._loaded = None

    def loaded(self) -> tuple[Loaded, torch.device]:
        """The model and the device; BadInput where this machine has another version or another model."""
        with self._lock:
            if self._loaded is None:
                if self.version != __version__:
                    raise BadInput(
                        f"A worker has peftseg {__version__}, the client {self.version}.", "Install the same version."
                    )
                if self.threads:
                    torch.set_num_threads(self.threads)
                loaded = load(self.job)
                if loaded.identity != self.identity:
                    raise BadInput(
                        f"A worker has {loaded.identity[0]} ({loaded.identity[1][:12]}), the client {self.identity[0]} "
                        f"({self.identity[1][:12]}).",
                        "Copy the same adapter and model to every machine.",
                    )
                self._loaded = loaded, choose_device(self.job.device)
            return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        """What travels to a worker."""
        return {name: getattr(self, name) for name in ("job", "identity", "threads", "version")}


@dataclass(frozen=True)
class Answer:
    """What a worker made of a study.

    Attributes
    ----------
    line, folder : dict, str or None
        As `batch_results.process`.
    said : tuple of (str, str)
        Kind and text of what is to be told.
    """

    line: Line
    folder: str | None
    said: tuple[tuple[str, str], ...]


def segment_here(study: BatchStudy) -> Answer:
    """Segment a study on the worker that runs this."""
    plugin: Model = get_worker().plugins[PLUGIN]
    loaded, device = plugin.loaded()
    said: list[tuple[str, str]] = []

    def keep(kind: str, fields: dict[str, Any]) -> None:
        if kind in ("warning", "log"):
            said.append((kind, fields["message"]))

    line, folder = process(study, loaded, plugin.job, device, Reporter(keep))
    return Answer(line, None if folder is None else str(folder), tuple(said))
