"""The unlabelled choice of step 3: which scans, under which name, and what the check says before it is kept."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence

import qt
import slicer
from slicer.i18n import tr as _

from peftseg.adapter_file import NAME_LENGTH

from .. import checks, dialogs, painted, scans
from ..context import Context
from ..runner import Task
from ..support import Row
from . import adapt_choices as choices
from . import site_words as words
from .adapt_progress import breakable, listed, short
from .adapt_result import say
from .site_jobs import SiteJobs
from .site_ways import WayChoice
from .support_structures import new_item

SHOWN_ROWS, FEWEST_ROWS = 6, 2
MOST_WARNINGS, LENGTH = 3, 40
Volume = slicer.vtkMRMLScalarVolumeNode


def unlabelled_scans(context: Context) -> list[Volume]:
    """The scans of the scene that have no labels in the table of step 2."""
    rows = [row for row in context.support.rows() if row.scan is not None and _has_labels(row)]
    labelled = {row.scan.GetID() for row in rows}
    return [volume for volume in scans.usable_scans() if volume.GetID() not in labelled]


def _has_labels(row: Row) -> bool:
    if row.labels is None:
        return False
    return any(painted.is_painted(row.labels, s) for s in row.labels.GetSegmentation().GetSegmentIDs())


class SiteChoice:
    """The part of the form in which the scans are chosen.

    Parameters
    ----------
    context : Context
    panel : Panel
        Whose form holds the widgets, and which says whether it is showing.
    library : choices.LibraryCache
    jobs : SiteJobs

    Attributes
    ----------
    ways : WayChoice
        What is under "Advanced".
    """

    def __init__(self, context: Context, panel, library: choices.LibraryCache, jobs: SiteJobs) -> None:
        self._context, self._panel, self._library, self._jobs = context, panel, library, jobs
        self.ui, self.ways = panel.ui, WayChoice(context, panel)
        self._shown: list[tuple[str, str]] = []  # node id and name of each line of the list
        self.ui.siteScans.itemChanged.connect(self._ticked)
        self.ui.siteAllButton.clicked.connect(self.take_all)
        self.ui.siteNoneButton.clicked.connect(self.take_none)

    @property
    def name(self) -> str:
        """Name of the adapter to make: the user's, or one of model and date."""
        return self._context.state.siteName.strip() or self.proposed()

    def proposed(self) -> str:
        """A name of the model and the date."""
        entry = self._context.model()
        if entry is None:
            return ""
        end = _(", new scanner, {day}").format(day=datetime.date.today().isoformat())
        return entry.title[: NAME_LENGTH - len(end)].strip() + end

    # what is shown

    def look(self) -> str:
        """Show the scans and what is to be said of them; why it cannot start, or ""."""
        entry = self._context.model()
        volumes = unlabelled_scans(self._context)
        left_out = self._left_out()
        chosen = [v for v in volumes if v.GetAttribute(scans.TOKEN) not in left_out]
        say(self.ui.siteAbout, words.about(entry))
        say(self.ui.siteCaption, words.caption(len(chosen), len(volumes)))
        self._list(volumes, left_out)
        for button in (self.ui.siteAllButton, self.ui.siteNoneButton):
            button.visible = len(volumes) > 1
        say(self.ui.siteHint, "\n".join(self._warnings(chosen)))
        no_name, hint = "", ""
        if entry is not None:
            no_name, hint = choices.name_state(self.name, self._library.rows(), entry.id, entry.structures)
        say(self.ui.nameHint, no_name or hint)
        return self._reason_against(chosen, len(volumes), no_name)

    def _list(self, volumes: Sequence[Volume], left_out: set[str]) -> None:
        box = self.ui.siteScans
        box.visible = bool(volumes)
        shown = [(volume.GetID(), volume.GetName()) for volume in volumes]
        if shown != self._shown:
            box.clear()
            for _identity, name in shown:
                new_item(box, name).setToolTip(name)
            self._shown = shown
            if shown:
                rows = min(SHOWN_ROWS, max(FEWEST_ROWS, len(shown)))
                box.setFixedHeight(rows * box.sizeHintForRow(0) + 2 * box.frameWidth + 2)
        for number, volume in enumerate(volumes):
            ticked = volume.GetAttribute(scans.TOKEN) not in left_out
            box.item(number).setCheckState(qt.Qt.Checked if ticked else qt.Qt.Unchecked)

    def _warnings(self, chosen: Sequence[Volume]) -> list[str]:
        """What can be said before: the rest is found by the job."""
        lines = [words.too_few(len(chosen))]
        entry = self._context.model()
        if entry is not None:
            found = [(volume, text) for volume in chosen for text in checks.of_another_kind(volume, entry)]
            for volume, text in found[:MOST_WARNINGS]:
                lines.append(_("{scan}: {warning}.").format(scan=short(volume.GetName(), LENGTH), warning=text))
            if len(found) > MOST_WARNINGS:
                lines.append(_("and {n} more scans").format(n=len(found) - MOST_WARNINGS))
        return [line for line in lines if line]

    def _reason_against(self, chosen: Sequence[Volume], total: int, no_name: str) -> str:
        context = self._context
        none = ""
        if not chosen:
            none = _("Tick at least one scan") if total else _("Load scans of the new scanner first")
        return (
            context.engine_ready()
            or words.kind_reason(context.model())
            or choices.model_reason(context)
            or none
            or no_name
            or self.ways.reason_against()
        )

    # what the user does

    def _left_out(self) -> set[str]:
        return set(json.loads(self._context.state.siteLeftOut))

    def _leave_out(self, tokens: set[str]) -> None:
        self._context.state.siteLeftOut = json.dumps(sorted(tokens))

    def _ticked(self, _item) -> None:
        if self._panel.showing:
            return
        box, left_out = self.ui.siteScans, self._left_out()
        for number, (identity, _name) in enumerate(self._shown):
            volume = slicer.mrmlScene.GetNodeByID(identity)
            if volume is None:
                continue
            if box.item(number).checkState() == qt.Qt.Checked:
                left_out.discard(volume.GetAttribute(scans.TOKEN))
            else:
                left_out.add(scans.token(volume))
        self._leave_out(left_out)

    def take_all(self) -> None:
        """Tick all scans."""
        self._leave_out(set())

    def take_none(self) -> None:
        """Tick no scan."""
        self._leave_out({scans.token(volume) for volume in unlabelled_scans(self._context)})

    def adapt(self) -> None:
        """Start the adaptation."""
        left_out = self._left_out()
        volumes = unlabelled_scans(self._context)
        chosen = [scans.require_usable(v) for v in volumes if v.GetAttribute(scans.TOKEN) not in left_out]
        self._jobs.start(chosen, self.name, self.ways.chosen())


class VerdictView:
    """The part of the form that shows what the check says of the newest finished adaptation.

    Parameters
    ----------
    context : Context
    panel : Panel
    jobs : SiteJobs
    """

    def __init__(self, context: Context, panel, jobs: SiteJobs) -> None:
        self._context, self._panel, self._jobs = context, panel, jobs
        self.ui = panel.ui
        self.ui.keepButton.clicked.connect(self.keep)
        self.ui.verdictApplyButton.clicked.connect(self.apply)
        self.ui.verdictCloseButton.clicked.connect(self.close)

    def look(self, done: Task | None) -> None:
        """Show a finished adaptation, or nothing."""
        ui = self.ui
        ui.verdictFrame.visible = done is not None
        if done is None:
            return
        ending = done.ending
        stored, refused = ending.get("ref") is not None, words.is_refused(ending)
        say(ui.verdictLabel, words.headline(ending))
        say(ui.verdictReasons, words.reasons(ending))
        say(ui.verdictWarnings, listed(done.warnings, done.note["scans"]))
        ui.keepButton.visible = not stored
        ui.keepButton.text = _("Keep it all the same") if refused else _("Keep it")
        ui.keepButton.toolTip = _("Puts the adapter into the library, where step 4 finds it")
        ui.verdictApplyButton.visible = stored
        ui.verdictCloseButton.text = _("Close") if stored else _("Discard it")
        ui.verdictCloseButton.toolTip = "" if stored else _("Deletes this adapter; the model stays as it is")

    def keep(self) -> None:
        """Put the adapter into the library."""
        done = self._jobs.finished()
        if done is not None:
            with self._panel.telling(_("The adapter could not be put into the library.")):
                self._jobs.keep(done)

    def apply(self) -> None:
        """Go to step 4 with the new adapter."""
        done = self._jobs.finished()
        if done is not None:
            self._context.state.adapter = done.ending["ref"]
            self._context.unfold(4)

    def close(self) -> None:
        """Dismiss it; an accepted adapter that was not kept is asked for."""
        done = self._jobs.finished()
        if done is None:
            return
        if done.ending.get("ref") is None and not words.is_refused(done.ending):
            text = _("The adapter '{name}' is not in the library. Delete it?").format(
                name=breakable(done.ending["name"])
            )
            answer = dialogs.ask(text, (_("Keep it"), _("Delete it"), _("Cancel")))
            if answer == 0:
                self.keep()
            if answer != 1:
                return
        with self._panel.telling(_("The result could not be closed.")):
            self._jobs.dismiss(done)
