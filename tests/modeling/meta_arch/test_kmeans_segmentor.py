"""The k-means baseline: fit, score and load by the common command."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import train_net
from densesiam_d2.engine import argument_parser, checked_config
from tests.modeling.meta_arch.tiny import tiny_batch, tiny_model, tiny_sem_seg_cfg

CONFIGS = Path(__file__).parents[3] / "configs" / "unsup_seg"


@pytest.fixture
def stripes(tmp_path):
    """Return the name of a data set of 4 images with 11 stripes of different colours, labelled by stripe."""
    colors = np.random.default_rng(0).permutation(np.linspace(10, 245, 33).astype(np.uint8)).reshape(11, 3)
    for i in range(4):
        labels = np.repeat(np.roll(np.arange(11, dtype=np.uint8), i), 4)[None].repeat(32, axis=0)  # (32, 44)
        for folder, content in (("images", colors[labels]), ("masks", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{i}.png"), content)
    (tmp_path / "masks" / "classes.txt").write_text("".join(f"stripe {i}\n" for i in range(11)))
    return f"masks:{tmp_path / 'images'},labels={tmp_path / 'masks'}"


def run(folder, name, *words):
    words = ["--config-file", str(CONFIGS / name), "OUTPUT_DIR", str(folder), "DATALOADER.NUM_WORKERS", "0", *words]
    args = argument_parser().parse_args([w for w in words if w != "--eval-only"])
    args.eval_only = "--eval-only" in words
    train_net.main(checked_config(args), args)
    (results,) = json.loads((folder / "results.json").read_text()).values()
    return results["sem_seg"]


def test_a_dry_run_does_the_only_iteration(stripes, tmp_path, capsys):
    words = ["--config-file", str(CONFIGS / "kmeans_color_position.yaml"), "--dry-run"]
    words += ["OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", "0", "INPUT.SSL.VIEW_SIZE", "64"]
    args = argument_parser().parse_args([*words, "DATASETS.TRAIN", stripes, "DATASETS.TEST", stripes])
    train_net.main(checked_config(args), args)
    assert "Dry run: everything worked. 1 iteration in" in capsys.readouterr().out


def test_colours_of_stripes_are_found_and_loaded_again(stripes, tmp_path):
    sets = (
        "DATASETS.TRAIN",
        stripes,
        "DATASETS.TEST",
        stripes,
        "INPUT.SSL.VIEW_SIZE",
        "64",
        "INPUT.MIN_SIZE_TEST",
        "32",
    )
    options = (
        "SOLVER.IMS_PER_BATCH",
        "2",
        "SEED",
        "3",
        "MODEL.KMEANS.STRIDE",
        "1",
        "MODEL.KMEANS.POSITION_WEIGHT",
        "0",
    )
    fitted = run(tmp_path / "run", "kmeans_color_position.yaml", *sets, *options)
    assert fitted["used_clusters"] >= 9 and fitted["mIoU"] > 60  # k-means may join two colours and split one
    weights = ("MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth"))
    again = run(tmp_path / "again", "kmeans_color_position.yaml", "--eval-only", *sets, *options, *weights)
    assert again == fitted
    assert not (tmp_path / "run" / "backbone.pkl").exists()


def small_model(stride=4):
    cfg = tiny_sem_seg_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.KMEANS.STRIDE = "KMeansSegmentor", stride
    return tiny_model(cfg)


def test_cells_are_normalised_features_side_by_side():
    model = small_model(stride=8)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    cells = model.cells(x)
    features = model.backbone(x)
    assert cells.shape == (2, sum(f.shape[1] for f in features.values()), 8, 8)
    f = features["res3"]  # at stride 8 already
    start = features["res2"].shape[1]
    assert torch.allclose(cells[:, start : start + f.shape[1]], f / f.norm(dim=1, keepdim=True).clamp(min=1e-12))


def test_an_iteration_changes_nothing_and_tells_the_distance():
    model, batch = small_model(), tiny_batch(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = model(batch)["loss_distance"]
    loss.backward()
    assert (model.centroids.grad == 0).all()
    # All centroids are 0, and each of the four features has length 1 before its resize, which shortens it.
    cells = model.cells(model.preprocess_views(batch)[1])
    assert torch.isclose(loss, cells.square().sum(dim=1).mean())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_evaluation_gives_each_pixel_its_nearest_centroid():
    """Squared distances are interpolated between cells; the centroids are four cells of the image itself."""
    model = small_model().eval()
    image = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    cells = model.cells(model.preprocess_image(image))[0]  # (C, 8, 8)
    centroids = cells[:, [0, 2, 5, 7], [1, 6, 3, 4]].T
    assert model.centroids.shape == centroids.shape
    model.centroids.data.copy_(centroids)
    distances = torch.stack([(c[:, None, None] - cells).square().sum(dim=0) for c in centroids])
    expected = F.interpolate(distances[None], scale_factor=4, mode="bilinear")[0].argmin(dim=0)
    labels = model([{"image": image}])[0]["sem_seg"].argmax(dim=0)
    assert len(expected.unique()) == 4
    assert (labels == expected).float().mean() > 0.999  # rounding may decide where two are as near


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("size", [(246, 240), (240, 246), (33, 41)])
def test_images_of_any_size_without_padding_by_the_backbone(size, labels):
    """detectron2's ResNet pads no image; the cells must cover it all the same."""
    cfg = tiny_sem_seg_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = "KMeansSegmentor", ["res3", "res4"]
    cfg.TEST.SEM_SEG_OUTPUT = "labels" if labels else "logits"
    model = tiny_model(cfg).eval()
    (result,) = model.inference([{"image": torch.zeros(3, *size)}])
    assert (result["sem_seg_labels"] if labels else result["sem_seg"][0]).shape == size


def test_colours_of_cells_at_the_border_are_those_of_the_image():
    """A white image of 13 x 18 pixels, and centroids for white and for grey, which a black border would give."""
    cfg = tiny_sem_seg_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = "KMeansSegmentor", "build_pixel_backbone"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, cfg.MODEL.KMEANS.POSITION_WEIGHT = ["pixels"], 0.0
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0] * 3, [255.0] * 3
    cfg.MODEL.SSL.IN_FEATURE, cfg.MODEL.KMEANS.NORMALIZE = "pixels", False
    cfg.TEST.SEM_SEG_OUTPUT = "labels"
    model = tiny_model(cfg).eval()
    with torch.no_grad():
        model.centroids.fill_(-1000)
        model.centroids[:2] = torch.tensor([[100.0, 0, 0], [50.0, 0, 0]])
    (result,) = model.inference([{"image": torch.full((3, 13, 18), 255.0)}])
    assert (result["sem_seg_labels"] == 0).all()
