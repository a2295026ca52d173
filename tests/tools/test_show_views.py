import re

from PIL import Image

from densesiam_d2.reporting import view_drawing
from densesiam_d2.tools import show_views

from ..data.photos import smooth_image


def test_command(tmp_path, capsys, caplog):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(smooth_image(60, 80, seed=i)).save(tmp_path / "photos" / f"{i}.png")
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\nMODEL:\n  META_ARCHITECTURE: DenseSiam\nINPUT:\n  FORMAT: RGB\n")
    output = tmp_path / "views.png"
    base = ["--config-file", str(config), "--output", str(output)]
    assert show_views.main([*base, "--input", str(tmp_path / "photos"), "--num", "2", "INPUT.SSL.VIEW_SIZE", "32"]) == 0
    assert "2 of 3 images" in capsys.readouterr().out
    (tmp_path / "list.txt").write_text("photos/1.png\n")
    for source, of in ((f"list:{tmp_path}/list.txt", "1 of 1"), (f"folder:{tmp_path}/photos", "3 of 3")):
        assert show_views.main([*base, "--input", source, "INPUT.SSL.VIEW_SIZE", "32"]) == 0
        assert f"{of} images" in capsys.readouterr().out
    show_views.main([*base, "--input", str(tmp_path / "photos"), "--num", "2", "INPUT.SSL.VIEW_SIZE", "32"])
    row = view_drawing.TITLE + view_drawing.HEIGHT + view_drawing.MARGIN
    assert Image.open(output).size[1] == 2 * row
    (tmp_path / "photos" / "0.png").write_bytes(b"no image")
    assert show_views.main([*base, "--input", str(tmp_path / "photos"), "--num", "3", "INPUT.SSL.VIEW_SIZE", "32"]) == 0
    assert Image.open(output).size[1] == 2 * row
    assert f"cannot read {tmp_path}/photos/0.png" in caplog.text
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"no image")
    for words, message in (
        ([*base, "--input", str(tmp_path / "photos")], "none of 3 images can be read"),
        ([*base, "--input", str(tmp_path / "nowhere")], "nowhere does not exist"),
        ([*base, "--input", ""], "nothing for path"),
        (base, r"DATASETS\.TRAIN is empty"),
        ([*base, "INPUT.SSL.VIEW_SIZEE", "3"], r"did you mean INPUT\.SSL\.VIEW_SIZE"),
        ([*base, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "whole images, not on views"),
        ([*base[:2], "--output", str(tmp_path / "views")], "must end like an image"),
        ([*base[:2], "--output", str(tmp_path / "none" / "v.png")], "v.png cannot be written: name a file"),
        ([*base, "--seed", "-1"], "--seed -1 must lie between 0"),
    ):
        assert show_views.main(words) == 2
        assert re.search(f"show_views: (?s:.*){message}", capsys.readouterr().err)
