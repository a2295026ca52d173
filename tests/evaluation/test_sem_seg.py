import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from densesiam_d2.evaluation.clusters import ClusterSemSegEvaluator
from densesiam_d2.evaluation.sem_seg import SemSegConfusionEvaluator, predicted_labels, read_labels
from tests.evaluation.processes import in_two_processes


def one_hot(ids, num):
    return torch.nn.functional.one_hot(torch.as_tensor(np.array(ids)).long(), num).permute(2, 0, 1).float()


@pytest.fixture
def register():
    """Register label maps as files; returns a function (name, folder, label maps, metadata) -> file names."""
    names = []

    def add(name, folder, label_maps, **metadata):
        records = []
        for i, labels in enumerate(label_maps):
            path = folder / f"{name}_{i}.png"
            Image.fromarray(np.asarray(labels, np.uint8)).save(path)
            records.append({"file_name": str(folder / f"{i}.jpg"), "sem_seg_file_name": str(path)})
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return [record["file_name"] for record in records]

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_label_files_by_hand(register, tmp_path):
    (file_name,) = register(
        "hand", tmp_path, [[[0, 0, 0, 1, 1, 2, 255]]], stuff_classes=["a", "b", "c"], ignore_label=255
    )
    evaluator = SemSegConfusionEvaluator("hand", output_dir=str(tmp_path / "out"))
    evaluator.process([{"file_name": file_name}], [{"sem_seg": one_hot([[0, 0, 1, 1, 2, 2, 0]], 3)}])
    result = evaluator.evaluate()
    assert list(result) == ["sem_seg"]
    assert result["sem_seg"] == pytest.approx(  # the matrix of test_confusion.py
        {
            "mIoU": 50,
            "mIoU_present": 50,
            "pACC": 400 / 6,
            "mACC": (200 / 3 + 50 + 100) / 3,
            "IoU-a": 200 / 3,
            "IoU-b": 100 / 3,
            "IoU-c": 50,
        }
    )
    record = json.loads((tmp_path / "out" / "sem_seg_evaluation.json").read_text())
    assert record["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert record["num_images"] == 1


def test_label_map_and_absent_class(register, tmp_path):
    """Raw ids 7 and 8 are classes 0 and 1, everything else is ignored; class 2 never occurs and is null in the file."""
    label_map = [255] * 256
    label_map[7], label_map[8] = 0, 1
    (file_name,) = register(
        "mapped", tmp_path, [[[7, 8, 8, 3]]], stuff_classes=["a", "b", "c"], ignore_label=255, label_map=label_map
    )
    evaluator = SemSegConfusionEvaluator("mapped", output_dir=str(tmp_path))
    evaluator.process([{"file_name": file_name}], [{"sem_seg": one_hot([[0, 1, 0, 2]], 3)}])
    result = evaluator.evaluate()["sem_seg"]
    assert result["IoU-a"] == result["IoU-b"] == 50
    assert math.isnan(result["IoU-c"])
    assert json.loads((tmp_path / "sem_seg_evaluation.json").read_text())["sem_seg"]["IoU-c"] is None


def test_two_entries_of_one_image_have_their_own_labels(catalog):
    """As a COCO file with the red objects of an image in one entry, and the blue ones in another."""
    squares = [[0.0, 0, 1, 0, 1, 1, 0, 1], [2.0, 0, 3, 0, 3, 1, 2, 1]]
    records = [
        {"file_name": "p.png", "image_id": i, "annotations": [{"segmentation": [square]}]}
        for i, square in enumerate(squares)
    ]
    DatasetCatalog.register("entries", lambda: records)
    MetadataCatalog.get("entries").set(stuff_classes=["background", "foreground"], ignore_label=255)
    evaluator = SemSegConfusionEvaluator("entries")
    for i, labels in enumerate([[[1, 0, 0]], [[0, 0, 1]]]):
        x = {"file_name": "p.png", "image_id": i, "height": 1, "width": 3}
        evaluator.process([x], [{"sem_seg_labels": torch.tensor(labels), "num_classes": 2}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


def test_target_of_the_mapper_comes_first_and_reset_forgets(register, tmp_path):
    (file_name,) = register("crop", tmp_path, [[[1, 1, 1]]], stuff_classes=["a", "b"], ignore_label=-1)
    evaluator = SemSegConfusionEvaluator("crop")
    for target in ([[1, 1]], [[0, -1]]):
        evaluator.reset()
        x = {"file_name": file_name, "sem_seg_target": torch.tensor(target)}
        evaluator.process([x], [{"sem_seg": one_hot([[0, 1]], 2)}])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 100


@pytest.mark.parametrize("num", [3, 300])
def test_labels_count_like_their_logits(num, register, tmp_path):
    (file_name,) = register("labels", tmp_path, [[[0, 0, 1, 255]]], stuff_classes=list("abc"), ignore_label=255)
    prediction, evaluator = [[0, 2, num - 1, 1]], ClusterSemSegEvaluator("labels")
    evaluator.process([{"file_name": file_name}], [{"sem_seg": one_hot(prediction, num)}])
    by_logits = evaluator.evaluate()
    evaluator.reset()
    labels = torch.tensor(prediction, dtype=torch.uint8 if num <= 256 else torch.int16)
    evaluator.process([{"file_name": file_name}], [{"sem_seg_labels": labels, "num_classes": num}])
    assert evaluator.evaluate()["sem_seg"] == pytest.approx(by_logits["sem_seg"], nan_ok=True)


def test_stray_label_names_the_file(register, tmp_path):
    (file_name,) = register("stray", tmp_path, [[[0, 5]]], stuff_classes=["a", "b"], ignore_label=255)
    with pytest.raises(ValueError, match=rf"{file_name}: label ids \[5\]"):
        SemSegConfusionEvaluator("stray").process([{"file_name": file_name}], [{"sem_seg": one_hot([[0, 1]], 2)}])


def test_mistakes_in_one_line(register, tmp_path):
    (file_name,) = register("mistakes", tmp_path, [[[0, 1]]], stuff_classes=["a", "b"], ignore_label=255)
    evaluator = SemSegConfusionEvaluator("mistakes")
    with pytest.raises(ValueError, match="no image was evaluated"):
        evaluator.evaluate()
    with pytest.raises(ValueError, match=r"predicts 3 classes \(MODEL.SEM_SEG_HEAD.NUM_CLASSES\).*has 2.*hungarian"):
        evaluator.process([{"file_name": file_name}], [{"sem_seg": one_hot([[0, 1]], 3)}])
    with pytest.raises(ValueError, match=r"other\.jpg: dataset 'mistakes' has neither 'sem_seg_file_name' nor"):
        evaluator.process([{"file_name": "other.jpg"}], [{"sem_seg": one_hot([[0, 1]], 2)}])
    register("nothing", tmp_path, [])
    with pytest.raises(ValueError, match="'nothing': its metadata has no 'stuff_classes'"):
        SemSegConfusionEvaluator("nothing")
    register("twins", tmp_path, [], stuff_classes=["food", "sky", "food"], ignore_label=255)
    with pytest.raises(ValueError, match=r"several classes are called \['food'\]"):
        SemSegConfusionEvaluator("twins")


def test_read_labels_palette_and_errors(tmp_path):
    ids = np.array([[0, 3], [2, 1]], np.uint8)
    image = Image.fromarray(ids, mode="P")
    image.putpalette([9, 9, 9, 80, 0, 0, 0, 80, 0, 0, 0, 80])
    image.save(tmp_path / "palette.png")
    assert np.array_equal(read_labels(tmp_path / "palette.png"), ids)
    Image.new("RGB", (2, 2)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match=r"colour\.png: .*one 8-bit channel.*RGB"):
        read_labels(tmp_path / "colour.png")
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert (
        read_labels(tmp_path / "bits.png").tolist() == [[1, 0]] and read_labels(tmp_path / "bits.png").dtype == np.uint8
    )
    Image.fromarray(np.array([[1, 300]], np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: .*one 8-bit channel"):
        read_labels(tmp_path / "deep.png", np.zeros(256, np.uint8))


@pytest.mark.parametrize("num", [3, 300])
def test_predicted_labels_in_both_memory_formats(num):
    logits = torch.randn(num, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = logits.numpy().argmax(axis=0)
    last = logits[None].contiguous(memory_format=torch.channels_last)[0]
    assert last.stride(0) == 1
    for x in (logits, last):
        assert np.array_equal(predicted_labels(x), expected)


def _evaluate_own_images(rank, folder):
    """Three images over two processes, as detectron2's InferenceSampler deals them: 0 and 1, then 2."""
    MetadataCatalog.get("two_processes").set(stuff_classes=["a", "b"], ignore_label=255)
    evaluator = SemSegConfusionEvaluator("two_processes", output_dir=str(folder))
    targets = {0: [[0, 0]], 1: [[0, 1]], 2: [[1, 1]]}
    for i in ([0, 1], [2])[rank]:
        x = {"file_name": f"{i}.jpg", "sem_seg_target": torch.tensor(targets[i])}
        evaluator.process([x], [{"sem_seg": one_hot([[0, 1]], 2)}])
    return evaluator.evaluate()


def test_two_processes_count_every_image_once(tmp_path):
    results = in_two_processes(lambda rank: _evaluate_own_images(rank, tmp_path))
    assert results[1] == {}
    record = json.loads((tmp_path / "sem_seg_evaluation.json").read_text())
    assert record["num_images"] == 3
    assert record["confusion"] == [[2, 1], [1, 2]]
    # IoU 2/4 each.
    assert results[0]["sem_seg"]["mIoU"] == 50


def test_equals_cityscapesscripts(register, tmp_path):
    """The same random label and prediction files, scored by the benchmark's own script."""
    benchmark = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    from cityscapesscripts.helpers.labels import labels, trainId2label

    rng = np.random.default_rng(0)
    to_train_id = np.array([label.trainId if 0 <= label.trainId < 19 else 255 for label in labels if label.id >= 0])
    to_id = np.array([trainId2label[i].id for i in range(19)])
    absent = [5, 12]  # trainId 5 occurs nowhere, 12 is predicted only
    label_ids = [i for i in range(34) if to_train_id[i] not in absent]
    raw = [rng.choice(label_ids, (40, 60)).astype(np.uint8) for _ in range(3)]
    predictions = []
    for ids in raw:
        guess = np.where(rng.random(ids.shape) < 0.6, to_train_id[ids], rng.integers(0, 19, ids.shape))
        guess[(guess == 255) | (guess == 5)] = 6
        predictions.append(guess)

    files = register(
        "benchmark",
        tmp_path,
        [to_train_id[ids] for ids in raw],
        stuff_classes=[trainId2label[i].name for i in range(19)],
        ignore_label=255,
    )
    evaluator = SemSegConfusionEvaluator("benchmark")
    for file_name, guess in zip(files, predictions, strict=True):
        evaluator.process([{"file_name": file_name}], [{"sem_seg": one_hot(guess, 19)}])
    ours = evaluator.evaluate()["sem_seg"]

    truth_files, prediction_files = [], []
    for i, (ids, guess) in enumerate(zip(raw, predictions, strict=True)):
        truth_files.append(str(tmp_path / f"town_{i:06d}_000000_gtFine_labelIds.png"))
        prediction_files.append(str(tmp_path / f"town_{i:06d}_000000_pred.png"))
        Image.fromarray(ids).save(truth_files[-1])
        Image.fromarray(to_id[guess].astype(np.uint8)).save(prediction_files[-1])
    benchmark.args.quiet = True
    benchmark.args.JSONOutput = False
    benchmark.args.evalInstLevelScore = False
    theirs = benchmark.evaluateImgLists(prediction_files, truth_files, benchmark.args)

    assert ours["mIoU"] == pytest.approx(100 * theirs["averageScoreClasses"], abs=1e-6)
    for i in range(19):
        name = trainId2label[i].name
        assert ours[f"IoU-{name}"] == pytest.approx(100 * theirs["classScores"][name], abs=1e-6, nan_ok=True)
    assert math.isnan(ours[f"IoU-{trainId2label[5].name}"])
    assert ours[f"IoU-{trainId2label[12].name}"] == 0


def test_classes_of_another_order(register, tmp_path):
    """The model's classes are c, a, b; the file's 0, 1, 2 are a, b, c."""
    (file_name,) = register("turned", tmp_path, [[[0, 0, 1, 2]]], stuff_classes=["a", "b", "c"], ignore_label=255)
    evaluator = SemSegConfusionEvaluator("turned", output_dir=str(tmp_path), order=[2, 0, 1])
    evaluator.process([{"file_name": file_name}], [{"sem_seg": one_hot([[1, 1, 2, 0]], 3)}])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 100
    evaluator.reset()
    evaluator.process([{"file_name": file_name}], [{"sem_seg": one_hot([[1, 1, 2, 1]], 3)}])
    # Class c is taken for a: a has 2 of 3 pixels right, b is right, c has nothing.
    result = evaluator.evaluate()["sem_seg"]
    assert [result[f"IoU-{name}"] for name in "abc"] == pytest.approx([200 / 3, 100, 0])
    record = json.loads((tmp_path / "sem_seg_evaluation.json").read_text())
    assert record["classes"] == ["a", "b", "c"] and record["confusion"] == [[2, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_mean_over_the_classes_that_are_there(register, tmp_path, caplog):
    """Classes c and d have no pixel; c is predicted once, so that its IoU is 0 in the published mean."""
    (file_name,) = register("some", tmp_path, [[[0, 0, 1, 1]]], stuff_classes=["a", "b", "c", "d"], ignore_label=255)
    evaluator = SemSegConfusionEvaluator("some", output_dir=str(tmp_path))
    evaluator.process([{"file_name": file_name}], [{"sem_seg": one_hot([[0, 0, 1, 2]], 4)}])
    result = evaluator.evaluate()["sem_seg"]
    assert result["mIoU"] == pytest.approx((100 + 50 + 0) / 3)
    assert result["mIoU_present"] == pytest.approx((100 + 50) / 2)
    assert evaluator.absent_classes == ["c", "d"]
    assert json.loads((tmp_path / "sem_seg_evaluation.json").read_text())["absent_classes"] == ["c", "d"]
    assert "some: classes without any pixel (2): c, d" in caplog.messages


def test_damaged_label_map_is_named(register, tmp_path):
    (file_name,) = register("cut", tmp_path, [np.zeros((40, 40))], stuff_classes=["a"], ignore_label=255)
    label = next(tmp_path.rglob("*.png"))
    label.write_bytes(label.read_bytes()[:50])
    evaluator = SemSegConfusionEvaluator("cut")
    with pytest.raises(ValueError, match=f"cannot read {label}"):
        evaluator.process([{"file_name": file_name}], [{"sem_seg": one_hot(np.zeros((40, 40), int), 1)}])
