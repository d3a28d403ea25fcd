"""Plots of a comparison: what they show, and that they can be drawn of whatever rows there are."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from peftseg.compare_cost_plots import draw_values, memory_figure, rank_figure, share_figure, time_figure
from peftseg.compare_figures import MARKERS, SINGLE
from peftseg.compare_plots import scores_figure, shots_figure, size_figure, write_plots
from peftseg.compare_rows import AT_START, SHARE


def run(label: str, draw: int = 0, shots: int = 5, task: str = "t", dice: float = 0.5, **more: object) -> list[dict]:
    """Rows of a run on two patients, as the CSV file gives them."""
    facts = dict.fromkeys((*SHARE, *AT_START), 0) | {"trained": 100, "trained_at_start": 100, "base_total": 1000}
    keys = {"task": task, "candidate": label, "method": label, "shots": shots, "draw": draw, "structure": "s"}
    facts |= {"seconds": 4.0, "cpu_seconds": 3.0, "memory_mib": 500, "memory_added_mib": 20, "effective_rank": ""}
    facts |= {"initial_rank": "", "rank": ""} | more
    scores = [{"scan": scan, "dice": dice + 0.1 * n, "surface_dice": dice} for n, scan in enumerate("pq")]
    return [{key: str(value) for key, value in (keys | facts | score).items()} for score in scores]


def dots(axis: object) -> list[list[float]]:
    """Values of each line of single values."""
    return [list(map(float, line.get_xdata())) for line in axis.lines if line.get_alpha() == SINGLE["alpha"]]


def test_bars_of_the_trained_share_are_the_kinds_at_the_start():
    pruned = {"trained_adapter": 20, "trained_head": 30, "trained": 50, "trained_at_start": 300, "buffers": 100}
    start = {"trained_adapter_at_start": 270, "trained_head_at_start": 30}
    rows = run("arena", dice=0.6, **pruned, **start) + run("full", trained_body=1000, trained_body_at_start=1000)
    left, right = share_figure(rows, [5]).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["full", "arena"], "the most accurate on top"
    for axis, (arena, full) in (
        (left, ((27, 0, 3, 0, 0, 10), (0, 0, 0, 0, 100, 0))),
        (right, ((67.5, 0, 7.5, 0, 0, 25), (0, 0, 0, 0, 100, 0))),
    ):
        widths = np.array([[bar.get_width() for bar in bars] for bars in axis.containers])
        np.testing.assert_allclose(widths, np.transpose([full, arena]), atol=1e-9)
        begun = np.array([[bar.get_x() for bar in bars] for bars in axis.containers])
        np.testing.assert_allclose(begun[1:], np.cumsum(widths, axis=0)[:-1], err_msg="one after the other")
    assert [text.get_text() for text in left.texts] == ["1,000 (100 %)", "300 (30 %)"], "buffers do not train"
    heads = [text.get_text() for text in right.get_legend().get_texts()]
    assert heads == ["adapter", "norm", "head", "decoder", "rest of the body", "buffers"]


def test_of_older_rows_the_share_is_that_after_training_and_said_so():
    unknown = dict.fromkeys((*AT_START, "trained_at_start"), "")
    (text,) = share_figure(run("arena", trained_adapter=100, **unknown), [5]).axes[0].texts
    assert text.get_text() == "100 (10 %)\nafter training"
    nothing = dict.fromkeys((*SHARE, *AT_START, "base_total"), "")
    assert share_figure(run("arena", **nothing), [5]) is None


@pytest.mark.parametrize(
    ("draw", "key", "head"),
    [
        (time_figure, "seconds", "time of training on the clock, s"),
        (time_figure, "cpu_seconds", "processor time, s"),
        (memory_figure, "memory_added_mib", "peak memory added, MiB"),
        (memory_figure, "memory_mib", "peak memory in all, MiB"),
        (rank_figure, "effective_rank", "effective rank, mean over layers"),
        (rank_figure, "rank", "components left, mean over layers"),
    ],
)
def test_costs_show_mean_range_and_every_draw(draw, key, head):
    needed = {"effective_rank": 2, "rank": 8}
    rows = [row for number in range(3) for row in run("lora", number, **(needed | {key: (1, 2, 6)[number]}))]
    nothing = {"trained": 0, "trained_at_start": 0, "seconds": 0.0, "cpu_seconds": 0.0}
    rows += run("zero-shot", dice=0.9, memory_mib="", memory_added_mib="", **nothing)
    axes = draw(rows, [5]).axes
    axis = next(axis for axis in axes if axis.get_xlabel() == head)
    assert dots(axis) == [[1, 2, 6]]
    (bars,) = axis.containers
    assert list(bars[0].get_xdata()) == [3]
    assert [list(segment[:, 0]) for segment in bars[2][0].get_segments()] == [[1, 6]]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["lora"], "the other has none of these costs"


def test_a_training_that_added_no_memory_counts():
    rows = [row for number, added in enumerate((0, 30)) for row in run("lora", number, memory_added_mib=added)]
    axis = memory_figure(rows, [5]).axes[0]
    assert (dots(axis), list(axis.containers[0][0].get_xdata())) == ([[0, 30]], [15])


def test_costs_that_no_row_knows_are_not_drawn(tmp_path):
    bare = run("lora", seconds="", cpu_seconds="", memory_mib="", memory_added_mib="")
    assert [draw(bare, [5]) for draw in (time_figure, memory_figure, rank_figure)] == [None] * 3
    names = [name for name, _ in write_plots(tmp_path, bare, [])]
    assert names == ["dice.png", "surface_dice.png", "pareto.png", "share.png"]


def test_over_tasks_a_draw_counts_where_all_tasks_know_it():
    rows = (
        run("lora", 0, task="t", seconds=2) + run("lora", 0, task="u", seconds=6) + run("lora", 1, task="t", seconds=9)
    )
    assert draw_values(rows, 5, "lora", "seconds") == [4]
    assert draw_values(rows, 5, "lora", "seconds", max) == [6]


def test_scores_show_single_patients_of_a_task_and_single_draws_over_tasks():
    rows = run("lora", 0, dice=0.3) + run("lora", 1, dice=0.5)
    (axis,) = scores_figure(rows, [5], "dice", "Dice").axes
    assert dots(axis)[0] == pytest.approx([0.3, 0.4, 0.5, 0.6])
    (axis,) = scores_figure(rows + run("lora", 0, task="u", dice=0.7), [5], "dice", "Dice").axes
    assert dots(axis)[0] == pytest.approx([0.55]), "draw 0 alone is in both tasks"


def test_more_sizes_of_support_set_than_markers_can_be_drawn():
    sizes = range(1, len(MARKERS) + 3)
    rows = [row for shots in sizes for row in run("lora", shots=shots)]
    for figure in (scores_figure(rows, sizes, "dice", "Dice"), time_figure(rows, sizes), memory_figure(rows, sizes)):
        assert len(figure.axes[0].containers) == len(sizes)


def test_every_plot_is_a_file_with_its_caption(tmp_path):
    rows = [row for k in (1, 3) for row in run("lora", shots=k, rank=8, effective_rank=2)]
    found = dict(write_plots(tmp_path, rows, [], "x_"))
    kinds = ("dice", "surface_dice", "pareto", "shots", "share", "time", "memory", "effective_rank")
    assert list(found) == [f"x_{name}.png" for name in kinds]
    assert not [caption for caption in found.values() if "{" in caption or "tasks" in caption]
    for name in found:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    also = dict(write_plots(tmp_path, [*rows, *run("lora", task="u", shots=3)], [], "y_"))
    assert all("; mean over tasks" in caption for caption in also.values())


def test_dice_by_shots_has_intervals():
    rows = [row for k in (1, 3) for draw in (0, 1) for row in run("lora", draw, k, dice=0.3 + 0.1 * draw)]
    (axis,) = shots_figure(rows, [1, 3]).axes
    (bars,) = axis.containers
    low, high = bars[2][0].get_segments()[0][:, 1]
    assert low < 0.4 < high


def test_what_trains_nothing_is_a_line_beside_the_sizes_of_the_others():
    nothing = {"trained": 0, "trained_at_start": 0}
    (axis,) = size_figure(run("lora", dice=0.6) + run("zero-shot", dice=0.2, **nothing), [5]).axes
    line = next(line for line in axis.lines if line.get_label() == "zero-shot")
    assert (line.get_linestyle(), list(line.get_ydata())) == ("--", [pytest.approx(0.25)] * 2)
    assert axis.get_xlim()[0] > 1
