"""Step 4's question "Which adapter fits?": the stored adapters and their models, ranked for the chosen scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from peftseg.config import SuggestJob
from peftseg.events import Event
from peftseg.verdicts import REFUSED, WARNING

from .. import dialogs, scans, work
from ..panel import enable
from ..runner import Task
from .adapt_progress import short
from .adapt_result import say
from .apply_adapters import title

SUGGEST = "suggest"
SHOWN, LENGTH = 4, 60  # lines of the ranking, characters of a name
Row = dict[str, Any]


class Suggesting:
    """The button, and the frame with the answer; nothing is chosen before the user says so.

    Parameters
    ----------
    panel : ApplyPanel
        Whose form holds the widgets, and which knows the adapters and the chosen scan.
    """

    def __init__(self, panel) -> None:
        self._panel, self._context, self.ui = panel, panel.context, panel.ui
        self.answer: dict[str, Any] | None = None  # the finished event
        self._token = ""  # the scan that it is about
        self._message = ""  # what is said where there is no answer
        self._context.runner.on(SUGGEST, self._hear)
        self.ui.suggestButton.clicked.connect(self.ask)
        self.ui.suggestUseButton.clicked.connect(self.use)
        self.ui.suggestCloseButton.clicked.connect(self.close)

    def running(self) -> Task | None:
        """The comparison that has not ended."""
        return next((task for task in self._context.runner.of(SUGGEST) if task.active), None)

    # what is shown

    def look(self) -> None:
        """Show whether it can be asked, and the answer while its scan is the chosen one."""
        ui, busy = self.ui, self.running() is not None
        tip = _("Compares the scan with those that each adapter was made from; nothing is changed")
        enable(ui.suggestButton, self._reason_against(busy), tip)
        ui.suggestButton.text = _("Comparing the scan...") if busy else _("Which adapter fits?")
        shown = self.answer if self._is_about_chosen() else None
        ui.suggestFrame.visible = shown is not None or bool(self._message)
        ui.suggestUseButton.visible = False
        if shown is None:
            say(ui.suggestLabel, self._message)
            say(ui.suggestRanking, "")
            return
        say(ui.suggestLabel, self._headline(shown))
        say(ui.suggestRanking, self._ranking(shown))
        ui.suggestRanking.toolTip = "\n".join([shown["basis"], *_not_ranked(shown)])
        self._look_at_use(shown)

    def _is_about_chosen(self) -> bool:
        scan = self._panel.scan()
        one = not self._panel.state.allScans and not self._panel.many.kind
        return scan is not None and one and scan.GetAttribute(scans.TOKEN) == self._token

    def _look_at_use(self, answer: dict[str, Any]) -> None:
        row = _suggested(answer)
        if row is None or row["kind"] != "adapter":
            return
        stored = self._panel.adapters.row(row["ref"])
        reason = _("It is no longer in the library") if stored is None else self._panel.adapters.reason_against(stored)
        if not reason and self._panel.state.adapter == row["ref"]:
            reason = _("It is chosen already")
        self.ui.suggestUseButton.visible = True
        enable(self.ui.suggestUseButton, reason, _("Chooses it above; Apply then segments with it"))

    def _reason_against(self, busy: bool) -> str:
        panel = self._panel
        if busy:
            return _("The scan is being compared")
        if not panel.adapters.rows():
            return _("There is no adapter to choose from yet: make one in step 3")
        if panel.state.allScans or panel.many.kind:
            return _("It is asked for one scan: choose 'this scan' first")
        scan = panel.scan()
        if scan is None:
            return _("Choose a scan first")
        against = scans.reason_against(scan)
        if against:
            return _("{name} {reason}").format(name=scan.GetName(), reason=against)
        return self._context.engine_ready()

    def _headline(self, answer: dict[str, Any]) -> str:
        row = _suggested(answer)
        if row is None:
            return answer["advice"]
        if row["kind"] == "adapter":
            text = _("Suggested for this scan: {adapter}").format(adapter=self._name(row))
        else:
            text = _(
                "Suggested for this scan: no adapter, but {model} as it is (step 1, 'Try on the scan in view')."
            ).format(model=self._name(row))
        lines = [text]
        if row.get("verdict") == WARNING:
            lines.append(_("Its check had accepted it with a warning: look at its results with care."))
        for nearer in answer["ranking"][: answer["suggested"]]:
            if nearer.get("verdict") == REFUSED:
                words = _("{adapter} fits better, but its check had refused it.")
                lines.append(words.format(adapter=self._name(nearer)))
        return "\n".join(lines)

    def _ranking(self, answer: dict[str, Any]) -> str:
        """A numbered line for each of the first ones, with the engine's sentence."""
        rows = answer["ranking"]
        lines = [f"{n}. {self._name(row)}: {row['reason']}" for n, row in enumerate(rows[:SHOWN], start=1)]
        if len(rows) > SHOWN:
            lines.append(_("and {n} more that fit less").format(n=len(rows) - SHOWN))
        left = len(answer["not_ranked"])
        if left == 1:
            lines.append(_("1 could not be compared (see the tooltip)."))
        elif left:
            lines.append(_("{n} could not be compared (see the tooltip).").format(n=left))
        return "\n".join(lines)

    def _name(self, row: Row) -> str:
        if row["kind"] == "base":
            return _("{model} without adapter").format(model=short(row["name"], LENGTH))
        stored = self._panel.adapters.row(row["ref"])
        return short(title(stored) if stored is not None else row["ref"], LENGTH)

    # what the user does

    def ask(self) -> None:
        """Start the comparison."""
        with self._panel.telling(_("The scan could not be compared.")):
            self._forget()
            chosen = scans.require_usable(self._panel.scan())
            scan = scans.held_still(chosen)
            if scan is not chosen:
                self._panel.state.scan = scan  # a frame of a sequence: the answer is about this one
            note = {"purpose": SUGGEST, "title": _("Comparing {scan} with the adapters").format(scan=scan.GetName())}

            def build(_folder: Path, files: tuple[str, ...]) -> SuggestJob:
                return SuggestJob(input=files[0], replace_nonfinite=0.0)

            work.submit_scans(self._context, note, [scan], build)
            self._context.work_changed()

    def use(self) -> None:
        """Choose the suggested adapter."""
        row = _suggested(self.answer) if self.answer is not None else None
        if row is not None and row["kind"] == "adapter":
            self._panel.state.adapter = row["ref"]
            self._context.refresh()

    def close(self) -> None:
        """Put the answer away."""
        self._forget()
        self._context.refresh()

    def _forget(self) -> None:
        self.answer, self._token, self._message = None, "", ""

    def _hear(self, task: Task, events: list[Event]) -> None:
        earlier = task.note.get("earlier")
        if task.active:
            if earlier and not task.stopping:
                self._context.runner.cancel(task)  # nobody waits for it any more
            return
        if task.state == "finished" and not earlier:
            if scans.scan_of(task.note["scans"][0]) is None:
                self._message = _("The scan was compared with the adapters, but it is no longer loaded.")
            else:
                self.answer, self._token, self._message = task.ending, task.note["scans"][0], ""
        elif task.state == "failed" and not earlier:
            dialogs.show_later(dialogs.problem_of_event(task.ending, _("The scan could not be compared.")))
        self._context.runner.forget(task)


def _suggested(answer: dict[str, Any]) -> Row | None:
    place = answer["suggested"]
    return None if place is None else answer["ranking"][place]


def _not_ranked(answer: dict[str, Any]) -> list[str]:
    return [f"{row['ref']}: {row['reason']}" for row in answer["not_ranked"]]
