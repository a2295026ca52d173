"""The annotations of a dataset given to its evaluator as if a model had predicted them."""

import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.structures.masks import polygons_to_bitmask


def to_mask(segmentation, height, width):
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation).astype(bool)
    return polygons_to_bitmask(segmentation, height, width)


def predict(record, classes=None, shift=0.0, masks=True) -> Instances:
    """Return the annotations of a record as predictions; ``classes`` turns their numbers into the model's."""
    annotations = record["annotations"]
    found = Instances((record["height"], record["width"]))
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    boxes = torch.tensor(boxes).reshape(-1, 4).float()
    found.pred_boxes = Boxes(boxes + shift * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2))
    found.scores = torch.ones(len(annotations))
    found.pred_classes = torch.tensor(
        [a["category_id"] if classes is None else classes[a["category_id"]] for a in annotations]
    )
    if masks:
        masks = [torch.from_numpy(to_mask(a["segmentation"], *found.image_size)) for a in annotations]
        found.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *found.image_size, dtype=torch.bool)
    return found


def score(evaluator, records, **options):
    evaluator.reset()
    for record in records:
        evaluator.process([record], [{"instances": predict(record, **options)}])
    return evaluator.evaluate()
