"""The host's layouts and slice views behave as Slicer's: the layout logic makes the views that a layout asks for."""

from __future__ import annotations

import pytest

LAYOUT = (
    '<layout type="horizontal"><item><view class="vtkMRMLSliceNode" singletontag="Mine">'
    '<property name="orientation" action="default">Coronal</property>'
    '<property name="viewlabel" action="default">M</property></view></item></layout>'
)


def test_a_layout_of_ones_own_makes_its_view_and_tells_about_it(host):
    import slicer

    manager = slicer.app.layoutManager()
    told = []
    manager.layoutChanged.connect(told.append)
    assert manager.layoutLogic().GetLayoutNode().AddLayoutDescription(4711, LAYOUT)
    manager.setLayout(4711)
    manager.setLayout(4711)
    assert (manager.layout, told) == (4711, [4711])
    widget = manager.sliceWidget("Mine")
    node = widget.mrmlSliceNode()
    assert (node.GetID(), node.GetOrientation(), node.GetLayoutLabel()) == ("vtkMRMLSliceNodeMine", "Coronal", "M")
    assert node.IsMappedInLayout()
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    assert not node.IsMappedInLayout()
    assert slicer.util.getNodesByClass("vtkMRMLViewNode")[0].IsMappedInLayout()


def test_the_next_test_starts_with_the_usual_views(host):
    import slicer

    assert slicer.app.layoutManager().sliceViewNames() == ("Green", "Red", "Yellow")
    assert not slicer.util.getNodesByClass("vtkMRMLViewNode")


def test_a_slice_view_has_corner_texts_and_nothing_that_is_not_imitated(host):
    import slicer

    view = slicer.app.layoutManager().sliceWidget("Red").sliceView()
    view.cornerAnnotation().SetText(7, "above")
    view.scheduleRender()
    view.forceRender()
    assert view.mrmlSliceNode() is slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode()
    with pytest.raises(AttributeError):
        view.nonsense()
    with slicer.util.WaitCursor():
        pass
