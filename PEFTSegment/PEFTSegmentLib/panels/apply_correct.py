"""From a result of step 4 to labels that a person corrects in step 2."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from .. import results, scans, structures, support
from ..context import Context
from ..dialogs import ask


def correct(context: Context, node) -> slicer.vtkMRMLSegmentationNode | None:
    """Put a copy of a result into the support scans as the row to be edited; the copy, None where the user did not want it.

    The copy remembers which adapter drew it, so that step 3 can go on from that one. PeftsegError: the scan is gone, or
    the result has none of the structures to learn.
    """
    scan = scans.require_usable(results.scan_of(node))
    wanted = results.wanted_of(node, context.state)
    there = context.support.row_of(scan)
    if there is not None and there.labels is not None and not _replaces(there):
        return None
    if not structures.read(context.state):
        structures.write(context.state, wanted)
    labels = results.as_labels(node, scan, wanted)
    labels.SetAttribute(results.CORRECTED, results.get(node, "adapter_hash") or None)
    row = context.support.add(scan, labels)
    context.support.set_labels(row.key, labels)
    node.GetDisplayNode().SetVisibility(False)
    context.state.currentRow = row.key
    return labels


def _replaces(row: support.Row) -> bool:
    question = _("{scan} is a support scan already, with the segmentation {labels}.").format(
        scan=row.scan.GetName(), labels=row.labels.GetName()
    )
    answers = (_("Use the copy of this result"), _("Keep the other"))
    return ask(question, answers, _("The other segmentation stays in the scene.")) == 0
