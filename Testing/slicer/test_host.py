"""The test host is as strict as Slicer: what would fail there fails here."""

from __future__ import annotations

import json
import re
import textwrap
import threading
import time
from pathlib import Path

import pytest
import slicerhost

OBSERVED = json.loads((Path(slicerhost.__file__).parent / "observed.json").read_text(encoding="utf-8"))

EXAMPLE = """
import enum
import pathlib
from typing import Annotated, Optional

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


@parameterNodeWrapper
class ExampleParameterNode:
    volume: slicer.vtkMRMLScalarVolumeNode
    threshold: Annotated[float, WithinRange(0, 10), Default(4.0)]
    enabled: bool = True
    label: str = "lung, left; \\u00e4"
    colour: Colour = Colour.GREEN
    folder: pathlib.Path
    names: list[str]
    size: tuple[int, int] = (2, 3)
    maybe: Optional[int] = None


class Example(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Example")
        parent.categories = ["Segmentation"]


class ExampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.happened = []
        self.node = self._tag = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        form = slicer.util.loadUI(self.resourcePath("UI/Example.ui"))
        self.layout.addWidget(form)
        self.ui = slicer.util.childWidgetVariables(form)
        form.setMRMLScene(slicer.mrmlScene)
        self.logic = ExampleLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onEndClose)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)

    def cleanup(self):
        self.happened.append("cleanup")
        self.removeObservers()
        self.disconnect()

    def disconnect(self):
        if self._tag is not None:
            self.node.disconnectGui(self._tag)
            self._tag = None

    def enter(self):
        self.happened.append("enter")
        self.node = ExampleParameterNode(self.logic.getParameterNode())
        self._tag = self.node.connectGui(self.ui)

    def exit(self):
        self.happened.append("exit")
        self.disconnect()

    def onStartClose(self, caller, event):
        self.happened.append("start close")

    def onEndClose(self, caller, event):
        self.happened.append("end close")

    def onApply(self):
        self.happened.append("apply")
        if not self.node.volume:
            slicer.util.errorDisplay("Choose a volume.", detailedText="none was chosen")
        elif slicer.util.confirmOkCancelDisplay("Go on?"):
            self.happened.append("confirmed")


class ExampleLogic(ScriptedLoadableModuleLogic):
    pass
"""

FORM = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0">
 <class>Example</class>
 <widget class="qMRMLWidget" name="Example">
  <layout class="QFormLayout" name="formLayout">
   <item row="0" column="1">
    <widget class="qMRMLNodeComboBox" name="volumeSelector">
     <property name="nodeTypes"><stringlist notr="true"><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
     <property name="showChildNodeTypes"><bool>false</bool></property>
     <property name="noneEnabled"><bool>true</bool></property>
     <property name="SlicerParameterName" stdset="0"><string>volume</string></property>
    </widget>
   </item>
   <item row="1" column="1">
    <widget class="ctkCollapsibleButton" name="section">
     <property name="text"><string>More</string></property>
     <property name="collapsed"><bool>true</bool></property>
     <layout class="QVBoxLayout" name="inner">
      <item>
       <widget class="ctkSliderWidget" name="slider">
        <property name="SlicerParameterName" stdset="0"><string>threshold</string></property>
       </widget>
      </item>
      <item>
       <widget class="ctkPathLineEdit" name="folderEdit">
        <property name="filters"><set>ctkPathLineEdit::Dirs|ctkPathLineEdit::Readable</set></property>
        <property name="SlicerParameterName" stdset="0"><string>folder</string></property>
       </widget>
      </item>
     </layout>
    </widget>
   </item>
   <item row="2" column="1">
    <widget class="QCheckBox" name="enabledBox">
     <property name="text"><string>Enabled</string></property>
     <property name="SlicerParameterName" stdset="0"><string>enabled</string></property>
    </widget>
   </item>
   <item row="3" column="1">
    <widget class="QComboBox" name="colourBox">
     <property name="SlicerParameterName" stdset="0"><string>colour</string></property>
    </widget>
   </item>
   <item row="4" column="1">
    <widget class="QPushButton" name="applyButton">
     <property name="text"><string>Apply</string></property>
     <property name="toolTip"><string>Run it</string></property>
    </widget>
   </item>
  </layout>
 </widget>
 <customwidgets>
  <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><header>qMRMLWidget.h</header></customwidget>
  <customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends><header>q.h</header></customwidget>
  <customwidget><class>ctkCollapsibleButton</class><extends>QWidget</extends><header>c.h</header></customwidget>
  <customwidget><class>ctkSliderWidget</class><extends>QWidget</extends><header>s.h</header></customwidget>
  <customwidget><class>ctkPathLineEdit</class><extends>QWidget</extends><header>p.h</header></customwidget>
 </customwidgets>
 <connections>
  <connection>
   <sender>Example</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
   <receiver>volumeSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot>
  </connection>
 </connections>
</ui>
"""


@pytest.fixture
def example(host, tmp_path):
    """The example module, loaded and shown; its Python widget."""
    folder = tmp_path / "Example module ä"
    (folder / "Resources" / "UI").mkdir(parents=True)
    (folder / "Example.py").write_text(textwrap.dedent(EXAMPLE), encoding="utf-8")
    (folder / "Resources" / "UI" / "Example.ui").write_text(FORM, encoding="utf-8")
    host.load_module(folder / "Example.py")
    return host.show_module("Example")


def load_form(tmp_path, text: str):
    import slicer

    path = tmp_path / "form.ui"
    path.write_text(text, encoding="utf-8")
    return slicer.util.loadUI(str(path))


def add_volume(name: str = "CT"):
    import numpy as np
    import slicer

    return slicer.util.addVolumeFromArray(np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6), name=name)


def take_errors() -> list[str]:
    """Return the errors recorded so far, and clear them: the test expected them."""
    from slicerhost import signals

    errors = list(signals.slot_errors)
    signals.slot_errors.clear()
    return errors


@pytest.fixture(scope="module")
def observed_state(running_host) -> dict:
    import ctk
    import qt
    import slicer

    return {
        "qt": qt, "ctk": ctk, "slicer": slicer, "b": qt.QPushButton(), "l": qt.QLabel(), "c": qt.QComboBox(),
        "t": qt.QTableWidget(), "s": qt.QSpinBox(), "x": qt.QCheckBox(), "le": qt.QLineEdit(), "pb": qt.QProgressBar(),
        "os": __import__("os"), "shutil": __import__("shutil"),
    }  # fmt: skip


@pytest.mark.parametrize(("code", "kind", "value"), OBSERVED, ids=[row[0][:60].replace("\n", " ") for row in OBSERVED])
def test_a_line_executed_in_slicer_gives_the_same_here(observed_state, host, code, kind, value):
    if "hits" in code:
        import qt

        observed_state["b"] = qt.QPushButton()  # the lines of the list were not connected to one button
    if "settingsValue" in code:
        import qt

        qt.QSettings().setValue("peft/x", 3)
    if kind.startswith("RAISES"):
        with pytest.raises(Exception) as caught:
            exec(code, observed_state)
        assert type(caught.value).__name__ == kind.split()[1]
        assert value.strip("'") in str(caught.value)
        return
    exec(code, observed_state)
    result = observed_state["r"]
    assert type(result).__name__ == kind
    shown = re.sub(r"0x[0-9a-f]+", "0x..", str(result))
    assert shown.startswith(value.rstrip("'").rstrip()) if value.endswith(("'", ", ")) else shown == value


def test_calling_a_property_raises(host):
    import qt

    with pytest.raises(TypeError, match="not callable"):
        qt.QLabel("a").text()


def test_a_method_used_as_an_attribute_is_no_value(host):
    import qt

    item = qt.QTableWidgetItem("a")
    assert item.text != "a"
    assert item.text() == "a"


def test_an_attribute_that_is_not_listed_raises_on_reading_and_setting(host):
    import ctk
    import qt
    import slicer

    for widget in (qt.QPushButton(), ctk.ctkCollapsibleButton(), slicer.qMRMLNodeComboBox(), slicer.app):
        with pytest.raises(AttributeError, match="nonsense"):
            _ = widget.nonsense
        with pytest.raises(AttributeError, match="nonsense"):
            widget.nonsense = 1


@pytest.mark.parametrize("module", ["qt", "ctk", "slicer", "slicer.modules"])
def test_a_class_or_module_that_is_not_listed_raises(host, module):
    import ctk
    import qt
    import slicer

    found = {"qt": qt, "ctk": ctk, "slicer": slicer, "slicer.modules": slicer.modules}[module]
    with pytest.raises(AttributeError):
        _ = found.QNonsense


def test_functions_of_slicer_util_are_not_in_slicer_itself(host):
    import slicer

    assert not hasattr(slicer, "errorDisplay")
    assert callable(slicer.util.errorDisplay)


def test_what_slicer_has_and_the_host_has_not_says_so(host):
    import ctk
    import qt
    import slicer

    for ask in (
        lambda: slicer.qMRMLTreeView,
        lambda: ctk.ctkWorkflow,
        lambda: slicer.modules.markups,
        lambda: qt.QFont().rawMode,
    ):
        with pytest.raises(NotImplementedError, match="test host"):
            ask()


def test_a_signal_that_does_not_exist_raises(host):
    import qt
    import slicer

    with pytest.raises(AttributeError, match=r"has no signal 'clikced\(\)'"):
        qt.QPushButton().connect("clikced()", print)
    with pytest.raises(AttributeError, match=r"currentNodeChanged\(vtkMRMLNode\*\)"):
        slicer.qMRMLNodeComboBox().connect("currentNodeChanged(int)", print)
    with pytest.raises(ValueError, match="signature"):
        qt.QPushButton().connect("clicked", print)


def test_a_method_or_signal_cannot_be_overwritten(host):
    import qt

    button = qt.QPushButton()
    with pytest.raises(AttributeError, match="Slot 'click'"):
        button.click = 1
    with pytest.raises(AttributeError, match="Signal 'clicked'"):
        button.clicked = 1


@pytest.mark.parametrize(
    ("name", "value"), [("enabled", None), ("enabled", "yes"), ("text", None), ("minimumWidth", "10"), ("width", 3)]
)
def test_a_property_refuses_a_value_of_another_kind(host, name, value):
    import qt

    with pytest.raises(AttributeError, match=name):
        setattr(qt.QPushButton(), name, value)


def test_wrong_arguments_raise(host):
    import qt

    with pytest.raises(ValueError, match="wrong arguments"):
        qt.QLabel().setText(qt.QLabel())
    with pytest.raises(TypeError):
        qt.QLabel().setText(text="a")


def test_an_unknown_name_in_a_form_is_refused(host, tmp_path):
    with pytest.raises(RuntimeError, match="no property 'nodeType'"):
        load_form(tmp_path, FORM.replace('name="nodeTypes"', 'name="nodeType"'))
    with pytest.raises(RuntimeError, match="qMRMLNodeComboBoxes"):
        load_form(tmp_path, FORM.replace('class="qMRMLNodeComboBox"', 'class="qMRMLNodeComboBoxes"'))
    with pytest.raises(AttributeError, match="mrmlSceneChange"):
        load_form(tmp_path, FORM.replace("mrmlSceneChanged(vtkMRMLScene*)", "mrmlSceneChange(vtkMRMLScene*)"))
    with pytest.raises(AttributeError, match="setMRMLScenes"):
        load_form(tmp_path, FORM.replace("setMRMLScene(vtkMRMLScene*)", "setMRMLScenes(vtkMRMLScene*)"))


def test_a_form_is_loaded_with_its_properties_and_connections(host, tmp_path):
    import ctk
    import slicer

    form = load_form(tmp_path, FORM)
    ui = slicer.util.childWidgetVariables(form)
    assert ui.section.collapsed is True
    assert ui.section.text == "More"
    assert ui.folderEdit.filters == ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Readable
    assert ui.volumeSelector.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    form.setMRMLScene(slicer.mrmlScene)
    assert ui.volumeSelector.mrmlScene() is slicer.mrmlScene


def test_a_module_goes_through_its_life(host, example):
    assert example.happened == ["enter"]
    host.unload_module("Example")
    assert example.happened == ["enter", "exit", "cleanup"]


def test_a_module_meets_the_closing_of_the_scene(host, example):
    import slicer

    slicer.mrmlScene.Clear(0)
    assert example.happened == ["enter", "start close", "end close"]


def test_a_module_can_be_reloaded(host, example):
    import slicer

    slicer.util.reloadScriptedModule("Example")
    assert example.happened[-1] == "cleanup"
    assert slicer.modules.ExampleWidget is not example


def test_widgets_and_parameter_node_follow_each_other(host, example):
    volume = add_volume()
    example.ui.volumeSelector.setCurrentNode(volume)
    assert example.node.volume is volume
    example.node.threshold = 7.5
    assert example.ui.slider.value == 7.5
    example.ui.slider.value = 2.0
    assert example.node.threshold == 2.0
    example.ui.enabledBox.click()
    assert example.node.enabled is False
    example.ui.colourBox.currentText = "RED"
    assert example.node.colour.name == "RED"
    example.ui.folderEdit.currentPath = "some/where"
    assert example.node.folder == Path("some/where")


def test_after_exit_the_widgets_no_longer_write(host, example):
    host.unload_module("Example")
    with pytest.raises(ValueError, match="destroyed"):
        _ = example.ui.slider.value


def test_the_parameter_node_refuses_what_its_annotations_exclude(host, example):
    with pytest.raises(ValueError, match="range"):
        example.node.threshold = 11.0
    with pytest.raises(TypeError):
        example.node.label = 3
    with pytest.raises(ValueError, match="None"):
        example.node.enabled = None


def test_parameters_survive_saving_and_loading_the_scene(host, example, tmp_path):
    import slicer

    example.node.volume = add_volume()
    example.node.threshold = 3.25
    example.node.names = ["a", "b; ü"]
    example.node.names.append("c")
    example.node.size = (7, 8)
    example.node.maybe = 5
    example.exit()
    assert slicer.util.saveScene(str(tmp_path / "scene ä.mrb"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "scene ä.mrb"))
    example.enter()
    assert example.node.volume.GetName() == "CT"
    assert example.node.threshold == 3.25
    assert example.node.names == ["a", "b; ü", "c"]
    assert (example.node.size, example.node.maybe) == ((7, 8), 5)
    assert example.node.label == "lung, left; ä"


def test_a_button_reaches_the_module_and_a_message_is_recorded(host, example):
    import qt

    host.dialogs.expect(qt.QMessageBox.Ok)
    example.ui.applyButton.click()
    assert example.happened[-1] == "apply"
    assert [(d.text, d.details) for d in host.dialogs.shown] == [("Choose a volume.", "none was chosen")]


@pytest.mark.parametrize(("button", "confirmed"), [("Ok", True), ("Cancel", False)])
def test_a_question_is_answered_as_the_test_says(host, example, button, confirmed):
    import qt

    example.node.volume = add_volume()
    host.dialogs.expect(getattr(qt.QMessageBox, button))
    example.ui.applyButton.click()
    assert ("confirmed" in example.happened) is confirmed


def test_a_dialog_that_no_test_expects_is_an_error(host, example):
    example.ui.applyButton.click()
    assert "a dialog that no test expected" in take_errors()[0]


def test_an_error_in_a_slot_or_an_observer_is_recorded(host):
    import qt
    import slicer

    button = qt.QPushButton()
    button.clicked.connect(lambda: 1 / 0)
    button.click()
    assert "ZeroDivisionError" in take_errors()[0]
    tag = slicer.mrmlScene.AddObserver(slicer.mrmlScene.NodeAddedEvent, lambda *_: 1 / 0)
    add_volume()
    slicer.mrmlScene.RemoveObserver(tag)
    assert any("ZeroDivisionError" in e for e in take_errors())


def test_a_slot_with_too_many_arguments_is_recorded(host):
    import qt

    button = qt.QPushButton()
    button.connect("clicked()", lambda checked: None)
    button.click()
    assert "missing 1 required positional argument" in take_errors()[0]


def test_an_error_that_mrml_reports_is_recorded(host):
    import slicer

    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLNonsenseNode")
    assert any("vtkMRMLNonsenseNode" in e for e in take_errors())


def test_a_timer_runs_and_stops(host):
    import qt
    import slicer

    hits = []
    timer = qt.QTimer()
    timer.interval = 20
    timer.timeout.connect(lambda: hits.append(time.monotonic()))
    timer.start()
    host.wait_for(lambda: len(hits) >= 3, seconds=5)
    timer.stop()
    count = len(hits)
    host.process_events(80)
    assert len(hits) == count
    qt.QTimer.singleShot(0, lambda: hits.append("once"))
    slicer.app.processEvents()
    assert hits[-1] == "once"


def test_a_python_class_gets_qt_events_and_can_send_signals(host):
    import qt

    class Panel(qt.QWidget):
        finished = qt.Signal(str)

        def __init__(self, parent=None):
            super().__init__(parent)
            self.closed = False

        def closeEvent(self, event):
            self.closed = True
            super().closeEvent(event)

    panel, heard = Panel(), []
    panel.finished.connect(heard.append)
    panel.finished.emit("done")
    panel.show()
    panel.close()
    assert (panel.closed, heard, panel.visible) == (True, ["done"], False)


def test_children_keep_their_python_object(host):
    import qt

    class Row(qt.QWidget):
        def __init__(self, parent=None):
            super().__init__(parent)
            self.number = 7

    box = qt.QWidget()
    layout = qt.QVBoxLayout(box)
    layout.addWidget(Row())
    assert box.findChildren(Row)[0].number == 7
    assert layout.itemAt(0).widget().number == 7


def test_a_node_selector_follows_the_scene(host):
    import slicer

    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.showChildNodeTypes = False
    selector.setMRMLScene(slicer.mrmlScene)
    heard = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    selector.connect("currentNodeChanged(bool)", heard.append)
    first, label = add_volume("a"), slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    assert selector.nodeCount() == 1
    assert selector.currentNode() is first
    assert heard == [first, True]
    selector.setCurrentNode(label)
    assert selector.currentNode() is None
    selector.setCurrentNode(first)
    slicer.mrmlScene.RemoveNode(first)
    assert selector.currentNodeID == ""


def test_the_segment_editor_works_on_its_parameter_node(host):
    import slicer

    volume = add_volume()
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segment = segmentation.GetSegmentation().AddEmptySegment("", "liver")
    editor = slicer.qMRMLSegmentEditorWidget()
    editor.setMRMLScene(slicer.mrmlScene)
    with pytest.raises(RuntimeError, match="vtkMRMLSegmentEditorNode"):
        editor.setSegmentationNode(segmentation)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.setMRMLSegmentEditorNode(node)
    heard = []
    editor.segmentationNodeChanged.connect(heard.append)
    editor.setSegmentationNode(segmentation)
    editor.setSourceVolumeNode(volume)
    editor.setCurrentSegmentID(segment)
    assert heard == [segmentation]
    assert node.GetSourceVolumeNode() is volume
    with pytest.raises(ValueError, match="no such"):
        editor.setActiveEffectByName("Paintt")
    with pytest.raises(AttributeError):
        editor.setSegmentationNodeSelector(False)


def test_an_installation_is_recorded_and_its_names_are_checked(host):
    import slicer.packaging

    host.packages.installed = {"torch": None}
    assert slicer.packaging.pip_check("torch>=2") is False
    slicer.packaging.pip_install("torch>=2", constraints="c.txt")
    assert host.packages.calls == [("pip_install", ("torch>=2",), {"constraints": "c.txt"})]
    with pytest.raises(TypeError, match="unexpected keyword"):
        slicer.packaging.pip_install("torch", constraint="c.txt")


def test_real_slicer_util_matches_the_listed_signatures(host):
    import slicer
    from slicerhost import helpers

    assert helpers.check_signatures(slicer.util, "slicer.util") == []


def test_pictures_of_a_panel_and_of_a_slice_view_show_something(host, example, tmp_path):
    import numpy as np
    import slicer
    from slicerhost import views

    picture = host.picture(example.parent, tmp_path / "panel.png", width=420)
    assert picture.stat().st_size > 1000
    if not views.can_render():
        pytest.skip("VTK cannot draw offscreen here: neither EGL nor OSMesa")
    volume = slicer.util.addVolumeFromArray(np.full((8, 32, 32), 50, np.int16))
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.CreateDefaultDisplayNodes()
    segment = segmentation.GetSegmentation().AddEmptySegment("", "s", (1.0, 0.0, 0.0))
    mask = np.zeros((8, 32, 32), np.uint8)
    mask[:, 8:24, 8:24] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment, volume)
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    host.slice_picture(tmp_path / "slice.png", "Red", (128, 128))
    import qt

    image = qt.QImage(str(tmp_path / "slice.png"))
    middle, corner = image.pixelColor(64, 64), image.pixelColor(4, 4)
    assert middle.red() > middle.green()
    assert corner.red() == corner.green()


def test_the_host_puts_a_python_slicer_on_the_path(host):
    import subprocess

    done = subprocess.run(["PythonSlicer", "-c", "print(6 * 7)"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "42"


def test_settings_do_not_survive_the_test(host):
    import qt

    assert qt.QSettings().value("peft/kept") is None
    qt.QSettings().setValue("peft/kept", ["a"])
    assert qt.QSettings().value("peft/kept") == ("a",)
    slicer_settings = slicerhost.start().home / "settings"
    assert slicer_settings.is_dir() or not qt.QSettings().isWritable()


def test_slicer_5_10_lacks_what_came_later(older_host):
    import SampleData
    import slicer

    assert slicer.app.minorVersion == 10
    assert not hasattr(SampleData.SampleDataLogic, "registerCustomSampleDataCategory")
    assert not hasattr(slicer.util, "executePythonModule")
    with pytest.raises(ImportError):
        import slicer.packaging
    with pytest.raises(TypeError, match="blocking"):
        slicer.util.launchConsoleProcess(["true"], blocking=False)
    slicer.util.pip_install("torch")
    assert older_host.packages.calls == [("util.pip_install", ("torch",), {})]


def test_after_slicer_5_10_the_later_names_are_back(host):
    import slicer.packaging

    assert slicer.app.minorVersion == 13
    assert callable(slicer.util.executePythonModule)
    assert callable(slicer.packaging.pip_ensure)


def test_a_process_of_slicer_python_reports_while_qt_runs(host):
    import shutil

    import slicer

    lines, codes = [], []
    process = slicer.util.launchConsoleProcess(
        [shutil.which("PythonSlicer"), "-c", "print('hello')"],
        blocking=False,
        logCallback=lines.append,
        completedCallback=codes.append,
    )
    host.wait_for(lambda: codes, seconds=20, what="the end of the process")
    process.stdout.close()  # slicer.util leaves it open
    assert codes == [0]
    assert any("hello" in line for line in lines)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("no", name="slicer_core"), "pip install"),
        (ImportError("libEGL.so.1: cannot open"), "libEGL"),
    ],
)
def test_without_its_parts_the_host_says_what_is_missing(monkeypatch, error, words):
    def fail(name):
        raise error

    monkeypatch.setattr(slicerhost.importlib, "import_module", fail)
    assert words in slicerhost.missing_reason()


def test_samples_are_registered_at_startup_and_checked(host):
    import SampleData
    import slicer

    def register():
        SampleData.SampleDataLogic.registerCustomSampleDataCategory("Example", title="Example")
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="Example",
            sampleName="a",
            uris="https://example.org/a.nrrd",
            fileNames="a.nrrd",
            checksums="SHA256:0",
        )

    slicer.app.connect("startupCompleted()", register)
    host.finish_startup()
    slicer.app.disconnect("startupCompleted()", register)
    assert [s["sampleName"] for s in SampleData.SampleDataLogic.sources] == ["a"]
    with pytest.raises(TypeError):
        SampleData.SampleDataLogic.registerCustomSampleDataSource(name="a")
    with pytest.raises(ValueError, match="checksum"):
        SampleData.SampleDataLogic.registerCustomSampleDataSource(sampleName="b", uris="https://example.org/b.nrrd")


def test_a_plot_is_made_by_the_real_slicer_util(host):
    import numpy as np
    import slicer

    chart = slicer.util.plot(
        np.array([[0.0, 1.0], [1.0, 0.5]]), xColumnIndex=0, columnNames=["epoch", "loss"], show=False
    )
    assert chart.GetNthPlotSeriesNode(0).GetXColumnName() == "epoch"


def test_nodes_are_written_and_read_by_slicer_util(host, tmp_path):
    import numpy as np
    import slicer

    volume = add_volume("scan ä 1")
    path = str(tmp_path / "scan ä 1.nii.gz")
    assert slicer.util.saveNode(volume, path)
    again = slicer.util.loadVolume(path, {"name": "again"})
    assert np.array_equal(slicer.util.arrayFromVolume(again), slicer.util.arrayFromVolume(volume))
    assert again.GetName() == "again"
    with pytest.raises(RuntimeError, match="does not exist"):
        slicer.util.loadVolume(str(tmp_path / "none.nrrd"))
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = segmentation.GetSegmentation().AddEmptySegment("", "liver")
    slicer.util.updateSegmentBinaryLabelmapFromArray(np.ones((4, 5, 6), np.uint8), segmentation, segment, volume)
    assert slicer.util.saveNode(segmentation, str(tmp_path / "labels.seg.nrrd"))
    loaded = slicer.util.loadSegmentation(str(tmp_path / "labels.seg.nrrd"))
    assert loaded.GetSegmentation().GetNthSegment(0).GetName() == "liver"


def test_a_slow_slot_is_measured(host):
    import qt

    def slow():
        time.sleep(0.15)

    button = qt.QPushButton()
    button.clicked.connect(slow)
    button.click()
    seconds, name = host.longest_slot()
    assert seconds > 0.1
    assert name.endswith("slow")


def test_a_file_dialog_is_answered_with_what_pythonqt_returns(host):
    import qt

    host.dialogs.expect("a.safetensors")
    assert qt.QFileDialog.getOpenFileName(None, "Import", "", "*.safetensors") == "a.safetensors"
    host.dialogs.expect(("a.safetensors", "*"))
    with pytest.raises(TypeError, match="PythonQt"):
        qt.QFileDialog.getOpenFileName(None, "Import")


def test_a_widget_that_is_in_no_layout_yet_must_not_be_made_visible(host):
    import qt

    button, box = qt.QPushButton("Accept"), qt.QWidget()
    button.visible = False
    with pytest.raises(RuntimeError, match="window of its own"):
        button.visible = True
    layout = qt.QVBoxLayout(box)
    layout.addWidget(button)
    button.visible = True
    assert not button.isHidden()


def test_a_slot_of_qt_gets_all_that_a_signal_sends(host):
    import qt

    button, box = qt.QPushButton(), qt.QWidget()
    with pytest.raises(TypeError, match="sends 1"):
        button.clicked.connect(box.hide)
    button.connect("clicked()", box.hide)
    button.toggled.connect(box.setEnabled)
    with pytest.raises(TypeError, match="sends 0"):
        button.pressed.connect(box.setEnabled)


def test_a_thread_stands_still_while_the_host_waits(host):
    counted = []

    def count() -> None:
        for number in range(1000):
            counted.append(number)
            time.sleep(0.001)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    before = len(counted)
    host.idle(300)
    assert len(counted) - before < 20
    thread.join()
