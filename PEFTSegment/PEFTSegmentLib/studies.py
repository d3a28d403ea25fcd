"""The studies of one run over many, as its manifest and its events tell them. Nothing here needs Qt or the scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slicer.i18n import tr as _

from peftseg.manifest import FILE, Line, parsed

WAITING, DONE, FAILED = "waiting", "done", "failed"
LOOK = "look"
ORDER = (LOOK, FAILED, DONE, WAITING)  # worst first


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes
    ----------
    key, name : str
        The engine's opaque key; what the user knows it by.
    state : str
        "waiting", "done", "look" (done, and something stands out) or "failed".
    reasons : tuple of str
        What stands out, or why it failed.
    doubt : float or None
        0 (as expected) to 1.
    line : dict
        Its line of the manifest; {} while it waits.
    """

    key: str
    name: str
    state: str
    reasons: tuple[str, ...] = ()
    doubt: float | None = None
    line: Line = field(default_factory=dict)

    @property
    def has_result(self) -> bool:
        """Whether there is a segmentation to load."""
        return self.state in (DONE, LOOK)

    def result(self, out: Path) -> Path:
        """The file of its segmentation."""
        return out / self.line["outputs"][0]["file"]


class Reader:
    """Follows a manifest that another process adds lines to; each byte is read once."""

    def __init__(self, out: Path) -> None:
        self._path = Path(out) / FILE
        self._offset = 0
        self.lines: dict[str, Line] = {}  # study -> its last line

    def update(self) -> bool:
        """Read what is new; whether there was something. A manifest that cannot be read now is read later."""
        try:
            if self._path.stat().st_size < self._offset:  # another one has taken its place
                self._offset, self.lines = 0, {}
            with open(self._path, "rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for text in whole.splitlines():
            line = parsed(text)  # a damaged line counts for nothing, as for the engine
            if line is not None and line["state"] != "started":
                self.lines[line["study"]] = line
        return bool(whole)


def listed(
    lines: Mapping[str, Line], planned: Sequence[tuple[str, str]], running: bool, names: Mapping[str, str]
) -> list[Study]:
    """The studies of this run, the worst first.

    Parameters
    ----------
    lines : mapping
        Study -> last line of the manifest.
    planned : sequence of (key, name)
        What this run is about; empty: all that the manifest has.
    running : bool
        Whether it goes on: what has no line yet waits then; after the end it is left out.
    names : mapping
        Study -> a better name than the engine's.
    """
    wanted = dict(planned) if planned else {key: line.get("name", key) for key, line in lines.items()}
    found = []
    for key, name in wanted.items():
        shown = names.get(key) or (lines[key].get("name") if key in lines else None) or name
        if key in lines:
            found.append(_of_line(key, shown, lines[key]))
        elif running:
            found.append(Study(key, shown, WAITING))
    return sorted(found, key=lambda study: (ORDER.index(study.state), -(study.doubt or 0.0)))


def _of_line(key: str, name: str, line: Line) -> Study:
    if line["state"] != "done":
        said = " ".join(part for part in (line.get("message", ""), line.get("remedy", "")) if part)
        return Study(key, name, FAILED, (said,), None, line)
    flags = tuple(f"{structure}: {sentence}" for structure, told in line.get("flags", {}).items() for sentence in told)
    return Study(key, name, LOOK if flags else DONE, flags, line.get("study_doubt"), line)


def state_text(study: Study) -> str:
    """What the table says of a study."""
    if study.state == WAITING:
        return _("waiting")
    if study.state == FAILED:
        return _("failed: {reason}").format(reason="; ".join(study.reasons))
    if study.state == LOOK:
        return _("please look: {reasons}").format(reasons="; ".join(study.reasons))
    return _("done")


def doubt_text(study: Study) -> str:
    """Doubt in percent, "" where it is not known."""
    return "" if study.doubt is None else _("{percent} %").format(percent=round(100 * study.doubt))


def counts(studies: Sequence[Study], total: int) -> str:
    """ "12 of 40 done, 3 to look at, 1 failed"."""
    done = sum(study.has_result for study in studies)
    look = sum(study.state == LOOK for study in studies)
    failed = sum(study.state == FAILED for study in studies)
    parts = [_("{done} of {total} done").format(done=done, total=max(total, len(studies)))]
    if look:
        parts.append(_("{count} to look at").format(count=look))
    if failed:
        parts.append(_("{count} failed").format(count=failed))
    return ", ".join(parts)
