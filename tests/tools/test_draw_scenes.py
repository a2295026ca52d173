from densesiam_d2.tools import draw_scenes


def test_writes_the_set_and_says_where(tmp_path, capsys):
    assert draw_scenes.main(["--output", str(tmp_path / "out"), "--num", "2", "--size", "64"]) == 0
    assert f"2 scenes of 64 x 64 pixels (seed 0) are in {tmp_path / 'out'}" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2


def test_a_mistake_is_one_line(tmp_path, capsys):
    assert draw_scenes.main(["--output", str(tmp_path / "out"), "--size", "8"]) == 2
    assert "draw_scenes: size=8: scenes need at least 64 pixels" in capsys.readouterr().err
    assert draw_scenes.main(["--output", str(tmp_path / "out"), "--seed", "-1"]) == 2
    assert "draw_scenes: --seed -1 must be 0 or more" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
