"""Which metric picks good checkpoints: rank correlations and picks of curves made by hand."""

import json

import numpy as np
import pytest

from densesiam_d2.tools.judge_metrics import compared_values, judge_run, main


def curve(*points):
    return tuple(np.array(points, dtype=float).T)


SCORES = curve((20, 30.0), (40, 50.0), (60, 40.0), (81, 45.0))  # the last one is logged after training


def test_values_are_means_since_the_last_comparison():
    found = compared_values(curve((1, 9.0), (20, 1.0), (40, 2.0), (60, 3.0), (80, 5.0)), np.array([20, 60, 81]))
    assert found.tolist() == [5.0, 2.5, 5.0]
    assert np.isnan(compared_values(curve((50, 1.0)), np.array([20, 60]))).tolist() == [True, False]


def test_correlations_and_picks_by_hand():
    curves = {
        "monitor/mIoU": SCORES,
        "same_order": curve((20, 1.0), (40, 4.0), (60, 2.0), (80, 3.0)),
        "two_swapped": curve((20, 1.0), (40, 3.0), (60, 2.0), (80, 4.0)),  # ranks differ by 0, 1, 0, 1
        "constant": curve((20, 7.0), (40, 7.0), (60, 7.0), (80, 7.0)),
        "rare": curve((20, 7.0), (80, 7.0)),
        "infinite": curve((20, 1.0), (40, np.inf), (60, 2.0), (80, 3.0)),
    }
    found = judge_run(curves, ["same_order", "-same_order", "two_swapped", "constant", "rare", "infinite", "absent"])
    assert found["same_order"] == {"correlation": pytest.approx(1), "above_last": 5, "below_best": 0}
    assert found["-same_order"] == {"correlation": pytest.approx(-1), "above_last": -15, "below_best": 20}
    # 1 - 6 * sum of squared differences / (n (n^2 - 1)) = 1 - 6 * 2 / 60
    assert found["two_swapped"] == {"correlation": pytest.approx(0.8), "above_last": 0, "below_best": 5}
    assert found["constant"] == {"correlation": None, "above_last": -15, "below_best": 20}
    assert found["(last)"] == {"correlation": None, "above_last": 0, "below_best": 5}
    assert found["(any)"] == {"correlation": None, "above_last": 41.25 - 45, "below_best": 50 - 41.25}
    assert not {"rare", "infinite", "absent"} & found.keys()


def write_run(folder, scores):
    folder.mkdir()
    rows = [
        {"iteration": 10 * i + 9, "monitor/mIoU": s, "ssl/view_agreement": s / 10, "total_loss": 1 / s}
        for i, s in enumerate(scores)
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_the_table_is_the_mean_of_the_runs(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", [10.0, 20.0, 18.0]), write_run(tmp_path / "b", [10.0, 20.0, 14.0])]
    assert main([*runs, "--metrics", "ssl/view_agreement", "--json", str(tmp_path / "out.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| ssl/view_agreement | 2 | 1.00 ± 0.00 | 4.00 ± 2.83 | 0.00 ± 0.00 |"  # of 2 and 6
    assert json.loads((tmp_path / "out.json").read_text())[runs[1]]["ssl/view_agreement"]["above_last"] == 6


def test_a_metric_may_begin_with_a_minus(tmp_path, capsys):
    run = write_run(tmp_path / "a", [10.0, 20.0, 18.0])
    for words in ([run, "--metrics", "ssl/view_agreement", "-total_loss"], ["--metrics=-total_loss", run]):
        assert main(words) == 0
        # the loss is 1 / mIoU: the lowest is that of 20, which is 2 above the last
        assert "| -total_loss | 1 | 1.00 | 2.00 | 0.00 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["-h"])


def test_what_cannot_be_judged_is_named(tmp_path, capsys):
    run = write_run(tmp_path / "a", [10.0, 20.0, 18.0])
    (tmp_path / "nan").mkdir()
    rows = [
        {"iteration": 9, "monitor/mIoU": 1},
        {"iteration": 19, "monitor/mIoU": None},
        {"iteration": 29, "monitor/mIoU": 2},
    ]
    (tmp_path / "nan" / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    for line, says in [
        (
            [write_run(tmp_path / "short", [1.0, 2.0])],
            "short: 2 values of monitor/mIoU, but at least 3 are compared: train with TEST.MONITOR.DATASET",
        ),
        ([run, str(tmp_path / "none")], "none holds no metrics.json: name the OUTPUT_DIR"),
        ([run, str(tmp_path / "nan")], "nan: monitor/mIoU after 20 iterations is not a finite number"),
        ([run, "--metrics", "-totl_loss"], "--metrics -totl_loss: no run has logged it; did you mean total_loss?"),
        ([run, "--json", str(tmp_path)], f"--json {tmp_path} cannot be written"),
    ]:
        assert main(line) == 2
        assert says in capsys.readouterr().err
