import json

import numpy as np

from benchmarks.harness import Row, measure, peak_mib, ratios, table, write_rows


def test_rounds_begin_with_another_variant_each_time():
    calls = []
    times = measure({k: lambda k=k: calls.append(k) for k in "abc"}, 3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"  # one untimed round first
    assert {k: len(v) for k, v in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_paired_and_own_times_are_taken():
    times = measure({"a": lambda: 6.0, "b": lambda: 2.0}, 4)
    assert ratios(times, "a", "b") == [3.0] * 4


def test_rows_pass_in_their_direction():
    more = Row.of("x", "y", [1.0, 5.0, 3.0], goal=4)
    less = Row.of("x", "y", [2.0], goal=3, higher_is_better=False)
    assert (more.min, more.median, more.max) == (1.0, 3.0, 5.0)
    assert (more.passes(), less.passes(), Row.of("x", "y", [1.0]).passes()) == (False, True, None)
    text = table([more, less]).splitlines()
    assert ">= 4" in text[1] and "MISSED" in text[1]
    assert "<= 3" in text[2] and "reached" in text[2]


def test_rows_of_the_same_name_are_replaced(tmp_path):
    file = tmp_path / "results" / "today.json"
    write_rows([Row.of("a", "p", [1.0], goal=2), Row.of("b", "p", [1.0])], file)
    write_rows([Row.of("a", "p", [3.0], goal=2)], file)
    records = json.loads(file.read_text())
    assert [(r["name"], r["median"], r["goal_passed"]) for r in records] == [("b", 1.0, None), ("a", 3.0, True)]
    assert records[0].keys() >= {"name", "peer", "min", "median", "max", "goal", "goal_passed"}


def test_peak_counts_what_a_step_allocates():
    """A step that fills 64 MiB and drops them, after one that keeps 32 MiB."""
    kept = np.ones(32 << 17)

    def step():
        return float(np.ones(64 << 17).sum() + kept[0])

    assert 60 < peak_mib(step) < 80
