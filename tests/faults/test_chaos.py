from tests.faults import chaos


def test_two_kills():
    """A person runs ``python -m tests.faults.chaos --kills 50`` for minutes; this shows that the command works."""
    assert chaos.main(["--kills", "2", "--iterations", "120", "--max-seconds", "1"]) == 0
