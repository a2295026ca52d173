import json

from benchmarks.harness import Row, measure, ratios, table, write_rows


def test_rounds_begin_with_another_variant_each_time():
    calls = []
    times = measure({k: lambda k=k: calls.append(k) for k in "abc"}, 3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"  # one untimed round first
    assert {k: len(v) for k, v in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_paired_and_own_times_are_taken():
    times = measure({"a": lambda: 6.0, "b": lambda: 2.0}, 4)
    assert ratios(times, "a", "b") == [3.0] * 4


def test_rows_pass_in_their_direction():
    more, less = (
        Row.of("x", "y", [1.0, 5.0, 3.0], goal=4, gate=3),
        Row.of("x", "y", [2.0], gate=1, higher_is_better=False),
    )
    assert (more.min, more.median, more.max) == (1.0, 3.0, 5.0)
    assert (more.passes(more.goal), more.passes(more.gate)) == (False, True)
    assert (less.passes(less.goal), less.passes(less.gate)) == (None, False)
    text = table([more, less])
    assert ">= 4" in text and "<= 1" in text and "MISSED" not in text.splitlines()[1]


def test_rows_of_the_same_name_are_replaced(tmp_path):
    file = tmp_path / "results" / "today.json"
    write_rows([Row.of("a", "p", [1.0], gate=2), Row.of("b", "p", [1.0])], file)
    write_rows([Row.of("a", "p", [3.0], gate=2)], file)
    records = json.loads(file.read_text())
    assert [(r["name"], r["median"], r["gate_passed"]) for r in records] == [("b", 1.0, None), ("a", 3.0, True)]
    assert records[0].keys() >= {"name", "peer", "min", "median", "max", "goal", "gate", "gate_passed"}
