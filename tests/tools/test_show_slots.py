"""The picture of slots: image scores by hand, the choice of slots and images, the drawing, and the command."""

import re

import pytest
import torch
from PIL import Image

from densesiam_d2.modeling.meta_arch import SlotCon
from densesiam_d2.reporting import slot_drawing
from densesiam_d2.tools.show_slots import best_images, image_scores, main
from tests.data.photos import smooth_image
from tests.modeling.meta_arch.tiny import method_cfg, tiny_model


def maps(*rows):
    """Scores (1, K, 1, w) from one row of pixels per slot."""
    return torch.tensor(rows)[None, :, None, :]


def test_image_scores_by_hand():
    # Slot 0 wins pixels 0 and 1: (0.9 + 0.5) / 2. Slot 1 wins pixel 2: 0.4. Slot 2 wins none: the mean of all, 0.1.
    scores = image_scores(maps([0.9, 0.5, -1.0], [0.1, 0.2, 0.4], [0.0, 0.3, 0.0]))
    assert scores[0].tolist() == pytest.approx([0.7, 0.4, 0.1], abs=1e-4)


def test_slots_with_the_most_pixels_and_their_best_images():
    # Slot 2 wins all three pixels of image a and one of image b, slot 0 two of b. Slot 1 wins none and is left out.
    # Slot 2 in a: (0.3 + 0.3 + 0.3) / 3 = 0.3, in b: 0.8. Slot 0 in b: 0.5, in a: 0.1.
    images = {
        "a": maps([0.1, 0.1, 0.1], [0.0, 0.0, 0.0], [0.3, 0.3, 0.3]),
        "b": maps([0.5, 0.5, 0.1], [0.0, 0.0, 0.0], [0.2, 0.2, 0.8]),
    }

    def scorer(record):
        return None, images[record["file_name"]]

    records = [{"file_name": name} for name in images]
    assert best_images(scorer, records, top=5, num=3) == ([(2, [1, 0]), (0, [1, 0])], [])
    assert best_images(scorer, records, top=1, num=1) == ([(2, [1])], [])


def test_command(tmp_path, capsys):
    cfg = method_cfg(SlotCon)
    cfg.INPUT.FORMAT, cfg.INPUT.SSL.VIEW_SIZE = "RGB", 96
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": tiny_model(cfg).state_dict(), "iteration": 9}, tmp_path / "model.pth")
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(smooth_image(60, 80, seed=i)).save(tmp_path / "photos" / f"{i}.png")
    base = ["--config-file", str(tmp_path / "config.yaml"), "--weights", str(tmp_path / "model.pth")]
    inputs = ["--input", str(tmp_path / "photos")]
    assert main([*base, *inputs, "--output", str(tmp_path / "slots.png"), "--num", "1", "--top", "2"]) == 0
    assert "1 of 12 slots drawn" in capsys.readouterr().out
    (tmp_path / "photos" / "0.png").write_bytes(b"no image")  # the first: numbers of images must not move
    assert main([*base, *inputs, "--output", str(tmp_path / "slots.png"), "--num", "1", "--top", "3"]) == 0
    assert re.search(r"from 2 images\n.*left out: 1, such as: .*0\.png", capsys.readouterr().out)
    width = slot_drawing.MARGIN + 2 * (slot_drawing.SIDE + 4)
    assert Image.open(tmp_path / "slots.png").size == (width, slot_drawing.SIDE + 8)

    output = ["--output", str(tmp_path / "slots.png")]
    for words, message in (
        ([*base, *inputs, "--output", "slots"], "must end like an image"),
        ([*base, *inputs, "--output", str(tmp_path / "no" / "slots.png")], "slots.png cannot be written"),
        ([*base, *output, "--input", str(tmp_path / "nowhere")], "nowhere does not exist"),
        ([*base, *output], r"DATASETS\.TRAIN is empty"),
        ([*base, *inputs, *output, "MODEL.META_ARCHITECTURE", "BYOL"], "trains BYOL, which has no slots"),
        ([*base, *inputs, *output, "MODEL.SLOTCON.SLOTS", "9"], r"model\.pth: center is \(12,\), but \(9,\)"),
    ):
        assert main(words) == 2
        assert re.search(f"show_slots: (?s:.*){message}", capsys.readouterr().err)
