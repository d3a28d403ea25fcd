"""Draw the PNG icons of the extension, the module and the samples from the SVG files beside this one.

    python Resources/render_icons.py

Needs PySide6 and, for the picture of the made-up scans, this project's Python environment. Slicer gets PNG only: its module
loader prefers SVG, which needs a plug-in of Qt that not every build has.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PySide6 import QtCore, QtGui, QtSvg

HERE = Path(__file__).resolve().parent
MODULE = HERE.parent / "PEFTSegment"
ICONS = MODULE / "Resources" / "Icons"
SAMPLE_SIZE = (144, 120)


def render(svg: Path, png: Path, width: int, height: int) -> None:
    """Draw an SVG file as a PNG of this size."""
    image = QtGui.QImage(width, height, QtGui.QImage.Format.Format_ARGB32)
    image.fill(QtCore.Qt.GlobalColor.transparent)
    painter = QtGui.QPainter(image)
    painter.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
    QtSvg.QSvgRenderer(str(svg)).render(painter)
    painter.end()
    image.save(str(png))


def render_made_up(png: Path, width: int, height: int) -> None:
    """Draw a slice of the first made-up scan with its gallbladder and aorta."""
    sys.path.insert(0, str(MODULE))
    from peftseg import phantom

    case = phantom.make_case(10_000, phantom.SITE_B)
    values = {s.name: s for s in phantom.STRUCTURES}
    at = int(np.argmax((case.labels == values["gallbladder"].value).sum(axis=(0, 1))))
    grey = np.clip((case.volume.array[..., at] + 160) / 420 * 255, 0, 255).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    for name, colour in (("gallbladder", (120, 220, 90)), ("aorta", (240, 80, 70))):
        picture[case.labels[..., at] == values[name].value] = colour
    picture = np.ascontiguousarray(picture.transpose(1, 0, 2))  # files are LPS: rows run to the back already
    size = case.volume.grid.shape
    image = QtGui.QImage(picture.data, size[0], size[1], 3 * size[0], QtGui.QImage.Format.Format_RGB888)
    mode = QtCore.Qt.TransformationMode.SmoothTransformation
    image.scaled(width, height, QtCore.Qt.AspectRatioMode.IgnoreAspectRatio, mode).save(str(png))


def main() -> None:
    """Draw all of them."""
    ICONS.mkdir(parents=True, exist_ok=True)
    for png in (HERE / "PEFTSegment.png", ICONS / "PEFTSegment.png"):
        render(HERE / "PEFTSegment.svg", png, 128, 128)
    for name in ("SampleHippocampus", "SampleSpleen"):
        render(HERE / f"{name}.svg", ICONS / f"{name}.png", *SAMPLE_SIZE)
    render_made_up(ICONS / "SampleMadeUp.png", *SAMPLE_SIZE)


if __name__ == "__main__":
    main()
