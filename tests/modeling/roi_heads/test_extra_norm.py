import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from densesiam_d2.modeling.roi_heads import Res5ROIHeadsExtraNorm
from tests.checkpoint.networks import resnet_cfg


def c4_model(name, norm="BN"):
    cfg = resnet_cfg(50)
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 1  # 64 times narrower bottlenecks: fast
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.ROI_HEADS.NAME = name
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 10
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 4
    cfg.MODEL.MASK_ON = True
    return build_model(cfg)


def test_one_norm_of_the_right_kind_behind_res5():
    heads = c4_model("Res5ROIHeadsExtraNorm").roi_heads
    stock = c4_model("Res5ROIHeads").roi_heads
    assert isinstance(heads, Res5ROIHeadsExtraNorm)
    assert isinstance(heads.res5.norm, nn.BatchNorm2d) and heads.res5.norm.num_features == 64
    added = set(heads.state_dict()) - set(stock.state_dict())
    assert {name.rpartition(".")[0] for name in added} == {"res5.norm"}


def test_without_norm_it_is_the_stock_head():
    heads, stock = (c4_model(name, norm="").roi_heads for name in ("Res5ROIHeadsExtraNorm", "Res5ROIHeads"))
    heads.load_state_dict(stock.state_dict())  # the names are equal
    inputs = [torch.randn(1, 32, 8, 8)], [Boxes(torch.tensor([[0.0, 0.0, 100.0, 100.0]]))]
    assert torch.equal(heads._shared_roi_transform(*inputs), stock._shared_roi_transform(*inputs))


def test_the_norm_is_applied_to_res5s_output():
    heads = c4_model("Res5ROIHeadsExtraNorm").roi_heads.eval()
    features = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = [Boxes(torch.tensor([[0.0, 0.0, 100.0, 100.0]]))]
    with torch.no_grad():
        before = heads._shared_roi_transform([features], boxes)
        heads.res5.norm.bias.fill_(3.0)  # running mean 0 and variance 1: adds 3
        after = heads._shared_roi_transform([features], boxes)
    assert torch.allclose(after, before + 3)


def test_it_trains():
    torch.set_num_threads(1)
    model = c4_model("Res5ROIHeadsExtraNorm").train()
    square = [[4.0, 4.0, 40.0, 4.0, 40.0, 40.0, 4.0, 40.0]]
    target = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[4.0, 4.0, 40.0, 40.0]])), gt_classes=torch.tensor([1]))
    target.gt_masks = PolygonMasks([square])
    images = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with EventStorage():
        losses = model([{"image": images, "instances": target}, {"image": images, "instances": target}])
    assert "loss_mask" in losses and "loss_cls" in losses
    sum(losses.values()).backward()
    assert model.roi_heads.res5.norm.weight.grad.abs().sum() > 0
