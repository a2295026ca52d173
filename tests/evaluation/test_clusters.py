import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from densesiam_d2.evaluation.clusters import ClusterSemSegEvaluator
from tests.evaluation.processes import in_two_processes


@pytest.fixture
def dataset():
    name = "test_hungarian"
    MetadataCatalog.get(name).set(
        stuff_classes=["car", "road", "sky"], ignore_label=255, thing_ids=[0], stuff_ids=[1, 2]
    )
    yield name
    MetadataCatalog.remove(name)


def run(evaluator, labels, predicted, num_clusters):
    for i, (target, ids) in enumerate(zip(labels, predicted, strict=True)):
        logits = torch.nn.functional.one_hot(torch.as_tensor(ids).long(), num_clusters).permute(2, 0, 1).float()
        evaluator.process([{"file_name": f"{i}.jpg", "sem_seg_target": target}], [{"sem_seg": logits}])
    return evaluator.evaluate()["sem_seg"]


@pytest.mark.parametrize("num_clusters", [3, 4, 7])
def test_any_renaming_of_the_truth_gives_100(dataset, num_clusters):
    generator = torch.Generator().manual_seed(num_clusters)
    labels = torch.randint(0, 3, (2, 9, 11), generator=generator)
    labels[0, 0] = 255
    renaming = torch.randperm(num_clusters, generator=generator)
    predicted = renaming[labels.clamp(max=2)]
    result = run(ClusterSemSegEvaluator(dataset), labels, predicted, num_clusters)
    assert result["mIoU"] == result["pACC"] == result["mACC"] == 100
    assert result["mIoU_th_full"] == result["mIoU_st_block"] == 100
    assert result["used_clusters"] == 3


def test_collapse_unmatched_clusters_and_file(dataset, tmp_path):
    # Labels 0 0 0 1 1 2, clusters 4 4 4 4 2 2 of 5: class 0 takes cluster 4; class 1 and 2 tie for cluster 2.
    labels = torch.tensor([[[0, 0, 0, 1, 1, 2, 255]]])
    evaluator = ClusterSemSegEvaluator(dataset, output_dir=str(tmp_path))
    result = run(evaluator, labels, torch.tensor([[[4, 4, 4, 4, 2, 2, 0]]]), 5)
    assert result["used_clusters"] == 2
    assert result["largest_cluster"] == pytest.approx(100 * 4 / 6)
    assert result["IoU-car"] == 75
    assert result["pACC"] == pytest.approx(100 * 4 / 6)
    assert sorted([result["IoU-road"], result["IoU-sky"]]) == pytest.approx([0, 100 / 3 if result["IoU-road"] else 50])
    record = json.loads((tmp_path / "sem_seg_evaluation.json").read_text())
    assert record["cluster_to_class"][4] == "car"
    assert len(record["cluster_to_class"]) == 5
    assert np.array(record["confusion"]).shape == (3, 5)
    expected = {"matching": "hungarian", "matching_fitted_on": dataset, "num_clusters": 5, "num_classes": 3}
    expected |= {"resolution": "original", "num_images": 1, "num_pixels": 7, "num_pixels_ignored": 1}
    assert {name: record[name] for name in expected} == expected == evaluator.protocol
    assert set(record["cluster_to_class_by_matching"]) == {"hungarian", "hungarian_iou", "majority"}
    assert record["cluster_to_class_by_matching"]["majority"] == [None, None, "road", None, "car"]


def test_largest_cluster_of_a_total_collapse(dataset):
    result = run(ClusterSemSegEvaluator(dataset), torch.tensor([[[0, 1, 2, 2]]]), torch.ones(1, 1, 4), 3)
    assert result["largest_cluster"] == 100
    assert result["used_clusters"] == 1
    # The one cluster goes to class 2: IoU 2/4. The others have IoU 0.
    assert result["mIoU"] == pytest.approx(50 / 3)


def test_no_split_without_ids_in_the_metadata():
    MetadataCatalog.get("test_hungarian_plain").set(stuff_classes=["a", "b"], ignore_label=255)
    result = run(ClusterSemSegEvaluator("test_hungarian_plain"), torch.tensor([[[0, 1]]]), torch.tensor([[[1, 0]]]), 2)
    MetadataCatalog.remove("test_hungarian_plain")
    assert result["mIoU"] == 100
    assert not [key for key in result if "_th_" in key or "_st_" in key]


def test_mean_over_the_classes_that_are_there(dataset):
    # Cluster 3 is class 1, IoU 2/2; cluster 0 is class 0, IoU 2/3. Class 2 has no pixel, whatever its cluster is.
    evaluator = ClusterSemSegEvaluator(dataset)
    result = run(evaluator, torch.tensor([[[1, 1, 0, 0, 0]]]), torch.tensor([[[3, 3, 0, 0, 2]]]), 4)
    assert result["mIoU_present"] == pytest.approx((100 + 200 / 3) / 2)
    assert evaluator.absent_classes == [MetadataCatalog.get(dataset).stuff_classes[2]]


# Labels car car car car road road sky, clusters 0 0 1 1 1 2 2 of 4.
LABELS, CLUSTERS = torch.tensor([[[0, 0, 0, 0, 1, 1, 2]]]), torch.tensor([[[0, 0, 1, 1, 1, 2, 2]]])


def test_every_matching_is_scored(dataset, caplog):
    """The counts are car [2, 2, 0, 0], road [0, 1, 1, 0], sky [0, 0, 1, 0].

    Majority: car has clusters 0 and 1, road has 2 (a tie with sky): IoUs 4/5, 1/3, 0/1; 5 of 7 pixels are right.
    One-to-one: cluster 0 or 1 is car (2 pixels), and 2 or 3 pixels more at most: car 0, road 1, sky 2 gives 2 + 1 + 1:
    IoUs 2/4, 1/4, 1/2. By IoU the sum of these three, 1.25, is the largest too (car 1: 2/5).
    """
    with caplog.at_level("INFO"):
        result = run(ClusterSemSegEvaluator(dataset, matching="majority"), LABELS, CLUSTERS, 4)
    majority, one_to_one = 100 * (4 / 5 + 1 / 3 + 0) / 3, 125 / 3
    assert result["mIoU"] == result["mIoU_majority"] == pytest.approx(majority)
    assert result["mIoU_hungarian"] == result["mIoU_hungarian_iou"] == pytest.approx(one_to_one)
    assert result["pACC"] == result["pACC_majority"] == pytest.approx(500 / 7)
    assert result["pACC_hungarian"] == pytest.approx(400 / 7)
    assert [result[f"unmatched_classes_{m}"] for m in ("majority", "hungarian", "hungarian_iou")] == [1, 0, 0]
    assert [result[f"IoU-{name}"] for name in ("car", "road", "sky")] == pytest.approx([80, 100 / 3, 0])
    assert all(isinstance(value, int | float) for value in result.values())
    assert "matching majority, matching fitted on test_hungarian, clusters 4" in caplog.text
    assert run(ClusterSemSegEvaluator(dataset), LABELS, CLUSTERS, 4)["mIoU"] == pytest.approx(one_to_one)


def test_fewer_clusters_than_classes(dataset):
    """Clusters 0 0 0 0 1 1 1 of 2: car has 0, road has 1: IoUs 1, 2/3, 0."""
    result = run(ClusterSemSegEvaluator(dataset), LABELS, torch.tensor([[[0, 0, 0, 0, 1, 1, 1]]]), 2)
    assert result["mIoU"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)
    assert result["unmatched_classes_hungarian"] == result["unmatched_classes_majority"] == 1
    assert not [name for name in result if "released" in name]


def test_fitted_on_another_set(dataset):
    """There cluster 0 is road, 1 is car, and 2 and 3 never occur; here 0 has a car pixel too, and 2 a sky pixel."""
    other = ClusterSemSegEvaluator(dataset, matching="majority")
    run(other, torch.tensor([[[1, 1, 0]]]), torch.tensor([[[0, 0, 1]]]), 4)
    evaluator = ClusterSemSegEvaluator(dataset, matching="majority")
    evaluator.fit(other)
    result = run(evaluator, torch.tensor([[[0, 0, 1, 2]]]), torch.tensor([[[0, 1, 0, 2]]]), 4)
    # Car: 1 right of 2, no false positive. Road: 1 right, 1 false positive. Sky: in a cluster without a class.
    assert [result[f"IoU-{name}"] for name in ("car", "road", "sky")] == [50, 50, 0]
    assert evaluator.cluster_classes == [1, 0, None, None]
    assert result["unmatched_classes_majority"] == 1
    assert (
        run(ClusterSemSegEvaluator(dataset), torch.tensor([[[0, 0, 1, 2]]]), torch.tensor([[[0, 1, 0, 2]]]), 4)
        != result
    )


def test_fitted_on_a_set_of_other_classes(dataset):
    MetadataCatalog.get("test_fit_other").set(stuff_classes=["car", "sky", "road"], ignore_label=255)
    with pytest.raises(ValueError, match=r"SEM_SEG_MATCHING_FIT: the classes of test_fit_other \(car, sky, road\) are"):
        ClusterSemSegEvaluator(dataset).fit(ClusterSemSegEvaluator("test_fit_other"))
    MetadataCatalog.remove("test_fit_other")


def _fit_and_score(rank):
    """Each process has one image of each set; process 0 sees only cars in the set of the fit."""
    fitted, evaluator = (ClusterSemSegEvaluator("test_hungarian", matching="majority") for _ in range(2))
    run_one(fitted, [[[0, 0, 0]], [[1, 2, 2]]][rank], [[[3, 3, 1]], [[1, 1, 2]]][rank])
    fitted.evaluate()
    evaluator.fit(fitted)
    run_one(evaluator, [[[0, 2]], [[1]]][rank], [[[3, 2]], [[1]]][rank])
    return evaluator.evaluate()


def run_one(evaluator, target, clusters):
    x = {"file_name": "a.jpg", "sem_seg_target": torch.tensor(target)}
    evaluator.process([x], [{"sem_seg_labels": torch.tensor(clusters, dtype=torch.uint8), "num_classes": 4}])


def test_two_processes_fit_and_score(dataset):
    """Fit: 3 is car; 1 has one pixel of each class, a tie, so car; 2 is sky. Score: 3 car, 2 sky, 1 (road) car."""
    first, second = in_two_processes(_fit_and_score)
    assert second == {}
    result = first["sem_seg"]
    assert [result[f"IoU-{name}"] for name in ("car", "road", "sky")] == [50, 0, 100]
    assert result["pACC"] == pytest.approx(200 / 3)
