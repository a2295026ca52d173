import pytest

from densesiam_d2.reporting.metric_texts import COLLAPSE, GROUPS, LOSSES, OTHER, PROBE, SCORES, meaning_of


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("total_loss", LOSSES),
        ("loss_pixel_aux", LOSSES),
        ("loss_of_a_new_method", LOSSES),
        ("ssl/between", COLLAPSE),
        ("probe/ridge/mIoU", PROBE),
        ("probe/anything", PROBE),
        ("bbox/AP50", SCORES),
        ("my_set/segm/AP", SCORES),
        ("monitor/mIoU", SCORES),
        ("sem_seg/used_clusters", SCORES),
        ("never_heard_of", OTHER),
    ],
)
def test_groups(name, group):
    meaning = meaning_of(name)
    assert meaning.group == group and group in GROUPS and meaning.text.endswith(".")


@pytest.mark.parametrize("name", ["eta_seconds", "ssl/z_std_ideal", "segm/AP-cat", "sem_seg/IoU-sky"])
def test_numbers_without_a_curve(name):
    assert meaning_of(name) is None
