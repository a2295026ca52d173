import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from densesiam_d2.evaluation.clusters import ClusterSemSegEvaluator
from densesiam_d2.evaluation.examples import Example
from tests.evaluation.processes import in_two_processes


def test_an_example_is_small_and_in_place():
    """A target of 512 x 256, an image of half its size: both become 128 x 64, the top left quarter stays there."""
    target, image = np.zeros((512, 256), np.int64), np.zeros((256, 128, 3), np.uint8)
    target[:256, :128], image[:128, :64] = 7, (10, 20, 30)
    example = Example.of("a", image, target, target[::2, ::2].astype(np.uint8))
    assert example.image.shape == (128, 64, 3) and example.target.shape == example.prediction.shape == (128, 64)
    expected = np.zeros((128, 64))
    expected[:64, :32] = 7
    assert np.array_equal(example.target, expected) and np.array_equal(example.prediction, expected)
    assert (example.image[:64, :32] == (10, 20, 30)).all() and not example.image[64:].any()


def keep(rank):
    """Evaluate images 0 to 24 in process 0 and 25 to 49 in process 1; BGR images, all of one colour."""
    evaluator = ClusterSemSegEvaluator("kept", num_examples=3, image_format="BGR")
    for i in range(25 * rank, 25 * rank + 25):
        image, ids = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.full((8, 8), i % 2, dtype=torch.uint8)
        image[0] = i  # blue
        x = {"file_name": f"{i}.jpg", "image": image, "sem_seg_target": ids}
        evaluator.process([x], [{"sem_seg_labels": 1 - ids, "num_classes": 2}])
    evaluator.evaluate()
    return [(e.file_name, e.image, e.target, e.prediction) for e in evaluator.examples]


def test_the_evaluator_keeps_a_few_of_the_whole_set():
    DatasetCatalog.register("kept", lambda: [{"file_name": f"{i}.jpg"} for i in range(50)])
    MetadataCatalog.get("kept").set(stuff_classes=["a", "b"], ignore_label=255)
    try:
        first, second = in_two_processes(keep)
    finally:
        DatasetCatalog.remove("kept")
        MetadataCatalog.remove("kept")
    assert second == [] and [name for name, *_ in first] == ["0.jpg", "24.jpg", "49.jpg"]
    for number, (_, image, target, prediction) in zip((0, 24, 49), first, strict=True):
        assert (image == (0, 0, number)).all() and (target == number % 2).all() and (prediction == 1 - number % 2).all()
