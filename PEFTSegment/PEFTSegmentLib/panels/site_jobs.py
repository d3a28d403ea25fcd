"""Adaptations to unlabelled scans as background jobs. No widgets.

Nothing comes into the library before the user has read what the check says: a finished adaptation waits in its folder, also
over a restart of Slicer, until it is kept or dismissed. That of a refused adapter is there too, so that it can be
kept all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from peftseg import library
from peftseg.adapter_file import renamed
from peftseg.config import SiteAdaptJob
from peftseg.events import Event
from peftseg.paths import atomic_write

from .. import work
from ..context import Context
from ..plots import Curves
from ..runner import Task
from .adapt_jobs import take_events
from .site_ways import Way

SITE = "adapt to unlabelled scans"
FILE = "adapter.safetensors"


class SiteJobs:
    """Submits these adaptations and takes what they tell.

    Parameters
    ----------
    context : Context
    curves : dict
        Takes the curves, by the name of a task's folder.
    """

    def __init__(self, context: Context, curves: dict[str, Curves]) -> None:
        self._context, self._curves = context, curves
        context.runner.on(SITE, self._hear)

    # what there is

    def finished(self) -> Task | None:
        """The newest one that nobody has dismissed."""
        return next((t for t in reversed(self._context.runner.of(SITE)) if t.state == "finished"), None)

    # what the user asks for

    def start(self, volumes: Sequence[slicer.vtkMRMLScalarVolumeNode], name: str, way: Way) -> Task:
        """Adapt the chosen model to scans; PeftsegError says what is missing."""
        context, state = self._context, self._context.state
        entry = context.require_model()
        seed, device, minutes = state.seed, state.device, state.minutes or None
        note = {"purpose": SITE, "title": _("Adapt to a scanner: {name}").format(name=name), "adapter": name}

        def build(folder: Path, files: tuple[str, ...]) -> SiteAdaptJob:
            return SiteAdaptJob(
                model=entry.id,
                unlabelled=files,
                out=str(folder / "result" / FILE),
                name=name,
                preset=way.preset,
                options=way.options,
                epochs=way.epochs,
                seed=seed,
                device=device,
                budget_minutes=minutes,
                replace_nonfinite=0.0,
                keep_refused=True,  # in the job's folder, until the user has decided
            )

        return work.submit_scans(context, note, volumes, build)

    def keep(self, task: Task) -> None:
        """Put a finished adaptation into the library; PeftsegError where that does not work."""
        path = _stored(Path(task.ending["adapter"]))
        facts = library.show_adapter(path)
        task.ending.update(ref=facts["ref"], version=facts["version"], path=str(path))
        self._context.refresh()

    def dismiss(self, task: Task) -> None:
        """Take an ended adaptation off the list and delete its folder."""
        self._curves.pop(task.folder.name, None)
        self._context.runner.forget(task)

    # what they tell

    def _hear(self, task: Task, events: list[Event]) -> None:
        if take_events(task, events, self._curves):
            self.dismiss(task)


def _stored(file: Path) -> Path:
    """The library's copy of a file; another adapter may have taken its version since it was made."""
    made = library.show_adapter(file)
    others = [row for row in library.list_adapters(check=False) if row["ref"] == made["ref"]]
    if all(row["hash"] == made["hash"] for row in others):
        return library.store(file)

    def write(version: int) -> Path:
        content, _digest = renamed(file, made["name"], version)
        target = file.with_name(f"version_{version}.safetensors")
        with atomic_write(target) as temporary:
            temporary.write_bytes(content)
        return target

    return library.store_next(made["name"], write)
