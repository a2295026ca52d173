import logging

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from PIL import Image

from densesiam_d2.config import add_densesiam_config
from densesiam_d2.data.augmentation import AntialiasedResizeTransform
from densesiam_d2.data.color_augmentation import gaussian_blur
from densesiam_d2.data.two_view_mapper import TwoViewDatasetMapper, collate_views
from densesiam_d2.geometry import grid_points, overlap_boxes, overlap_grids, sample
from densesiam_d2.layers import apply_color_steps

from .photos import find_photos, smooth_image

LEVELS = 3  # grey levels per pixel of the painted image
GEOMETRY_ONLY = [
    *("JITTER_PROB", 0.0, "GRAYSCALE_PROB", 0.0, "BLUR_PROB", [0.0, 0.0], "SOLARIZE_PROB", [0.0, 0.0]),
    *("VIEW_SIZE", 24),
]


def make_cfg(*ssl_options):
    cfg = get_cfg()
    add_densesiam_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    for key, value in zip(ssl_options[::2], ssl_options[1::2], strict=True):
        cfg.INPUT.SSL[key] = value
    return cfg


def paint_coordinates(height, width):
    """Red is x, green is y of the pixel, times LEVELS; a side has at most 85 pixels, because values end at 255."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0] = np.arange(width) * LEVELS
    image[:, :, 1] = np.arange(height)[:, None] * LEVELS
    return image


def seen_points(view, grid):
    """The original-image coordinates that a view shows at a grid: (S, S, 2)."""
    values = sample(view[None].float(), grid)[0, :2]
    return values.permute(1, 2, 0) / LEVELS + 0.5  # pixel i has its centre at i + 0.5


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("FLIP_PROB", 1.0),
        ("SAME_FLIP", True),
        ("SAME_FLIP", True, "PRE_CROP", 40, "COLOR_FIRST", True),
        ("VIEWS", ["crop", "full"], "FLIP_PROB", 1.0),
        ("VIEWS", ["full", "crop"], "INTERPOLATION", "bicubic"),
        ("PRE_CROP", 40, "VIEWS", ["crop", "full"], "CROP_SCALE_OF", "side", "CROP_SCALE", [0.5, 1.0]),
        ("PRE_CROP", 100, "MIN_OVERLAP", 0.3),
        ("VIEWS", ["crop", "same"], "PRE_CROP", 40),
        ("VIEWS", ["crop", "same"], "CROP_SCALE", [30.0, 40.0], "CROP_SCALE_OF", "pixels", "COLOR_FIRST", True),
    ],
)
def test_both_views_show_the_same_points(options):
    mapper = TwoViewDatasetMapper(make_cfg(*GEOMETRY_ONLY, *options))
    np.random.seed(0)
    checked = flips = 0
    for height, width in [(64, 84), (84, 50)] * 30:
        out = mapper.make_views(paint_coordinates(height, width))
        boxes1, boxes2 = out["view_boxes"][:1], out["view_boxes"][1:]
        flips += int((out["view_boxes"][:, 0] > out["view_boxes"][:, 2]).sum())
        grid1, grid2, valid = overlap_grids(boxes1, boxes2, 7)
        # Near the border of a view the resize filters are cut off, so values are not linear in the coordinates there.
        inside = (grid1[0].abs().amax(-1) < 0.85) & (grid2[0].abs().amax(-1) < 0.85) & valid
        overlap, _ = overlap_boxes(boxes1, boxes2)
        if boxes1[0, 0] > boxes1[0, 2]:
            overlap = overlap[:, [2, 1, 0, 3]]
        true = grid_points(overlap, 7)[0][inside]
        points1 = seen_points(out["views"][0], grid1)[inside]
        points2 = seen_points(out["views"][1], grid2)[inside]
        # Views are rounded to whole grey levels (1/6 pixel), twice with PRE_CROP. Half a view pixel is 0.5 to 1.7
        # pixels.
        assert torch.allclose(points1, true, atol=0.4)
        assert torch.allclose(points2, true, atol=0.4)
        checked += int(inside.sum())
    assert checked > 500
    assert flips > 10


def test_same_flip_is_drawn_once_per_image():
    """Both views of an image are flipped or neither is; without the key all four combinations occur."""
    image = paint_coordinates(64, 84)
    flips = {}
    for same in (True, False):
        mapper = TwoViewDatasetMapper(make_cfg(*GEOMETRY_ONLY, "SAME_FLIP", same))
        np.random.seed(0)
        boxes = [mapper.make_views(image)["view_boxes"].tolist() for _ in range(40)]
        flips[same] = {(first[0] > first[2], second[0] > second[2]) for first, second in boxes}
    assert flips[True] == {(False, False), (True, True)}
    assert flips[False] == {(a, b) for a in (False, True) for b in (False, True)}


def test_the_same_crop_changes_in_view_2_only():
    """View 1 shows the pixels of the crop. View 2 is their negative, flipped or not by a draw of its own."""
    colors = ("JITTER_PROB", 0.0, "GRAYSCALE_PROB", 0.0, "BLUR_PROB", [0.0, 0.0], "SOLARIZE_PROB", [1.0, 1.0])
    cfg = make_cfg(*colors, "VIEWS", ["crop", "same"], "VIEW_SIZE", 40, "CROP_SCALE_OF", "pixels")
    cfg.INPUT.SSL.CROP_SCALE, cfg.INPUT.SSL.CROP_ASPECT = [40.0, 40.0], [1.0, 1.0]  # pixels are copied, not resized
    mapper, image = TwoViewDatasetMapper(cfg), paint_coordinates(64, 84) // LEVELS + 150  # 128 and above is solarised
    np.random.seed(0)
    flips, corners = [], set()
    for _ in range(40):
        out = mapper.make_views(image)
        (x0, y0, x1, y1), box2 = out["view_boxes"].round().int().tolist()
        crop = torch.from_numpy(image[y0:y1, x0:x1]).permute(2, 0, 1)
        flips.append(box2[0] > box2[2])
        assert (x1 - x0, y1 - y0) == (40, 40) and box2 == ([x1, y0, x0, y1] if flips[-1] else [x0, y0, x1, y1])
        assert torch.equal(out["views"][0], crop)
        assert torch.equal(out["views"][1], 255 - (crop.flip(2) if flips[-1] else crop))
        corners.add((x0, y0))
    assert 10 < sum(flips) < 30 and len(corners) > 30


def test_blur_first_comes_before_the_colors():
    kinds = {}
    for first in (True, False):
        mapper = TwoViewDatasetMapper(make_cfg("BLUR_FIRST", first))
        kinds[first] = [[type(augmentation).__name__ for augmentation in view] for view in mapper.photometric]
    colors, blur, solarize = ["ColorJitter", "RandomGrayscale"], ["RandomGaussianBlur"], ["RandomSolarize"]
    assert kinds == {True: [blur + colors + solarize] * 2, False: [colors + blur + solarize] * 2}


def test_full_view_and_pre_crop_boxes():
    # With COLOR_FIRST the image is resized before the crop: 640 becomes 426 (cut off), of which 53 to 373 remain.
    for color_first, x0, x1 in ((False, 80.0, 560.0), (True, 53 * 640 / 426, 373 * 640 / 426)):
        options = ("PRE_CROP", 320, "VIEWS", ["full", "full"], "VIEW_SIZE", 160, "COLOR_FIRST", color_first)
        out = TwoViewDatasetMapper(make_cfg(*options)).make_views(np.zeros((480, 640, 3), np.uint8))
        torch.testing.assert_close(out["view_boxes"], torch.tensor([[x0, 0, x1, 480]]).repeat(2, 1))
    mapper = TwoViewDatasetMapper(make_cfg("VIEWS", ["full", "full"], "VIEW_SIZE", 160))
    out = mapper.make_views(np.zeros((480, 640, 3), np.uint8))
    torch.testing.assert_close(out["view_boxes"], torch.tensor([[0.0, 0, 640, 480]]).repeat(2, 1))


def test_color_first_changes_colors_before_the_views():
    # One blurred pixel: at 80 pixels before a view of half the size, or in the view itself.
    image = np.zeros((80, 80, 3), np.uint8)
    image[40, 40] = 255
    only_blur = ("BLUR_PROB", [1.0, 1.0], "BLUR_SIGMA", [2.0, 2.0], "JITTER_PROB", 0.0, "GRAYSCALE_PROB", 0.0)
    views = {}
    for first in (False, True):
        cfg = make_cfg(*only_blur, "PRE_CROP", 80, "VIEWS", ["full", "full"], "VIEW_SIZE", 40, "COLOR_FIRST", first)
        before = image.copy()
        views[first] = TwoViewDatasetMapper(cfg).make_views(image)["views"][0, 0].double()
        np.testing.assert_array_equal(image, before)
    reach = {first: int((view[20] > 0).sum()) for first, view in views.items()}
    assert reach[True] < reach[False]  # a blur of 2 pixels before halving is one of 1 pixel after it
    blurred = gaussian_blur(image, 2.0)
    expected = AntialiasedResizeTransform(80, 80, 40, 40, Image.BILINEAR).apply_image(blurred)[..., 0]
    np.testing.assert_array_equal(views[True].numpy(), expected)


def test_augmentations_of_the_users_own_kind():
    """detectron2 itself applies lists and augmentations that override ``__call__``; the given image is not changed."""
    swap = T.ColorTransform(lambda image: image[:, :, ::-1])
    mapper = TwoViewDatasetMapper(
        pre_crop=[],
        geometric=[[T.AugmentationList([T.Resize((8, 8))])], []],
        photometric=[[swap], [T.RandomApply(swap, 1.0)]],
        redraw=False,
    )
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    before = image.copy()
    views = mapper.make_views(image)["views"].permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(views, np.stack([image[:, :, ::-1]] * 2))


def overlaps(number, **kwargs):
    options = [item for pair in kwargs.items() for item in pair]
    mapper = TwoViewDatasetMapper(make_cfg(*GEOMETRY_ONLY, "CROP_SCALE", [0.05, 0.1], *options))
    np.random.seed(3)
    boxes = torch.stack([mapper.make_views(np.zeros((64, 64, 3), np.uint8))["view_boxes"] for _ in range(number)])
    return overlap_boxes(boxes[:, 0], boxes[:, 1])[1]


def test_min_overlap_redraws_the_second_view():
    free = overlaps(200, MIN_OVERLAP=0.0)
    drawn = overlaps(200, MIN_OVERLAP=0.01)
    share = (free < 0.01).float().mean()
    assert share > 0.4  # crops of 5-10 % of the area mostly miss each other
    # If all first views had the same chance, ten draws would all miss with probability 0.62 ** 10 = 0.8 %. Views that
    # overlap a first view in a corner are rarer.
    assert (drawn < 0.01).float().mean() < 0.1


def test_min_overlap_gives_up_after_ten_draws(monkeypatch):
    mapper = TwoViewDatasetMapper(make_cfg(*GEOMETRY_ONLY, "CROP_SCALE", [0.05, 0.1], "MIN_OVERLAP", 1.0))
    calls = []
    draw = mapper._draw_view
    monkeypatch.setattr(mapper, "_draw_view", lambda index, *args: calls.append(index) or draw(index, *args))
    mapper.make_views(np.zeros((64, 64, 3), np.uint8))
    assert calls == [0] + [1] * 10


def test_output_and_determinism():
    files = find_photos(4)
    mapper = TwoViewDatasetMapper(make_cfg())

    def run(seed):
        np.random.seed(seed)
        return collate_views([mapper({"file_name": str(file), "annotations": [{}]}) for file in files])

    batch = run(1)
    assert set(batch) == {"views", "view_boxes", "file_name"}
    assert batch["views"].shape == (4, 2, 3, 224, 224) and batch["views"].dtype == torch.uint8
    assert batch["view_boxes"].shape == (4, 2, 4) and batch["view_boxes"].dtype == torch.float32
    assert batch["file_name"] == [str(file) for file in files]
    assert torch.equal(run(1)["views"], batch["views"]) and torch.equal(run(1)["view_boxes"], batch["view_boxes"])
    assert not torch.equal(run(2)["views"], batch["views"])
    single = mapper({"file_name": str(files[0])})
    assert single["views"].shape == (2, 3, 224, 224) and single["view_boxes"].shape == (2, 4)


def test_collate_keeps_pixels_and_memory_order():
    views = [torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8).permute(0, 3, 1, 2) for _ in range(3)]
    batch = collate_views([{"views": v, "view_boxes": torch.zeros(2, 4), "file_name": "x"} for v in views])
    assert torch.equal(batch["views"], torch.stack(views))
    assert batch["views"].stride() == (120, 60, 1, 12, 3)  # channels-last: of 2 x 5 x 4 pixels x 3 channels
    assert batch["view_boxes"].is_contiguous()


def test_collate_stacks_whatever_a_mapper_returns():
    """Keys that :class:`TwoViewDatasetMapper` does not have, such as the nine patches of a jigsaw puzzle."""
    rng = np.random.default_rng(0)
    patches = [torch.from_numpy(rng.integers(0, 256, (9, 6, 6, 3), dtype=np.uint8)).permute(0, 3, 1, 2)] * 2
    orders = [rng.permutation(9), rng.permutation(9)]
    samples = [
        {
            "patches": patches[i],
            "order": orders[i],
            "number": i,
            "score": 0.5 * i,
            "numpy_number": np.float32(i),
            "flipped": np.bool_(i),
            "file_name": f"{i}.jpg",
            "boxes": [[0, 1]] * i,  # of another number in each image
        }
        for i in range(2)
    ]
    batch = collate_views(samples)
    assert set(batch) == set(samples[0])
    assert torch.equal(batch["patches"], torch.stack(patches)) and batch["patches"].stride()[2] == 1
    assert torch.equal(batch["order"], torch.from_numpy(np.stack(orders)))
    assert batch["number"].dtype == torch.int64 and batch["number"].tolist() == [0, 1]
    assert batch["score"].tolist() == [0, 0.5]
    assert batch["numpy_number"].dtype == torch.float32 and batch["numpy_number"].tolist() == [0, 1]
    assert batch["flipped"].dtype == torch.bool and batch["flipped"].tolist() == [False, True]
    assert batch["file_name"] == ["0.jpg", "1.jpg"] and batch["boxes"] == [[], [[0, 1]]]


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({"mask": torch.zeros(3)}, "under 'mask' cannot be stacked"),
        ({"mask": None}, "under 'mask' cannot be stacked"),
        ({}, r"these keys for all images of a batch: \['mask'\]"),
        ({"mask": torch.zeros(2), "label": 3}, r"these keys for all images of a batch: \['label'\]"),
    ],
)
def test_collate_names_the_key_that_cannot_be_stacked(second, text):
    with pytest.raises(ValueError, match=text):
        collate_views([{"mask": torch.zeros(2)}, second])


def test_per_view_probabilities():
    # View 1 is never, view 2 always solarised: 200 -> 55.
    mapper = TwoViewDatasetMapper(make_cfg(*GEOMETRY_ONLY, "SOLARIZE_PROB", [0.0, 1.0]))
    views = mapper.make_views(np.full((40, 40, 3), 200, np.uint8))["views"]
    assert torch.all(views[0] == 200) and torch.all(views[1] == 55)


def test_brightness_of_the_config_reaches_the_views():
    # A black image times a factor is black. A shift, if it is positive, makes it grey, up to 0.4 * 255 = 102.
    values = {}
    for kind in ("multiply", "add"):
        options = ("JITTER", [0.4, 0.0, 0.0, 0.0], "JITTER_PROB", 1.0, "JITTER_BRIGHTNESS", kind)
        mapper = TwoViewDatasetMapper(make_cfg(*GEOMETRY_ONLY, *options))
        np.random.seed(0)
        views = [mapper.make_views(np.zeros((40, 40, 3), np.uint8))["views"] for _ in range(20)]
        values[kind] = torch.cat(views).flatten(1).unique(dim=1)
    assert (values["multiply"] == 0).all()
    assert 90 < values["add"].max() <= 102 and 10 < (values["add"] > 0).sum() < 30


def test_user_augmentations_and_rotation():
    class Rotate(T.Augmentation):
        def get_transform(self, image):
            return T.RotationTransform(*image.shape[:2], 10)

    resize = AntialiasedResizeTransform(40, 40, 16, 16)
    good = [[resize], [T.VFlipTransform(40), resize]]
    mapper = TwoViewDatasetMapper(pre_crop=[], geometric=good, photometric=[[], []])
    boxes = mapper.make_views(np.zeros((40, 40, 3), np.uint8))["view_boxes"]
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 0, 40, 40], [0, 40, 40, 0]]))
    mapper = TwoViewDatasetMapper(pre_crop=[], geometric=[[resize], [Rotate()]], photometric=[[], []])
    with pytest.raises(ValueError, match="axis-aligned"):
        mapper.make_views(np.zeros((40, 40, 3), np.uint8))


def test_grey_and_tiny_files(tmp_path):
    mapper = TwoViewDatasetMapper(make_cfg("VIEW_SIZE", 16))
    for size in [(1, 1), (3, 200), (40, 30)]:
        Image.new("L", size, 90).save(tmp_path / "a.png")
        assert mapper({"file_name": str(tmp_path / "a.png")})["views"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"geometric": [[]]}, "one list for each of the two views, got 1 and 2"),
        ({"photometric": [[], [], []]}, "one list for each of the two views, got 2 and 3"),
        ({"min_overlap": 2.0}, "min_overlap 2.0 is not a fraction"),
    ],
)
def test_bad_arguments_are_named(arguments, text):
    arguments = {"pre_crop": [], "geometric": [[], []], "photometric": [[], []], **arguments}
    with pytest.raises(ValueError, match=text):
        TwoViewDatasetMapper(**arguments)


def test_augmentations_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        TwoViewDatasetMapper(make_cfg())
    assert "Augmentations of view 2" in caplog.text and "RandomGaussianBlur" in caplog.text


def test_patches_are_cut_from_the_finished_views():
    """Patches as large as their cells: each view is its four patches, put together in some order."""
    mapper = TwoViewDatasetMapper(make_cfg("VIEW_SIZE", 24, "PATCH_GRID", 2, "PATCH_SIZE", 12))
    np.random.seed(0)
    out = mapper.make_views(paint_coordinates(64, 84))
    assert out["patches"].shape == (2, 4, 3, 12, 12) and out["patches"].dtype == torch.uint8
    for view, patches in zip(out["views"], out["patches"], strict=True):
        cells = [view[:, y : y + 12, x : x + 12] for y in (0, 12) for x in (0, 12)]
        assert sorted(c.flatten().tolist() for c in cells) == sorted(p.flatten().tolist() for p in patches)
    assert "patches" not in TwoViewDatasetMapper(make_cfg("VIEW_SIZE", 24)).make_views(paint_coordinates(64, 84))


@pytest.mark.parametrize("options", [(), ("BLUR_FIRST", True, "JITTER_BRIGHTNESS", "add"), ("VIEWS", ["crop", "same"])])
def test_colors_on_the_device_are_the_draws_of_the_worker(options):
    """The same seed gives the same boxes and, after all steps, nearly the same pixels as changes in the worker."""
    options = (*options, "VIEW_SIZE", 48, "SOLARIZE_PROB", [0.3, 0.3])
    here, there = (TwoViewDatasetMapper(make_cfg(*options, "COLOR_ON_DEVICE", on)) for on in (False, True))
    cv2.ipp.setUseIPP(False)  # as __call__ does
    image, numbers = smooth_image(80, 100), set()
    for seed in range(40):
        np.random.seed(seed)
        expected = here.make_views(image)
        np.random.seed(seed)
        sample = there.make_views(image)
        assert torch.equal(sample["view_boxes"], expected["view_boxes"])
        assert sample["color_steps"].shape == (2, 7, 2) and "color_steps" not in expected
        views = apply_color_steps(sample["views"], sample["color_steps"])
        # A later step can turn one grey level into more, and solarisation one near its threshold into a jump.
        delta = (views.int() - expected["views"].int()).abs()
        assert delta.float().mean() < 0.6 and (delta > 4).float().mean() < 0.03
        numbers |= set(sample["color_steps"][..., 0].flatten().tolist())
    assert len(numbers) == 8  # none, and all operations with one kind of brightness


def test_colors_on_the_device_refuse_other_transforms():
    swap = T.ColorTransform(lambda image: image[:, :, ::-1])
    resize = T.Resize((8, 8))
    mapper = TwoViewDatasetMapper(
        pre_crop=[], geometric=[[resize], [resize]], photometric=[[], [swap]], color_on_device=True
    )
    with pytest.raises(ValueError, match="COLOR_ON_DEVICE needs transforms of the type ColorSteps"):
        mapper.make_views(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("key", "attribute", "other"),
    [
        ("CROP_ANTIALIAS", "antialias", False),
        ("CROP_CLIP", "clip", True),
        ("CROP_SCALE_OF", "scale_of", "side"),
        ("JITTER_INDEPENDENT", "independent", True),
        ("JITTER_RANDOM_ORDER", "random_order", False),
        ("JITTER_BRIGHTNESS", "brightness", "add"),
    ],
)
def test_augmentations_get_their_keys(key, attribute, other):
    """The key changes this attribute of the augmentations and no other."""

    def attributes(*options):
        mapper = TwoViewDatasetMapper(make_cfg(*options))
        return [vars(aug) for i in range(2) for aug in [*mapper.geometric[i], *mapper.photometric[i]]]

    changed = 0
    for stock, ours in zip(attributes(), attributes(key, other), strict=True):
        differing = {name for name in stock if stock[name] != ours[name]}
        assert differing <= {attribute}
        changed += len(differing)
        assert attribute not in differing or ours[attribute] == other
    assert changed == 2  # one in each view
