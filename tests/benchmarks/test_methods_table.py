"""The tables of the methods' steps for docs/performance.md and docs/methods.md."""

from benchmarks.harness import Row
from benchmarks.methods_table import beside_simsiam, markdown


def row(name, peer, *values):
    return Row.of(name, peer, list(values)).record()


def test_a_line_for_each_step_in_the_order_of_depths_and_segmentation_last():
    step = "SimSiam step R18"
    records = [
        row("IIC step R18", "ours / backbone, FLOPs of the heads counted in", 2.0),
        row("SimSiam step R50", "ours / backbone, FLOPs of the heads counted in", 1.0),
        row("two views, 90 kB", "lightly / ours", 4.0),
        row(step, "ours / backbone, FLOPs of the heads counted in", 1.0, 1.25, 1.125),
        row(step, "FLOPs, ours / backbone", 1.01),
        row(step, "ours / lightly", 0.9),
        row(step, "ours, seconds per pair", 0.25),
        row(step, "lightly, seconds per pair", 0.5),
        row(step, "backbone, peak MiB per pair", 68.2),
    ]
    lines = markdown(records).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| SimSiam, R18", "| SimSiam, R50", "| IIC, R18"]
    assert lines[0] == (
        "| SimSiam, R18 | 0.25 |  | 0.50 | 0.90 (0.90 to 0.90) | 1.12 (1.00 to 1.25) | 1.01 |  | 68 |  |"
    )


def test_steps_beside_simsiam_the_quickest_first_and_what_is_missing():
    records = [
        row("SimSiam step R18", "ours, seconds per pair", 0.5, 0.5, 9.0),
        row("SimSiam step R18", "ours, peak MiB per pair", 80.0),
        row("BYOL step R18", "ours, seconds per pair", 0.125),
        row("BYOL step R18", "ours, peak MiB per pair", 100.0),
        row("BYOL step R50", "ours, seconds per pair", 7.0),
        row("PiCIE step R18", "ours, seconds per pair", 0.25),
    ]
    table = beside_simsiam(records)
    assert table.splitlines()[2:4] == ["| BYOL | 0.12 | 0.25 | 100 | 1.25 |", "| SimSiam | 0.50 | 1.00 | 80 | 1.00 |"]
    assert table.endswith("Not measured: DenseCL, DenseSiam, DetCo, MoCo, PixPro, ReSim, SimCLR, SlotCon.\n")


def test_without_simsiam_the_ratios_are_left_empty():
    records = [
        row("MoCo step R18", "ours, seconds per pair", 0.5),
        row("MoCo step R18", "ours, peak MiB per pair", 80.0),
    ]
    assert "| MoCo | 0.50 |  | 80 |  |" in beside_simsiam(records)
