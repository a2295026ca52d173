"""VIS_PERIOD writes pictures of training to TensorBoard, and they are what the batch and the model say."""

import copy

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from densesiam_d2.engine import Trainer, argument_parser, checked_config
from densesiam_d2.engine.training_pictures import TrainingPicturesHook
from densesiam_d2.reporting.label_colors import colorize
from densesiam_d2.reporting.view_drawing import draw_views
from tests.engine.test_train_net import CPU, FCN, MASK_RCNN, PRETRAIN, ROOT, UNSUP_SEG, run, scenes  # noqa: F401
from tests.modeling.meta_arch.tiny import tiny_batch, tiny_cfg, tiny_model, tiny_sem_seg_cfg


def pictures(cfg, batch, iteration=0):
    """Return the model, and name -> (H, W, 3) picture after one step of the hook at an iteration."""
    model = tiny_model(cfg)
    trainer = SimpleTrainer(model, [batch], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([TrainingPicturesHook(cfg)])
    with EventStorage(iteration) as trainer.storage:
        trainer.iter = iteration
        trainer.before_step()
        trainer.run_step()
        state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        trainer.after_step()
    assert torch.equal(torch.get_rng_state(), random)  # the training goes on as without pictures
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training and not model._forward_pre_hooks
    return model, {name: image.permute(1, 2, 0).numpy() for name, image, _ in trainer.storage._vis_data}


def test_views_are_those_of_the_batch():
    cfg, batch = tiny_cfg(), tiny_batch(num_images=5)
    cfg.VIS_PERIOD = 3
    _, drawn = pictures(cfg, batch, iteration=6)
    expected = [draw_views(None, batch["views"][i], batch["view_boxes"][i], 3) for i in range(4)]
    assert drawn.keys() == {"views"} and np.array_equal(drawn["views"], np.vstack(expected))
    assert not pictures(cfg, batch, iteration=7)[1]


def test_colours_of_the_device_are_drawn():
    cfg, batch = tiny_cfg(), tiny_batch()
    cfg.VIS_PERIOD = 1
    steps = torch.full((2, 2, 7, 2), -1.0, dtype=torch.float64)
    steps[:, :, 0] = torch.tensor([0.0, 0.0])  # brightness times 0
    _, drawn = pictures(cfg, {**batch, "color_steps": steps})
    black = [draw_views(None, torch.zeros_like(batch["views"][i]), batch["view_boxes"][i], 3) for i in range(2)]
    assert np.array_equal(drawn["views"], np.vstack(black))


def test_label_maps_are_the_models():
    cfg, batch = tiny_sem_seg_cfg(), tiny_batch()
    cfg.VIS_PERIOD = 1
    model, drawn = pictures(cfg, batch)
    model.eval()
    with torch.no_grad():
        logits = model([{"image": batch["views"][1, 0]}])[0]["sem_seg"]  # (4, 64, 64), image 1, view 1
    expected = cv2.resize(colorize(logits.argmax(dim=0).numpy(), 4), (200, 200), interpolation=cv2.INTER_AREA)
    # 26 pixels of titles; pictures of 200 pixels with gaps of 6: row 1, column 1.
    assert np.array_equal(drawn["label_maps"][26 + 206 :][:200, 206:406], expected)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (PRETRAIN, {"views"}),
        (UNSUP_SEG, {"views", "label_maps"}),
        (FCN, {"label_maps"}),
        (MASK_RCNN, {"Left: GT bounding boxes;  Right: Predicted proposals"}),  # detectron2's own
    ],
)
def test_tensorboard_has_them(config, names, scenes, tmp_path):  # noqa: F811
    options = [*CPU, "OUTPUT_DIR", tmp_path, "DATASETS.TRAIN", f"('{scenes}',)", "DATASETS.TEST", "()"]
    run(config, *options, "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 3, "VIS_PERIOD", 2)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert names <= set(events.Tags()["images"])
    for name in names:
        found = events.Images(name)
        assert [event.step for event in found] == [0, 2]
        picture = cv2.imdecode(np.frombuffer(found[-1].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert picture.std() > 10


def test_without_the_key_there_is_no_hook(scenes, tmp_path):  # noqa: F811
    words = ["--config-file", str(ROOT / "configs" / PRETRAIN), *CPU, "OUTPUT_DIR", str(tmp_path)]
    trainer = Trainer(checked_config(argument_parser().parse_args([*words, "DATASETS.TRAIN", f"('{scenes}',)"])))
    assert not any(isinstance(hook, TrainingPicturesHook) for hook in trainer._hooks)
