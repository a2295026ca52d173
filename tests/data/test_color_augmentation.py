import colorsys

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from densesiam_d2.data import color_augmentation as color

from .photos import find_photos, smooth_image


@pytest.fixture(scope="module", params=["generated", "real"])
def photos(request):
    if request.param == "generated":
        return [smooth_image(224, 224, seed=i) for i in range(3)]
    return [np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in find_photos(5)]


def difference(ours, theirs):
    return np.abs(ours.astype(int) - np.asarray(theirs).astype(int))


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize(
    ("ours", "pillow"),
    [
        (color.adjust_brightness, ImageEnhance.Brightness),
        (color.adjust_contrast, ImageEnhance.Contrast),
        (color.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_within_a_grey_level_of_pillow(photos, ours, pillow, factor):
    for photo in photos:
        expected = pillow(Image.fromarray(photo)).enhance(factor)
        assert difference(ours(photo, factor), expected).max() <= (1 if factor <= 1 else 2)
        assert difference(ours(photo, factor), expected).mean() <= 0.6


def test_hue_turns_like_the_definition():
    # Saturated colours: red (0 turns) shifted by 1/3 is green, by -1/3 blue; grey stays. One of the 256 steps of the
    # hue moves a channel by 6 * 255 / 256 levels.
    image = np.array([[[255, 0, 0], [128, 128, 128], [200, 100, 50]]], np.uint8)
    assert difference(color.adjust_hue(image, 1 / 3)[0, 0], [0, 255, 0]).max() <= 6
    assert difference(color.adjust_hue(image, -1 / 3)[0, 0], [0, 0, 255]).max() <= 6
    assert difference(color.adjust_hue(image, 0.2)[0, 1], [128, 128, 128]).max() == 0
    h, s, v = colorsys.rgb_to_hsv(200 / 255, 100 / 255, 50 / 255)
    for shift in (-0.5, -0.1, 0.1, 0.5):
        expected = np.array(colorsys.hsv_to_rgb((h + shift) % 1, s, v)) * 255
        assert difference(color.adjust_hue(image, shift)[0, 2], expected).max() <= 4


@pytest.fixture(params=[True, False], ids=["IPP", "OpenCV's own code"])
def conversion(request):
    """Switch between two implementations of colour conversion; the processor decides which of them can be used."""
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(request.param)
    yield
    cv2.ipp.setUseIPP(before)


def test_hue_is_near_an_exact_turn_and_pillow_on_photos(conversion):
    # Hue and shift have 256 steps, so each may be wrong by half a step, 6 * 255 / 256 / 2 levels; saturation and value
    # are rounded too. Pillow rounds the shift down, which is an error of up to one step.
    for file in find_photos(20):
        photo = np.asarray(Image.open(file).convert("RGB"))
        for shift in (-0.1, 0.07, 0.3):
            exact = rgb_to_hsv(photo / 255)
            exact[..., 0] = (exact[..., 0] + shift) % 1
            turned = color.adjust_hue(photo, shift)
            delta = difference(turned, hsv_to_rgb(exact) * 255)
            assert delta.mean() < 1 and delta.max() <= 8
            hsv = np.array(Image.fromarray(photo).convert("HSV"))
            hsv[..., 0] += np.uint8(int(shift * 255) % 256)
            delta = difference(turned, Image.fromarray(hsv, "HSV").convert("RGB"))
            assert delta.mean() < 2 and delta.max() <= 8 + 12


def test_grey_and_solarize_equal_pillow(photos):
    for photo in photos:
        assert (
            difference(color.to_grayscale(photo), ImageOps.grayscale(Image.fromarray(photo)).convert("RGB")).max() <= 1
        )
        assert difference(color.solarize(photo, 128), ImageOps.solarize(Image.fromarray(photo), 128)).max() == 0


def test_blur_of_a_point_is_a_gaussian():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    sigma = 1.5
    y, x = np.mgrid[-20:21, -20:21]
    gauss = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    expected = 255 * gauss / gauss.sum()
    assert difference(color.gaussian_blur(image, sigma)[..., 0], np.rint(expected)).max() <= 1


def test_blur_keeps_a_flat_border():
    image = np.full((9, 9, 3), 77, np.uint8)
    assert np.all(color.gaussian_blur(image, 2.0) == 77)
    image[:, 0] = 200  # with a border of zeros or a mirrored border, the first column would be darker
    assert color.gaussian_blur(image, 1.0)[4, 0, 0] > 150


def test_jitter_joint_and_independent_draws(monkeypatch):
    calls = []
    for name in ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue"):
        monkeypatch.setattr(color, name, lambda image, amount, dst, name=name: calls.append((name, amount)) or image)
    image = np.zeros((2, 2, 3), np.uint8)

    def draw(**kwargs):
        calls.clear()
        color.ColorJitter((0.4, 0.4, 0.2, 0.1), **kwargs).get_transform(image).apply_image(image)
        return list(calls)

    np.random.seed(0)
    joint = [draw(prob=0.8) for _ in range(1000)]
    assert {len(c) for c in joint} == {0, 4}
    assert abs(sum(len(c) == 4 for c in joint) / 1000 - 0.8) < 0.04  # standard error 0.013
    assert len({tuple(name for name, _ in c) for c in joint}) == 24 + 1  # every order, and none
    for name, low, high in (
        ("adjust_brightness", 0.6, 1.4),
        ("adjust_saturation", 0.8, 1.2),
        ("adjust_hue", -0.1, 0.1),
    ):
        amounts = [amount for c in joint for n, amount in c if n == name]
        assert low <= min(amounts) < low + 0.02 * 1.4 and high - 0.02 * 1.4 < max(amounts) <= high
    independent = [draw(prob=0.8, independent=True) for _ in range(1000)]
    assert {len(c) for c in independent} >= {1, 2, 3, 4}
    assert abs(sum(map(len, independent)) / 4000 - 0.8) < 0.03


def test_jitter_in_the_released_order():
    np.random.seed(0)
    jitter = color.ColorJitter((0.3, 0.3, 0.3, 0.1), 0.8, independent=True, random_order=False)
    released = [color.adjust_brightness, color.adjust_contrast, color.adjust_saturation, color.adjust_hue]
    drawn = [[step[0] for step in jitter.get_transform(None).steps] for _ in range(200)]
    assert all(steps == [operation for operation in released if operation in steps] for steps in drawn)
    assert released in drawn


def test_a_shift_of_brightness_by_hand():
    # 0.2 of 255 is 51; 0.05 is 12.75, which is rounded to 13.
    image = np.repeat(np.array([[0, 49, 100, 204, 205, 255]], np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(color.shift_brightness(image, 0.2)[0, :, 0], [51, 100, 151, 255, 255, 255])
    np.testing.assert_array_equal(color.shift_brightness(image, -0.2)[0, :, 2], [0, 0, 49, 153, 154, 204])
    np.testing.assert_array_equal(color.shift_brightness(image, 0.05)[0, :, 1], [13, 62, 113, 217, 218, 255])
    np.testing.assert_array_equal(color.shift_brightness(image, 0.0), image)


def slow_brightness_and_contrast(image, steps):
    """Apply two operations of the jitter pixel by pixel, rounded to whole grey levels after each."""
    values = image.astype(int).tolist()
    for operation, amount in steps:
        pixels = [pixel for row in values for pixel in row]
        mean = sum(0.299 * r + 0.587 * g + 0.114 * b for r, g, b in pixels) / len(pixels)
        for row in values:
            for pixel in row:
                for channel, value in enumerate(pixel):
                    changed = {
                        color.adjust_brightness: amount * value,
                        color.shift_brightness: 255 * amount + value,
                        color.adjust_contrast: amount * value + (1 - amount) * mean,
                    }[operation]
                    pixel[channel] = min(max(round(changed), 0), 255)
    return np.array(values)


# Contrast rounds the mean to a grey level; brightness with a factor up to 1.5 can turn this into two levels.
@pytest.mark.parametrize(
    ("kind", "first", "limit"), [("multiply", color.adjust_brightness, 2), ("add", color.shift_brightness, 1)]
)
@pytest.mark.parametrize("random_order", [False, True])
def test_both_kinds_of_brightness_against_a_slow_version(kind, first, limit, random_order):
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    np.random.seed(0)
    jitter = color.ColorJitter((0.5, 0.4, 0.0, 0.0), 1.0, random_order=random_order, brightness=kind)
    orders = set()
    for _ in range(40):
        transform = jitter.get_transform(image)
        orders.add(tuple(operation for operation, _ in transform.steps))
        expected = slow_brightness_and_contrast(image, transform.steps)
        assert difference(transform.apply_image(image), expected).max() <= limit
    in_order = (first, color.adjust_contrast)
    assert orders == ({in_order, in_order[::-1]} if random_order else {in_order})


def test_the_shift_of_brightness_is_uniform_and_follows_the_seed():
    jitter = color.ColorJitter((0.4, 0.0, 0.0, 0.0), 1.0, brightness="add")

    def shifts(seed):
        np.random.seed(seed)
        return [jitter.get_transform(None).steps[0][1] for _ in range(1000)]

    assert stats.kstest(shifts(0), stats.uniform(-0.4, 0.8).cdf).pvalue > 0.001
    assert shifts(0) == shifts(0) != shifts(1)


def test_of_negative_blurs_the_magnitude_counts():
    # Uniform in [-1.8, 0.1]: the mean magnitude is (1.8^2 + 0.1^2) / (2 * 1.9) = 0.855; deviation of the mean 0.01.
    np.random.seed(0)
    blur = color.RandomGaussianBlur((-1.8, 0.1), 1.0)
    sigmas = [blur.get_transform(None).steps[0][1] for _ in range(3000)]
    assert min(sigmas) > 0 and 1.75 < max(sigmas) <= 1.8
    assert abs(np.mean(sigmas) - 0.855) < 0.04
    image = smooth_image(20, 20)
    np.testing.assert_array_equal(color.gaussian_blur(image, 1e-9), image)  # no visible blur, and no error


def test_color_transforms_leave_coordinates_and_labels_alone():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    augmentations = [
        color.ColorJitter((0.4, 0.4, 0.4, 0.1), 1.0),
        color.RandomGrayscale(1.0),
        color.RandomGaussianBlur((0.1, 2.0), 1.0),
        color.RandomSolarize(1.0),
    ]
    for augmentation in augmentations:
        transform = augmentation.get_transform(image)
        assert isinstance(transform, T.ColorTransform)
        np.testing.assert_array_equal(transform.apply_coords(np.array([[1.5, 2.5]])), [[1.5, 2.5]])
        np.testing.assert_array_equal(transform.apply_segmentation(image[..., 0]), image[..., 0])
        # The transform is fixed after the draw: applied again, it gives the same result.
        np.testing.assert_array_equal(transform.apply_image(image.copy()), transform.apply_image(image.copy()))


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", [color.RandomGrayscale, color.RandomGaussianBlur, color.RandomSolarize])
def test_probabilities(kind, prob):
    np.random.seed(1)
    augmentation = kind(prob=prob)
    done = [bool(augmentation.get_transform(None).steps) for _ in range(1000)]
    assert abs(np.mean(done) - prob) < 0.05


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: color.ColorJitter((0.4, 0.4, 0.4, 0.6)), "strengths"),
        (lambda: color.ColorJitter((0.4, 0.4, 1.4, 0.1)), "strengths"),
        (lambda: color.ColorJitter((-0.4, 0.4, 0.4, 0.1)), "strengths"),
        (lambda: color.ColorJitter((0.4, 0.4, 0.4)), "strengths"),
        (lambda: color.ColorJitter((0.4, 0.4, 0.4, 0.1), brightness="subtract"), "brightness"),
        (lambda: color.ColorJitter((0.4, 0.4, 0.4, 0.1), 1.5), "prob"),
        (lambda: color.RandomGrayscale(1.5), "prob"),
        (lambda: color.RandomGaussianBlur(prob=50), "prob"),
        (lambda: color.RandomSolarize(-0.1), "prob"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(ValueError, match=f"^{name} "):
        make()


def test_blur_is_cut_at_three_sigma():
    assert cv2.getGaussianKernel(2 * 6 + 1, 2.0).shape == (13, 1)
    image = np.zeros((31, 31, 3), np.uint8)
    image[15, 15] = 255
    assert np.all(color.gaussian_blur(image, 2.0)[15, 22:] == 0)
