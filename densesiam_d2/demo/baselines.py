"""A simple baseline of segmentation without labels: k-means clusters of the colours of single pixels."""

from collections.abc import Iterable

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from densesiam_d2.data.image_io import read_image
from densesiam_d2.evaluation.clusters import ClusterSemSegEvaluator

__all__ = ["assign_colours", "evaluate_colour_kmeans", "fit_colours"]


def fit_colours(
    images: Iterable[np.ndarray], num_clusters: int, pixels_per_image: int = 500, seed: int = 0
) -> np.ndarray:
    """Cluster the colours of a set of images.

    Args:
        images: (H, W, 3) uint8 RGB each.
        num_clusters: number of clusters, K.
        pixels_per_image: number of random pixels that are taken from each image.
        seed: seed of the draw of pixels and of k-means++; the best of three runs of k-means is returned.

    Returns:
        (K, 3) float32 centres in CIELAB.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for image in images:
        lab = _to_lab(image).reshape(-1, 3)
        samples.append(lab[rng.integers(0, len(lab), min(pixels_per_image, len(lab)))])
    cv2.setRNGSeed(seed)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-3)
    _, _, centres = cv2.kmeans(np.concatenate(samples), num_clusters, None, criteria, 3, cv2.KMEANS_PP_CENTERS)
    return centres


def assign_colours(image: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return for each pixel the index of the centre that is nearest to its colour, (H, W) uint8.

    Args:
        image: (H, W, 3) uint8 RGB.
        centres: (K, 3) from ``fit_colours``, K at most 256.
    """
    lab = _to_lab(image)
    distances = [((lab - centre) ** 2).sum(axis=-1) for centre in centres]
    return np.argmin(distances, axis=0).astype(np.uint8)


def _to_lab(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


def evaluate_colour_kmeans(
    train_dataset: str, test_dataset: str, output_dir: str | None = None
) -> tuple[dict[str, float], np.ndarray]:
    """Fit on the training images and score on the test images, with as many clusters as classes.

    The evaluator of the model matches these clusters to classes and scores them too, so the scores are comparable.

    Args:
        train_dataset: name of a registered dataset; its labels are not read.
        test_dataset: name of a registered dataset with semantic labels.
        output_dir: folder in which the evaluator writes its file; None writes none.

    Returns:
        The evaluator's "sem_seg" scores and the (K, 3) centres.
    """
    num_clusters = len(MetadataCatalog.get(test_dataset).stuff_classes)
    train_images = (read_image(record["file_name"]) for record in DatasetCatalog.get(train_dataset))
    centres = fit_colours(train_images, num_clusters)
    evaluator = ClusterSemSegEvaluator(test_dataset, distributed=False, output_dir=output_dir)
    for record in DatasetCatalog.get(test_dataset):
        clusters = torch.from_numpy(assign_colours(read_image(record["file_name"]), centres)).long()
        logits = torch.nn.functional.one_hot(clusters, num_clusters).permute(2, 0, 1)  # (K, H, W)
        evaluator.process([record], [{"sem_seg": logits}])
    return evaluator.evaluate()["sem_seg"], centres
