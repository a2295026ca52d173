import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from densesiam_d2.data.augmentation import (
    AntialiasedResize,
    AntialiasedResizeTransform,
    CenterSquare,
    CropResizeTransform,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ResizeCenterCrop,
    axis_map,
    cut_patches,
)
from densesiam_d2.geometry import view_box, view_box_of_axis_maps

from .photos import smooth_image


@pytest.mark.parametrize("interp", [Image.BILINEAR, Image.BICUBIC])
def test_resize_equals_pillow(interp):
    image = smooth_image(256, 256)
    crop = image[10:230, 5:200]  # a view into a larger image, as after a crop
    for size in (64, 224, 300):
        ours = AntialiasedResizeTransform(220, 195, size, size, interp).apply_image(crop)
        pillow = np.asarray(Image.fromarray(crop).resize((size, size), interp)).astype(int)
        # Both round after each of the two passes; bicubic overshoots there, so a rare pixel differs by two.
        assert np.abs(ours - pillow).max() <= (1 if interp == Image.BILINEAR else 2)
        assert np.abs(ours - pillow).mean() < 0.05
        assert ours.flags.c_contiguous


def test_resize_of_labels_is_nearest():
    label = np.array([[0, 7], [255, 3]], np.uint8)
    result = AntialiasedResizeTransform(2, 2, 4, 4).apply_segmentation(label)
    np.testing.assert_array_equal(result, label.repeat(2, axis=0).repeat(2, axis=1))


def test_shrinking_without_antialiasing_takes_the_nearest_pixels_only():
    """Against the formula: half-pixel centres, linear between the two pixels around each in either direction."""
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    image[:8] = image[50:] = 0  # outside the crop
    result = CropResizeTransform(5, 8, 42, 42, 16, 16, antialias=False).apply_image(image)
    crop = image[8:50, 5:47].astype(float)
    at = (np.arange(16) + 0.5) * 42 / 16 - 0.5
    low = at.astype(int)
    share = at - low
    rows = crop[low] * (1 - share)[:, None, None] + crop[low + 1] * share[:, None, None]
    expected = rows[:, low] * (1 - share)[:, None] + rows[:, low + 1] * share[:, None]
    assert np.abs(result - expected).max() <= 1  # rounding to whole grey levels
    smooth = CropResizeTransform(5, 8, 42, 42, 16, 16).apply_image(image)
    assert np.abs(smooth - expected).max() > 20  # the image is noise, so an average of more pixels is different


def boxes_of(augmentation, height, width, number, seed=0):
    np.random.seed(seed)
    image = np.zeros((height, width, 3), np.uint8)
    size = augmentation.size
    return np.array([view_box(augmentation.get_transform(image), height, width, size, size) for _ in range(number)])


def test_crop_by_area_stays_in_its_ranges():
    boxes = boxes_of(RandomResizedCrop(32, (0.2, 1.0), (3 / 4, 4 / 3)), 300, 400, 2000)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() > -1e-6 and boxes[:, 2].max() < 400 + 1e-6 and boxes[:, 3].max() < 300 + 1e-6
    area, aspect = w * h / (300 * 400), w / h
    # Rounding to whole pixels moves an edge by half a pixel.
    assert 0.195 < area.min() < 0.25 and area.max() > 0.9
    assert 0.74 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.35
    # log aspect is symmetric around 0 for small crops, which always fit.
    small = area < 0.4
    assert abs(np.log(aspect[small]).mean()) < 0.03


def test_crop_that_does_not_fit_is_cut_to_the_image():
    # A square crop of 80 to 100 % of a 100 x 400 image has a side of 179 to 200 pixels: the height is cut to 100.
    boxes = boxes_of(RandomResizedCrop(32, (0.8, 1.0), (1.0, 1.0), clip=True), 100, 400, 500)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    np.testing.assert_allclose(h, 100, atol=1e-6)
    assert 178.5 < w.min() < 180 and 199 < w.max() < 200.5
    assert boxes[:, 0].min() < 10 and boxes[:, 2].max() > 390  # its place is drawn, not central
    redrawn = boxes_of(RandomResizedCrop(32, (0.8, 1.0), (1.0, 1.0)), 100, 400, 5)
    np.testing.assert_allclose(redrawn, [[150, 0, 250, 100]] * 5, atol=1e-6)


def test_crop_by_side_is_uniform_in_the_side():
    # The released segmentation recipe: side U(0.5, 1) of 640, square. Mean side 0.75 * 640 = 480; standard deviation
    # 640 * 0.5 / sqrt(12) = 92.4, so the mean of 2000 has a standard error of 2.1.
    boxes = boxes_of(RandomResizedCrop(32, (0.5, 1.0), (1.0, 1.0), "side"), 640, 640, 2000)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    np.testing.assert_allclose(w, h)
    assert w.min() >= 320 - 1e-6 and w.max() <= 640 + 1e-6
    assert abs(w.mean() - 480) < 8 and abs(w.std() - 92.4) < 4
    # In an oblong image the short side counts.
    wide = boxes_of(RandomResizedCrop(32, (0.5, 1.0), (1.0, 1.0), "side"), 100, 900, 50)
    assert (wide[:, 2] - wide[:, 0]).max() <= 100


def test_crop_by_pixels_is_as_large_as_the_image_allows():
    # IIC: crops of 388 pixels. Their places are spread evenly: x0 from 0 to 640 - 388 = 252, mean 126, with a standard
    # deviation of 252 / sqrt(12) = 72.7, so the mean of 400 has a standard error of 3.6.
    augmentation = RandomResizedCrop(128, (388, 388), (1.0, 1.0), "pixels")
    boxes = boxes_of(augmentation, 480, 640, 400)
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], 388)
    assert abs(boxes[:, 0].mean() - 126) < 15 and boxes[:, 0].min() < 20 and boxes[:, 0].max() > 232
    short = boxes_of(augmentation, 360, 640, 50)  # not central: x0 from 0 to 280
    np.testing.assert_allclose(short[:, 2:] - short[:, :2], 360)
    assert short[:, 0].min() < 60 and short[:, 0].max() > 220


def test_crop_of_a_long_image_is_central():
    # No crop of 20 % of 10 x 1000 with aspect <= 4/3 fits; the largest central crop of that aspect is 13 x 10.
    boxes = boxes_of(RandomResizedCrop(8), 10, 1000, 3)
    np.testing.assert_allclose(boxes, [[493, 0, 506, 10]] * 3, atol=1e-6)
    np.testing.assert_allclose(boxes_of(RandomResizedCrop(8), 1, 1, 2), [[0, 0, 1, 1]] * 2, atol=1e-6)


def test_center_crop():
    # 480 x 640: the short side 480 becomes 320, the long one 640 * 2/3 = 426 (cut off); the crop starts at 53 of them,
    # which is 53 * 640 / 426 = 79.62 original pixels.
    augmentation = ResizeCenterCrop(320)
    transforms = augmentation.get_transform(np.zeros((480, 640, 3), np.uint8))
    assert transforms.apply_image(np.zeros((480, 640, 3), np.uint8)).shape == (320, 320, 3)
    box = view_box(transforms, 480, 640, 320, 320)
    np.testing.assert_allclose(box, [53 * 640 / 426, 0, 373 * 640 / 426, 480])
    label = np.zeros((480, 640), np.uint8)
    label[:, 320:] = 9
    cropped = transforms.apply_segmentation(label)
    assert cropped.shape == (320, 320) and set(np.unique(cropped)) == {0, 9}
    tall = view_box(augmentation.get_transform(np.zeros((640, 480, 3), np.uint8)), 640, 480, 320, 320)
    np.testing.assert_allclose(tall, [0, 53 * 640 / 426, 480, 373 * 640 / 426])


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(
    "augmentations",
    [
        [RandomResizedCrop(64)],
        [CenterSquare(), AntialiasedResize(64)],
        [ResizeCenterCrop(200), RandomResizedCrop(64)],
        [T.RandomFlip(prob=1.0), T.Resize((64, 64)), T.RandomCrop("absolute", (50, 40))],
    ],
)
def test_axis_maps_give_the_box_of_the_transforms(augmentations, flip):
    image = np.zeros((300, 400, 3), np.uint8)
    applied = T.AugmentationList([*augmentations, RandomHorizontalFlip(flip)])(T.AugInput(image))
    transforms = T.TransformList([applied])
    box = view_box_of_axis_maps(map(axis_map, transforms.transforms), 64, 48)
    np.testing.assert_allclose(box, view_box(transforms, 300, 400, 64, 48), rtol=1e-12, atol=1e-10)


def test_other_transforms_have_no_axis_map():
    class Moved(type(RandomHorizontalFlip(1.0).get_transform(np.zeros((2, 2, 3), np.uint8)))):
        def apply_coords(self, coords):
            return coords + 1

    assert axis_map(Moved(5)) is None and axis_map(T.RotationTransform(4, 4, 90)) is None


def test_flip_is_a_flip_and_contiguous():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    transform = RandomHorizontalFlip(1.0).get_transform(image)
    np.testing.assert_array_equal(transform.apply_image(image), image[:, ::-1])
    assert transform.apply_image(image).flags.c_contiguous
    np.testing.assert_array_equal(transform.apply_coords(np.array([[1.0, 0.5]])), [[3.0, 0.5]])
    assert isinstance(RandomHorizontalFlip(0.0).get_transform(image), T.NoOpTransform)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 0.2)),
        ("aspect", (0.0, 1.0)),
        ("aspect", (2.0, 1.0)),
        ("scale_of", "volume"),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} "):
        RandomResizedCrop(32, **{name: value})


def test_patches_are_whole_squares_of_their_cells_in_any_order_and_place():
    """A view whose pixels say where they are: 20 x 20, so cells of 6 pixels and two rows and columns outside."""
    y, x = np.mgrid[:20, :20]
    view = np.stack([y, x, y * 20 + x], axis=2).astype(np.int32)
    orders, places = set(), set()
    np.random.seed(0)
    for _ in range(200):
        patches = cut_patches(view, 3, 4)
        assert patches.shape == (9, 4, 4, 3)
        tops, lefts = patches[:, 0, 0, 0], patches[:, 0, 0, 1]
        np.testing.assert_array_equal(patches[..., 0] - tops[:, None, None], np.mgrid[:4, :4][0][None].repeat(9, 0))
        np.testing.assert_array_equal(patches[..., 1] - lefts[:, None, None], np.mgrid[:4, :4][1][None].repeat(9, 0))
        cells = tops // 6 * 3 + lefts // 6
        assert sorted(cells.tolist()) == list(range(9)) and (tops % 6 <= 2).all() and (lefts % 6 <= 2).all()
        orders.add(tuple(cells.tolist()))
        places.update(zip((tops % 6).tolist(), (lefts % 6).tolist(), strict=True))
    assert len(orders) > 190  # of 362,880
    assert places == {(i, j) for i in range(3) for j in range(3)}
