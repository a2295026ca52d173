import re
import subprocess
import sys

from .runs import ROOT


def test_both_comparisons_run():
    """In small; what they measure is for a machine that does nothing else."""
    words = "--config-file configs/quick/pretrain_instant_test.yaml --blocks 1 --batch 2 --view-size 32"
    command = [sys.executable, "-m", "tests.faults.overhead", *words.split(), "MODEL.DEVICE", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.findall(r"^(\w+): ours/stock min \d", done.stdout, re.MULTILINE) == ["step", "loader"]
