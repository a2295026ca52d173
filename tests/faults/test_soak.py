from tests.faults.soak import growth, soak, steady_growth


def test_memory_and_files_stay_flat(tmp_path):
    """The 2,000 iterations of ``python -m tests.faults.soak`` in small; in the first 200 the heap still grows."""
    rows = soak(500, tmp_path)
    assert len(rows) == 20 and len(rows[0]["kb"]) == 3
    assert max(steady_growth(rows, "kb")) < 1000  # per 100 iterations; a leaked batch each would be 2,400
    assert max(growth(rows, "files")) <= 0


def test_growth_is_noticed():
    rows = [{"iteration": i, "kb": [100, 100 + 3 * i], "files": [5, 5]} for i in range(0, 400, 25)]
    assert growth(rows, "kb") == steady_growth(rows, "kb") == [0, 300]
    assert growth(rows, "files") == [0, 0]
