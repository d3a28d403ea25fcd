"""Reports: pictures the right way round, pages that need nothing else, clear words when matplotlib is missing."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from peftseg import report
from peftseg.errors import BadInput
from peftseg.grid import Grid
from peftseg.models import Structure

RED = Structure("target", 1, (255, 0, 0))


def make_grid(shape: tuple[int, int, int], codes: str, spacing: tuple[float, float, float]) -> Grid:
    axis = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for i, code in enumerate(codes):
        affine[axis[code][0], i] = axis[code][1] * spacing[i]
    return Grid(shape, affine)


def panels(png: bytes) -> np.ndarray:
    """The picture as (rows, columns, 3) from 0 to 1."""
    return imread(io.BytesIO(png), format="png")[..., :3]


def red_centre(picture: np.ndarray, panel: int) -> np.ndarray:
    """Where the red outline lies in one of three panels: (row, column), 0 to 1 from the top left of the scan shown."""
    width = picture.shape[1] // 3
    part = picture[: int(picture.shape[0] * 0.85), panel * width : (panel + 1) * width]
    dark = (part < 0.25).all(axis=2)
    red = (part[..., 0] > 0.6) & (part[..., 1] < 0.3) & (part[..., 2] < 0.3)
    assert red.any()
    rows, columns = np.nonzero(red | dark)
    box_low, box_high = np.array([rows.min(), columns.min()]), np.array([rows.max(), columns.max()])
    return (np.argwhere(red).mean(axis=0) - box_low) / (box_high - box_low)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "PIL"])
def test_planes_are_shown_as_radiologists_do_for_any_axis_order(codes):
    """A blob in the patient's right, front, upper corner."""
    grid = make_grid((24, 24, 24), codes, (2.0, 2.0, 2.0))
    labels = np.zeros(grid.shape, np.uint8)
    corner = tuple(slice(16, 22) if c in "RAS" else slice(2, 8) for c in codes)
    labels[corner] = 1
    picture = panels(report.overlay(np.zeros(grid.shape), grid, [RED], truth=labels, focus=labels > 0, window=(0, 1)))
    axial, coronal, sagittal = (red_centre(picture, panel) for panel in range(3))
    assert axial[0] < 0.4  # front at the top
    assert axial[1] < 0.4  # right at the left
    assert coronal[0] < 0.4  # head at the top
    assert coronal[1] < 0.4
    assert sagittal[0] < 0.4
    assert sagittal[1] < 0.4  # front at the left


def test_planes_keep_the_proportions_of_the_body():
    grid = make_grid((30, 30, 10), "RAS", (1.0, 1.0, 6.0))  # 30 x 30 x 60 mm
    picture = panels(report.overlay(np.zeros(grid.shape), grid, [], window=(0, 1)))
    width = picture.shape[1] // 3
    dark = (picture[:, width : 2 * width] < 0.05).all(axis=2)
    columns = dark.mean(axis=0) > 0.5
    rows = dark[:, columns].mean(axis=1) > 0.5
    assert rows.sum() / columns.sum() == pytest.approx(2.0, rel=0.1)


def test_slices_go_through_the_fullest_part_of_the_focus():
    focus = np.zeros((6, 7, 8), bool)
    focus[1, 2, 3:6] = True
    focus[1, 4, 5] = True
    assert report.slices_through(focus, focus.shape) == (1, 2, 5)
    assert report.slices_through(None, focus.shape) == (3, 3, 4)
    assert report.slices_through(np.zeros_like(focus), focus.shape) == (3, 3, 4)


def test_labels_and_prediction_are_both_outlined():
    grid = make_grid((20, 20, 20), "RAS", (1.0, 1.0, 1.0))
    labels, other = np.zeros((2, *grid.shape), np.uint8)
    labels[4:16, 4:16, 4:16] = 1
    other[8:12, 8:12, 8:12] = 1
    image = np.zeros(grid.shape)

    def red_dots(**maps) -> int:
        picture = panels(report.overlay(image, grid, [RED], window=(0, 1), **maps))
        return int(((picture[..., 0] > 0.6) & (picture[..., 1] < 0.3)).sum())

    assert (
        red_dots(truth=labels, prediction=other) > red_dots(truth=labels) > red_dots(prediction=labels) > red_dots() > 0
    )


def test_maps_on_another_grid_are_refused():
    grid = make_grid((5, 5, 5), "RAS", (1.0, 1.0, 1.0))
    with pytest.raises(BadInput, match=r"truth has shape \(4, 5, 5\)"):
        report.overlay(np.zeros(grid.shape), grid, [RED], truth=np.zeros((4, 5, 5)))


def test_curves_show_ranks_only_where_a_method_has_them():
    plain = panels(report.curves([1.0, 0.5, 0.4]))
    ranked = panels(report.curves([1.0, 0.5], [{"a": 4, "b": 4}, {"a": 4, "b": 2, "c": 1}]))
    assert ranked.shape[1] > plain.shape[1]
    many = [{f"layer{n}": 8 - epoch for n in range(30)} for epoch in range(3)]
    assert panels(report.curves([3, 2, 1], many)).shape == ranked.shape


def test_training_history_is_read_from_progress_events_and_counts_a_repeated_epoch_once():
    events = [
        {"event": "log", "message": "hello"},
        {"event": "progress", "stage": "read", "step": 1, "total": 2},
        {"event": "progress", "stage": "train", "step": 1, "total": 2, "loss": 0.9, "ranks": {"a": 4}},
        {"event": "progress", "stage": "train", "step": 1, "total": 2, "loss": 0.8, "ranks": {"a": 3}},
        {"event": "progress", "stage": "train", "step": 2, "total": 2, "loss": 0.7},
    ]
    assert report.training_history(events) == ([0.8, 0.7], [{"a": 3}, {}])


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.images += [found["src"]] if tag == "img" else []
        self.links += [v for k, v in attrs if k in ("href", "src", "srcset") and not v.startswith("data:")]

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_holds_its_pictures_needs_no_network_and_says_what_it_is_not(tmp_path):
    png = report.curves([1.0, 0.5])
    section = report.Section("A & B", ("x < y",), (("structure", "Dice"), ("<liver>", "0.9")), (('"cap"', png),))
    report.write_html(tmp_path / "report.html", "Title <1>", [section])
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(source)
    text = " ".join(page.text)
    assert base64.b64decode(page.images[0].partition(",")[2]) == png
    assert not page.links
    assert not re.search(r"https?:|@import|url\(", source)
    assert "research use only" in text
    assert "Not a medical device" in text
    assert "A & B" in text
    assert "<liver>" in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BadInput, match=r"report\.html"):
        report.write_html(tmp_path / "file" / "report.html", "T", [])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_missing_matplotlib_is_an_error_that_names_the_extra():
    """In a process in which matplotlib cannot be imported; the module itself can."""
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from peftseg import report, errors\n"
        "try: report.curves([1.0])\n"
        "except errors.BadInput as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "peftseg[report]" in done.stdout


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, peftseg.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
