"""Each benchmark runs; how fast is for ``make bench``, on a machine that does nothing else."""

import json

import pytest

from benchmarks.__main__ import BENCHMARKS, main


@pytest.mark.parametrize("name", BENCHMARKS)
def test_it_runs(name, tmp_path, capsys, monkeypatch):
    import torch

    threads = torch.get_num_threads()
    try:
        assert main([name, "--quick", "--output", str(tmp_path / "rows.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows and all(row["min"] <= row["median"] <= row["max"] for row in rows)
    assert rows[0]["name"] in capsys.readouterr().out
