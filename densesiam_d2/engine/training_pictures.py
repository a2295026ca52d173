"""Pictures of what a model is trained on and what it predicts, for TensorBoard, every VIS_PERIOD iterations."""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.evaluator import inference_context
from torch import nn

from densesiam_d2.engine.segmentor import labels_of
from densesiam_d2.layers import apply_color_steps, unwrap
from densesiam_d2.modeling import model_output, num_label_ids, trains_on_views
from densesiam_d2.reporting.label_colors import colorize
from densesiam_d2.reporting.pictures import tile
from densesiam_d2.reporting.view_drawing import MAX_GRID, draw_views

__all__ = ["TrainingPicturesHook"]

NUM_IMAGES = 4  # of the batch that are drawn


class TrainingPicturesHook(HookBase):
    """Put pictures of the batch of every VIS_PERIOD-th iteration into the event storage, as detectron2's detectors do.

    A method that trains on views gets "views": its views of some images, as the model sees them, with common points. A
    model that predicts label maps gets "label_maps": images of the batch, or their views, and the maps after the step.
    """

    def __init__(self, cfg: CfgNode):
        """Read VIS_PERIOD, and what the pictures need to know of the model."""
        self._period = cfg.VIS_PERIOD
        self._views = trains_on_views(cfg)
        self._grid = min(cfg.MODEL.DENSESIAM.GRID_SIZE, MAX_GRID)
        self._bgr = cfg.INPUT.FORMAT == "BGR"
        self._num_labels = num_label_ids(cfg) if model_output(cfg) == "semantic" else 0
        self._samples: list[dict] = []
        self._handle = None

    def before_step(self) -> None:
        if self.trainer.iter % self._period == 0:
            self._samples = []
            self._handle = unwrap(self.trainer.model).register_forward_pre_hook(self._keep)

    def _keep(self, model: nn.Module, inputs: tuple) -> None:
        """Keep the first images of the first batch that the model gets in this step."""
        if not self._samples:
            batch = inputs[0]
            if isinstance(batch, dict):  # of collate_views
                batch = [{key: values[i] for key, values in batch.items()} for i in range(len(batch["views"]))]
            self._samples = batch[:NUM_IMAGES]

    def after_step(self) -> None:
        if self._handle is None:
            return
        self._handle.remove()
        self._handle = None
        pictures = self._draw_views() if self._views else self._draw_labelled()
        for name, picture in pictures.items():
            self.trainer.storage.put_image(name, torch.from_numpy(picture.transpose(2, 0, 1).copy()))

    def _draw_views(self) -> dict[str, np.ndarray]:
        """Draw two views of each image; below, with their label maps."""
        views = [sample["views"].cpu() for sample in self._samples]  # (2, 3, S, S) each
        if "color_steps" in self._samples[0]:
            views = [apply_color_steps(v, s["color_steps"]) for v, s in zip(views, self._samples, strict=True)]
        boxes = [sample["view_boxes"].cpu() for sample in self._samples]
        rows = [draw_views(None, v, box, self._grid) for v, box in zip(views, boxes, strict=True)]
        pictures = {"views": np.vstack(rows)}
        if self._num_labels:
            rows = [[part for view in pair for part in (_array(view), self._predict(view))] for pair in views]
            pictures["label_maps"] = tile(rows, ["view 1", "labels", "view 2", "labels"])
        return pictures

    def _draw_labelled(self) -> dict[str, np.ndarray]:
        rows = []
        for sample in self._samples:
            image, truth = sample["image"], colorize(sample["sem_seg"].cpu().numpy(), self._num_labels)
            shown = _array(image)[..., ::-1] if self._bgr else _array(image)
            rows.append([shown, truth, self._predict(image)])
        return {"label_maps": tile(rows, ["image", "labels", "prediction"])}

    @torch.no_grad()
    def _predict(self, image: torch.Tensor) -> np.ndarray:
        """Return the coloured label map of an image (3, H, W), as (H, W, 3) uint8 RGB."""
        model = unwrap(self.trainer.model)
        with inference_context(model):
            labels = labels_of(model([{"image": image}])[0])
        return colorize(labels.cpu().numpy(), self._num_labels)


def _array(image: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0))
