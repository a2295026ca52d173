import numpy as np
import pytest

from densesiam_d2.reporting import curves


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


def test_without_ticks_the_axis_is_linear_and_a_start_at_0_is_whole(figures):
    curves.draw_scores({"a": [(0.0, 1.0, None)], "b": [(9.0, 2.0, None)]}, x="minutes", y="mIoU")
    (axis,) = figures[0].axes
    assert axis.get_xscale() == "linear" and axis.get_xlim()[0] < 0
