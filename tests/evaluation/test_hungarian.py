import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from densesiam_d2.evaluation.hungarian import HungarianSemSegEvaluator, hungarian_match, split_scores

# Class 0's pixels are in cluster 2, class 1's in cluster 0, class 2's in cluster 1.
THREE = np.array([[1, 1, 8], [6, 0, 2], [0, 5, 3]])


def test_three_by_three_by_hand():
    # The largest sum of one entry per row and column is 8 + 6 + 5.
    assert hungarian_match(THREE).tolist() == [2, 0, 1]
    assert THREE[:, [2, 0, 1]].tolist() == [[8, 1, 1], [2, 6, 0], [3, 0, 5]]


def test_greedy_would_be_wrong():
    # Taking the largest entry first gives 9 + 1, the assignment 8 + 7.
    assert hungarian_match(np.array([[9, 8], [7, 1]])).tolist() == [1, 0]


def test_two_classes_four_clusters():
    # 6 (cluster 3) + 5 (cluster 1); clusters 0 and 2 stay without a class.
    assert hungarian_match(np.array([[1, 0, 4, 6], [0, 5, 2, 3]])).tolist() == [3, 1, 0, 2]


def test_fewer_clusters_than_classes():
    # Class 1 gets the added empty column 2.
    assert hungarian_match(np.array([[0, 7], [1, 1], [5, 0]])).tolist() == [1, 2, 0]


def test_split_by_hand():
    """Things are class 0, stuff is classes 1 and 2.

    In class order the matrix is [[8, 1, 1], [2, 6, 0], [3, 0, 5]]. Full: IoU_0 = 8/15, IoU_1 = 6/9, IoU_2 = 5/9.
    Block: things [[8]] -> 1; stuff [[6, 0], [0, 5]] -> 1.
    Released: row c moves to its cluster: [[6, 0, 2], [0, 5, 3], [1, 1, 8]]. Its first row is class 1, so "things" is
    [[6]] -> 1, and "stuff" is [[5, 3], [1, 8]] -> (5/9 + 8/12) / 2 = 11/18.
    """
    result = split_scores(THREE, hungarian_match(THREE), {"th": [0], "st": [1, 2]})
    assert result == pytest.approx(
        {
            "mIoU_th_full": 100 * 8 / 15,
            "mIoU_st_full": 100 * 11 / 18,
            "mIoU_th_block": 100,
            "mIoU_st_block": 100,
            "mIoU_th_released": 100,
            "mIoU_st_released": 100 * 11 / 18,
        }
    )


def test_released_reading_against_a_literal_version():
    """The rule as written down in the module: move each row, cut the blocks, mean of tp / (tp + fp + fn)."""
    rng = np.random.default_rng(3)
    matrix = rng.integers(0, 50, (27, 27)) + 400 * np.eye(27, dtype=int)[rng.permutation(27)]
    columns = hungarian_match(matrix)
    moved = np.zeros((27, 27))
    for row in range(27):
        moved[columns[row]] = matrix[row]
    result = split_scores(matrix, columns, {"th": list(range(12)), "st": list(range(12, 27))})
    for name, block in {"th": moved[:12, :12], "st": moved[12:, 12:]}.items():
        iou = [block[i, i] / (block[i].sum() + block[:, i].sum() - block[i, i]) for i in range(len(block))]
        assert result[f"mIoU_{name}_released"] == pytest.approx(100 * np.mean(iou))
        assert result[f"mIoU_{name}_block"] != pytest.approx(result[f"mIoU_{name}_released"])


def test_no_released_reading_for_other_numbers_of_clusters():
    matrix = np.pad(THREE, ((0, 0), (0, 2)))
    assert not [k for k in split_scores(matrix, hungarian_match(matrix), {"th": [0], "st": [1, 2]}) if "released" in k]


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
    result = run(HungarianSemSegEvaluator(dataset), labels, predicted, num_clusters)
    assert result["mIoU"] == result["pACC"] == result["mACC"] == 100
    assert result["mIoU_th_full"] == result["mIoU_st_block"] == 100
    assert result["used_clusters"] == 3


def test_collapse_unmatched_clusters_and_file(dataset, tmp_path):
    # Labels 0 0 0 1 1 2, clusters 4 4 4 4 2 2 of 5: class 0 takes cluster 4; class 1 and 2 tie for cluster 2.
    labels = torch.tensor([[[0, 0, 0, 1, 1, 2, 255]]])
    evaluator = HungarianSemSegEvaluator(dataset, output_dir=str(tmp_path))
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


def test_largest_cluster_of_a_total_collapse(dataset):
    result = run(HungarianSemSegEvaluator(dataset), torch.tensor([[[0, 1, 2, 2]]]), torch.ones(1, 1, 4), 3)
    assert result["largest_cluster"] == 100
    assert result["used_clusters"] == 1
    # The one cluster goes to class 2: IoU 2/4. The others have IoU 0.
    assert result["mIoU"] == pytest.approx(50 / 3)


def test_no_split_without_ids_in_the_metadata():
    MetadataCatalog.get("test_hungarian_plain").set(stuff_classes=["a", "b"], ignore_label=255)
    result = run(
        HungarianSemSegEvaluator("test_hungarian_plain"), torch.tensor([[[0, 1]]]), torch.tensor([[[1, 0]]]), 2
    )
    MetadataCatalog.remove("test_hungarian_plain")
    assert result["mIoU"] == 100
    assert not [key for key in result if "_th_" in key or "_st_" in key]


def test_mean_over_the_classes_that_are_there(dataset):
    # Cluster 3 is class 1, IoU 2/2; cluster 0 is class 0, IoU 2/3. Class 2 has no pixel, whatever its cluster is.
    evaluator = HungarianSemSegEvaluator(dataset)
    result = run(evaluator, torch.tensor([[[1, 1, 0, 0, 0]]]), torch.tensor([[[3, 3, 0, 0, 2]]]), 4)
    assert result["mIoU_present"] == pytest.approx((100 + 200 / 3) / 2)
    assert evaluator.absent_classes == [MetadataCatalog.get(dataset).stuff_classes[2]]
