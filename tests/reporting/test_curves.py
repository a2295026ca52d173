import json

import numpy as np
import pytest

from densesiam_d2.reporting import curves
from densesiam_d2.reporting.curves import Panel, draw_panel, read_metrics


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, as matplotlib's objects."""
    found, render = [], curves._render
    monkeypatch.setattr(curves, "_render", lambda figure: (found.append(figure), render(figure))[1])
    return found


def test_scores_have_a_line_each_with_their_deviations(figures):
    lines = {"ours": [(25, 8.0, None), (10, 5.0, 1.5)], "scratch": [(10, 2.0, 0.5)], "lost": []}
    image = curves.draw_scores(lines, x="labels", y="AP", ticks={10: "10", 25: "25\n(all)"})
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    (axis,) = figures[0].axes
    drawn = {bars.get_label(): bars for bars in axis.containers}
    assert list(drawn) == ["ours", "scratch", "lost"]
    line, _, (whiskers,) = drawn["ours"].lines
    assert line.get_xydata().tolist() == [[10, 5], [25, 8]]  # in order
    assert [segment[:, 1].tolist() for segment in whiskers.get_segments()] == [[3.5, 6.5], [8, 8]]
    assert axis.get_xscale() == "log" and [t.get_text() for t in axis.get_xticklabels()] == ["10", "25\n(all)"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("labels", "AP")
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["ours", "scratch", "lost"]


def test_eleven_lines_look_different_and_all_names_are_in_the_legend(figures):
    names = ["_mine", *map(str, range(10))]
    curves.draw_scores({name: [(1.0, 1.0, None)] for name in names}, x="labels", y="AP")
    (axis,) = figures[0].axes
    looks = {(line.get_color(), line.get_marker()) for line in axis.get_lines() if line.get_marker() in "os^DvP*"}
    assert len(looks) == 11
    assert [text.get_text() for text in axis.get_legend().get_texts()] == names


def test_ticks_from_0_on_are_linear_and_a_line_without_name_has_no_legend(figures, recwarn):
    curves.draw_scores(
        {"": [(0.0, 1.0, None), (1.0, 2.0, None)]}, x="weight", y="mIoU", ticks={0: "0", 0.5: "0.5", 1: "1"}
    )
    (axis,) = figures[0].axes
    assert axis.get_xscale() == "linear" and axis.get_legend() is None and not recwarn.list


def test_without_ticks_the_axis_is_linear_and_a_start_at_0_is_whole(figures):
    curves.draw_scores({"a": [(0.0, 1.0, None)], "b": [(9.0, 2.0, None)]}, x="minutes", y="mIoU")
    (axis,) = figures[0].axes
    assert axis.get_xscale() == "linear" and axis.get_xlim()[0] < 0


def test_metrics_of_a_run_that_is_writing(tmp_path):
    """The last line is cut; iteration 19 occurs twice, because a run was killed and went on from an earlier point."""
    lines = [{"iteration": 19, "loss": 3.0}, {"iteration": 39, "loss": 2.0, "lr": 0.1}, {"iteration": 19, "loss": 2.5}]
    text = "\n".join([*map(json.dumps, lines), '{"iteration": 29, "loss": NaN}', '{"iteration": 59, "lo'])
    (tmp_path / "metrics.json").write_text(text)
    metrics = read_metrics(tmp_path)
    np.testing.assert_array_equal(metrics["loss"], [[20, 30, 40], [2.5, np.nan, 2.0]])
    np.testing.assert_array_equal(metrics["lr"], [[40], [0.1]])
    assert read_metrics(tmp_path / "nowhere") == {}


def ground(panel):
    """Return the colour of the ground at the right edge of the axes, from bottom to top, as "red", "green", "white"."""
    column = draw_panel(panel)[:, -15].astype(int)[::-1]  # beyond the end of the curve
    names = ["white" if np.ptp(c) < 8 else "red" if c[0] > c[1] else "green" for c in column]
    return list(dict.fromkeys(name for name in names if name != "white")) or ["white"]


def test_limits_are_in_sight_and_coloured():
    curve = {"x": (np.array([0.0, 1.0]), np.array([0.9, 0.9]))}
    assert ground(Panel("x", curve)) == ["white"]
    assert ground(Panel("x", curve, healthy=(0.5, None))) == ["red", "green"]
    assert ground(Panel("x", curve, healthy=(None, 0.95))) == ["green", "red"]
    drawn = draw_panel(Panel("x", curve, target=0.5))
    assert drawn.shape == (520, 800, 3) and drawn.dtype == np.uint8
