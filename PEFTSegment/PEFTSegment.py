"""PEFTSegment: adapt a segmentation model to your structure and your scanner with a few labelled scans.

The entry that Slicer loads: metadata, widget, logic and test. What they do is in PEFTSegmentLib and `peftseg`.
"""

from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

RESOURCES = Path(__file__).parent / "Resources"
HOMEPAGE = "https://github.com/PEFTSegment/SlicerPEFTSegment"


class PEFTSegment(ScriptedLoadableModule):
    """Metadata of the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "PEFTSegment"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "SegmentEditor", "SubjectHierarchy", "Terminologies", "Plots"]
        self.parent.contributors = ["PEFTSegment contributors"]
        self.parent.helpText = _(
            "<p>Choose a segmentation model, label about five scans, press Adapt: the result is a small site adapter that"
            " segments your structure in new studies.</p><p><b>For research use only. Not a medical device; not for"
            " diagnosis or treatment.</b> Everything runs on this computer; no scan leaves it.</p><p>See the"
            ' <a href="{homepage}">tutorial and documentation</a>.</p>'
        ).format(homepage=HOMEPAGE)
        self.parent.acknowledgementText = _(
            "Implements ARENA (adaptive-rank LoRA), ConvLoRA with AdaBN, and parameter-efficient fine-tuning of 3D"
            " convolutional foundation models, on PyTorch and MONAI. Cite the models and methods that you use; their"
            " details name the papers."
        )
        slicer.app.connect("startupCompleted()", register_sample_data)


def register_sample_data():
    """Add the module's scans to the Sample Data module."""
    from PEFTSegmentLib import sample_data

    sample_data.register_sample_data(RESOURCES)


class PEFTSegmentWidget(ScriptedLoadableModuleWidget):
    """The module's panel."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.logic = None
        self.main = None

    def setup(self):
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        from PEFTSegmentLib.interpreter import chosen_interpreter
        from PEFTSegmentLib.widget import ModuleWidget

        self.logic = PEFTSegmentLogic()
        self.main = ModuleWidget(RESOURCES, chosen_interpreter, self.logic.getParameterNode)
        self.layout.addWidget(self.main.form)
        self.main.start()

    def enter(self):
        """Called each time the user opens this module."""
        if self.main is not None:
            self.main.enter()

    def exit(self):
        """Called each time the user opens another module."""
        if self.main is not None:
            self.main.exit()

    def cleanup(self):
        """Called when the module is unloaded or reloaded, and when Slicer closes."""
        if self.main is not None:
            self.main.cleanup()
            self.main = None

    def onReload(self):
        """Read this file and PEFTSegmentLib again (developer mode); what Slicer holds of `peftseg` stays until a restart."""
        import PEFTSegmentLib

        PEFTSegmentLib.forget_modules()
        ScriptedLoadableModuleWidget.onReload(self)


class PEFTSegmentLogic(ScriptedLoadableModuleLogic):
    """What the module does without its panel, for scripts.

    It keeps the parameter node; `PEFTSegmentLib.work` holds the functions, and `peftseg` is the engine with its command
    line: ``PythonSlicer -m peftseg --help``.
    """

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)


class PEFTSegmentTest(ScriptedLoadableModuleTest):
    """A short test for Slicer's own "Reload and Test"; the full one is `Testing/run_in_slicer.py`."""

    def setUp(self):
        """Start with an empty scene."""
        slicer.mrmlScene.Clear(False)

    def runTest(self):
        """Run all tests of this class."""
        self.setUp()
        self.test_scans_are_recognised()

    def test_scans_are_recognised(self):
        """A plain volume can be used, a label map cannot, and the reason is said."""
        import numpy as np

        from PEFTSegmentLib import scans

        scan = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6), np.int16), name="scan")
        labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
        assert scans.reason_against(scan) == ""
        assert "label map" in scans.reason_against(labels)
        self.delayDisplay(_("Test passed"))
