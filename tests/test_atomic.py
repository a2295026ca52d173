import pytest

from densesiam_d2.atomic import atomic_write


@pytest.mark.parametrize("many_writers", [False, True])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, many_writers):
    path = tmp_path / "sub" / "w.bin"
    with atomic_write(path, many_writers=many_writers) as file:
        file.write(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path, many_writers=many_writers) as file:
        file.write(b"half of the new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    (tmp_path / ".w.bin.partial").write_bytes(b"longer than the new content")
    with atomic_write(tmp_path / "w.bin") as file:
        file.write(b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("w.bin", b"new")]


def test_many_writers_do_not_share_a_temporary_file(tmp_path):
    path = tmp_path / "w.bin"
    with atomic_write(path, many_writers=True) as first:
        first.write(b"12")
        with atomic_write(path, many_writers=True) as second:  # opens and ends while the first is writing
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"34")
    assert path.read_bytes() == b"1234"
    assert list(tmp_path.iterdir()) == [path]
