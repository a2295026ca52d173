import logging
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from densesiam_d2.checkpoint import (
    CheckedCheckpointer,
    backbone_metadata,
    backbone_state,
    expected_metadata,
    save_backbone,
    save_safetensors,
)
from densesiam_d2.checkpoint.export import TORCHVISION_METADATA
from densesiam_d2.checkpoint.loading import WeightsError, _caffe2_facts
from densesiam_d2.modeling.roi_heads import Res5ROIHeadsExtraNorm  # noqa: F401  registers it
from tests.checkpoint.networks import d2_resnet, fpn_cfg, fpn_detector, prefixed, resnet_cfg, tv_resnet
from tests.evaluation.processes import in_two_processes

EXPORTED = d2_resnet(18, seed=7)


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.INFO, logger="densesiam_d2")
    return caplog


@pytest.fixture
def backbone_pkl(tmp_path):
    path = tmp_path / "backbone.pkl"
    save_backbone(path, backbone_state(EXPORTED), backbone_metadata(resnet_cfg(18), 1))
    return str(path)


def checkpointer(model, cfg=None, **kwargs):
    expect = expected_metadata(cfg) if cfg is not None else None
    return CheckedCheckpointer(model, expect=expect, **kwargs)


def assert_filled(backbone, source=EXPORTED):
    for name, value in source.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(backbone.state_dict()[name], value), name


def test_every_backbone_tensor_of_mask_rcnn_is_filled(backbone_pkl, logged):
    model = fpn_detector(18, seed=1)
    checkpointer(model, fpn_cfg(18)).resume_or_load(backbone_pkl, resume=False)
    assert_filled(model.backbone.bottom_up)
    assert f"backbone: 100 of 100 tensors filled from {backbone_pkl}" in logged.text


def test_safetensors_fill_as_pkl_does_and_are_checked(tmp_path, logged):
    path = tmp_path / "backbone.safetensors"
    save_safetensors(path, backbone_state(EXPORTED), backbone_metadata(resnet_cfg(18), 1))
    model, cfg = fpn_detector(18, seed=1), fpn_cfg(18)
    checkpointer(model, cfg).resume_or_load(str(path), resume=False)
    assert_filled(model.backbone.bottom_up)
    assert f"backbone: 100 of 100 tensors filled from {path}" in logged.text
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match=r"pixel_format is RGB in the file but INPUT\.FORMAT is BGR"):
        checkpointer(model, cfg).resume_or_load(str(path), resume=False)
    # Half a ResNet is counted, as it is from a .pkl: res2 to res4 are 1 + 4 + 5 + 5 convolutions of 5 tensors.
    half = {name: value for name, value in backbone_state(EXPORTED).items() if not name.startswith("res5.")}
    save_safetensors(path, half, {})
    with pytest.raises(ValueError, match="backbone: 75 of 100 tensors filled"):
        checkpointer(model).resume_or_load(str(path), resume=False)


def test_a_machine_without_the_file_gets_it_from_the_main_process(backbone_pkl, tmp_path):
    def filled(rank):
        model = fpn_detector(18, seed=rank)
        path = backbone_pkl if rank == 0 else str(tmp_path / "elsewhere" / "backbone.pkl")
        checkpointer(model, fpn_cfg(18)).resume_or_load(path, resume=False)
        return model.backbone.bottom_up

    for backbone in in_two_processes(filled):
        assert_filled(backbone)


def test_a_machine_without_the_checkpoint_resumes_as_the_main_process(tmp_path):
    def resumed(rank):
        folder = tmp_path / str(rank)
        folder.mkdir()
        scaler = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5 if rank == 0 else 0.1)
        own = checkpointer(torch.nn.Linear(1, 1), save_dir=str(folder), save_to_disk=rank == 0, optimizer=scaler)
        if rank == 0:
            own.save("model_0000004", iteration=4)
        dist.barrier()
        extra = own.load(str(folder / "model_0000004.pth"))
        return extra["iteration"], scaler.param_groups[0]["lr"], own.model.weight.item()

    main, other = in_two_processes(resumed)
    assert main == other and main[:2] == (4, 0.5)


def test_safetensors_of_others_load(tmp_path, logged):
    """A torchvision-named backbone, as timm stores it, and a whole detector."""
    torchvision, source = tv_resnet(18, seed=7).state_dict(), fpn_detector(18, seed=2).state_dict()
    save_file(torchvision, tmp_path / "resnet.safetensors", metadata={"format": "pt"})
    save_file(source, tmp_path / "detector.safetensors")
    model, cfg = fpn_detector(18, seed=1), fpn_cfg(18)
    checkpointer(model, cfg).resume_or_load(str(tmp_path / "resnet.safetensors"), resume=False)
    assert torch.equal(model.backbone.bottom_up.res3[0].shortcut.weight, torchvision["layer2.0.downsample.0.weight"])
    cfg.INPUT.FORMAT = "BGR"  # torchvision's conventions hold where the file says nothing
    with pytest.raises(ValueError, match=r"pixel_format is RGB in the file"):
        checkpointer(model, cfg).resume_or_load(str(tmp_path / "resnet.safetensors"), resume=False)
    checkpointer(model, cfg, whole_model=True).resume_or_load(str(tmp_path / "detector.safetensors"), resume=False)
    assert all(torch.equal(value, source[name]) for name, value in model.state_dict().items())


def test_c4_detector_fills_res5_but_not_the_extra_norm(tmp_path, logged):
    exported = d2_resnet(50, seed=3)
    path = tmp_path / "backbone.pkl"
    save_backbone(path, backbone_state(exported), {})
    cfg = resnet_cfg(50)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeadsExtraNorm"
    model = build_model(cfg)
    checkpointer(model).resume_or_load(str(path), resume=False)
    assert "backbone: 265 of 265 tensors filled" in logged.text
    assert torch.equal(model.roi_heads.res5[1].conv2.weight, exported.res5[1].conv2.weight)
    assert torch.equal(model.backbone.res4[5].conv3.norm.running_var, exported.res4[5].conv3.norm.running_var)
    assert torch.equal(model.roi_heads.res5.norm.weight, torch.ones(2048))


@pytest.mark.parametrize("layout", ["pretraining", "torchvision", "moco"])
def test_other_layouts_are_converted_while_loading(tmp_path, logged, layout):
    state = tv_resnet(18, seed=7).state_dict()
    path = tmp_path / "weights.pth"
    pretraining = {**prefixed("backbone.", EXPORTED.state_dict()), "dense_projector.0.weight": torch.ones(1)}
    moco = {**prefixed("module.encoder_q.", state), "module.queue": torch.ones(1)}
    content = {
        "pretraining": {"model": pretraining},
        "torchvision": state,
        "moco": {"state_dict": moco, "epoch": 200},
    }[layout]
    torch.save(content, path)
    model = fpn_detector(18, seed=1)
    checkpointer(model, fpn_cfg(18)).resume_or_load(str(path), resume=False)
    assert "taking the backbone only, layout" in logged.text and "100 of 100" in logged.text
    if layout == "pretraining":
        assert_filled(model.backbone.bottom_up)
    else:
        assert torch.equal(model.backbone.bottom_up.res3[0].shortcut.weight, state["layer2.0.downsample.0.weight"])


def test_a_whole_detector_is_loaded_as_it_is(tmp_path, logged):
    source, model = fpn_detector(18, seed=1), fpn_detector(18, seed=2)
    torch.save({"model": source.state_dict()}, tmp_path / "model_final.pth")
    checkpointer(model).resume_or_load(str(tmp_path / "model_final.pth"), resume=False)
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert "taking the backbone only" not in logged.text and "100 of 100" in logged.text


def test_an_unfilled_backbone_stops_the_run_or_warns(tmp_path, logged):
    state = backbone_state(EXPORTED)
    for stage in ("res2.", "res3."):
        state = {name: value for name, value in state.items() if not name.startswith(stage)}
    save_backbone(tmp_path / "broken.pkl", state, {})
    model = fpn_detector(18, seed=1)
    # res2: 4 convolutions of 5 tensors; res3: 5 of them, with the shortcut
    pattern = r"backbone: 55 of 100 tensors filled .* missing backbone\.bottom_up\.res2\..* and 35 more"
    with pytest.raises(ValueError, match=pattern):
        checkpointer(model).resume_or_load(str(tmp_path / "broken.pkl"), resume=False)
    checkpointer(model, strict=False).resume_or_load(str(tmp_path / "broken.pkl"), resume=False)
    assert any(r.levelno == logging.WARNING and "55 of 100" in r.getMessage() for r in logged.records)


def test_unrelated_weights_stop_the_run(tmp_path):
    torch.save({"model": {"head.weight": torch.zeros(2)}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: no ResNet among its 1 tensors"):
        checkpointer(fpn_detector(18)).resume_or_load(str(tmp_path / "x.pth"), resume=False)
    save_backbone(tmp_path / "x.pkl", {"head.weight": np.zeros(2, np.float32)}, {})
    with pytest.raises(ValueError, match=r"backbone: 0 of 100 .*export_backbone"):
        checkpointer(fpn_detector(18)).resume_or_load(str(tmp_path / "x.pkl"), resume=False)


def test_reasons_name_the_key_to_change(tmp_path):
    state = backbone_state(EXPORTED)
    wider = {**state, "res3.0.conv2.weight": np.zeros((256, 128, 3, 3), np.float32)}
    no_statistics = {n: v for n, v in state.items() if "running" not in n}
    for weights, depth, reason in (
        (state, 34, r"holds a ResNet-18, the model a ResNet-34: check MODEL\.RESNETS\.DEPTH"),
        (wider, 18, r"res3\.0\.conv2\.weight is \(256, 128, 3, 3\) in the file but \(128, 128, 3, 3\) in the model"),
        (no_statistics, 18, r"has no running statistics: set MODEL\.RESNETS\.NORM .*\(GN, or FrozenBN\)"),
    ):
        save_backbone(tmp_path / "weights.pkl", weights, {})
        with pytest.raises(ValueError, match=reason):
            checkpointer(fpn_detector(depth)).resume_or_load(str(tmp_path / "weights.pkl"), resume=False)


@pytest.mark.parametrize("norm", ["GN", ""])
def test_statistics_that_the_norms_do_not_have_are_named(norm, tmp_path):
    """Convolutions and scales alone would load, and compute something else."""
    torch.save(tv_resnet(18).state_dict(), tmp_path / "plain.pth")
    cfg = fpn_cfg(18)
    cfg.MODEL.RESNETS.NORM = norm
    with pytest.raises(
        ValueError, match=r"statistics of batch norm, such as .*running_mean, which the config's backbone"
    ):
        checkpointer(build_model(cfg)).resume_or_load(str(tmp_path / "plain.pth"), resume=False)


def test_group_norm_does_not_become_batch_norm(tmp_path):
    network = torchvision.models.resnet18(norm_layer=lambda channels: torch.nn.GroupNorm(32, channels))
    torch.save(network.state_dict(), tmp_path / "gn.pth")
    cfg = fpn_cfg(18)
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    with pytest.raises(ValueError, match=r"no running statistics: set MODEL\.RESNETS\.NORM GN"):
        checkpointer(build_model(cfg)).resume_or_load(str(tmp_path / "gn.pth"), resume=False)
    cfg.MODEL.RESNETS.NORM = "GN"
    checkpointer(build_model(cfg)).resume_or_load(str(tmp_path / "gn.pth"), resume=False)


@pytest.mark.parametrize("facts", [{"network": {"name": "resnet18"}}, {"network": "R18-FPN"}, {"depth": "18"}])
def test_metadata_of_others_is_no_fact_of_ours(facts, tmp_path, logged):
    model = fpn_detector(18)
    torch.save({"model": model.state_dict(), "metadata": facts}, tmp_path / "theirs.pth")
    checkpointer(model, fpn_cfg(18)).resume_or_load(str(tmp_path / "theirs.pth"), resume=False)
    assert "does not say which images it takes" in logged.text


def test_a_running_average_beside_the_weights_is_told(tmp_path, logged):
    model, state = fpn_detector(18, seed=1), fpn_detector(18, seed=2).state_dict()
    torch.save({"model": state, "ema_state": model.state_dict(), "iteration": 3}, tmp_path / "ema.pth")
    checkpointer(model).resume_or_load(str(tmp_path / "ema.pth"), resume=False)
    assert "ema.pth: taking 'model', not ema_state, which has such weights, too" in logged.text
    assert torch.equal(model.state_dict()["backbone.fpn_lateral2.weight"], state["backbone.fpn_lateral2.weight"])


@pytest.mark.parametrize(
    "key, value, pattern",
    [
        (("INPUT", "FORMAT"), "BGR", r"pixel_format is RGB in the file but INPUT\.FORMAT is BGR"),
        (("MODEL", "PIXEL_MEAN"), [0.0, 0.0, 0.0], r"pixel_mean is \[123\.675, .* MODEL\.PIXEL_MEAN is \[0\.0"),
        (("MODEL", "PIXEL_STD"), [1.0, 1.0, 1.0], r"pixel_std is .* MODEL\.PIXEL_STD is \[1\.0, 1\.0, 1\.0\]"),
    ],
)
def test_metadata_that_contradicts_the_config(backbone_pkl, logged, key, value, pattern):
    cfg = fpn_cfg(18)
    setattr(cfg[key[0]], key[1], value)
    with pytest.raises(ValueError, match=pattern):
        checkpointer(fpn_detector(18), cfg).resume_or_load(backbone_pkl, resume=False)
    checkpointer(fpn_detector(18), cfg, strict=False).resume_or_load(backbone_pkl, resume=False)
    assert "contradicts the config" in logged.text and "100 of 100" in logged.text


def test_weights_of_another_kind_of_network_are_named(tmp_path):
    save_backbone(
        tmp_path / "mobile.pkl",
        {"features.0.0.weight": np.zeros((32, 3, 3, 3), np.float32)},
        {**TORCHVISION_METADATA, "network": "mobilenet_v2"},
    )
    with pytest.raises(ValueError, match=r"the file holds torchvision's mobilenet_v2, .* MODEL\.TORCHVISION\.NAME"):
        checkpointer(fpn_detector(18), fpn_cfg(18)).resume_or_load(str(tmp_path / "mobile.pkl"), resume=False)


def test_stride_of_bottlenecks_is_compared_but_not_of_basic_blocks(backbone_pkl, tmp_path):
    cfg = fpn_cfg(18)
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
    checkpointer(fpn_detector(18), cfg).resume_or_load(backbone_pkl, resume=False)
    torch.save(tv_resnet(50).state_dict(), tmp_path / "resnet50.pth")
    cfg = fpn_cfg(50)
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
    with pytest.raises(
        ValueError, match=r"stride_in_1x1 is False in the file but MODEL\.RESNETS\.STRIDE_IN_1X1 is True"
    ):
        checkpointer(fpn_detector(50), cfg).resume_or_load(str(tmp_path / "resnet50.pth"), resume=False)


def test_resuming_skips_the_check_and_restores_everything(tmp_path, logged):
    source, model = fpn_detector(18, seed=1), fpn_detector(18, seed=2)
    CheckedCheckpointer(source, str(tmp_path)).save("model_0000001", iteration=1, trainer={"iteration": 1})
    cfg = fpn_cfg(18)
    cfg.INPUT.FORMAT = "BGR"
    expect = expected_metadata(cfg)
    extra = CheckedCheckpointer(model, str(tmp_path), expect=expect).resume_or_load("no such file.pth", resume=True)
    assert extra["iteration"] == 1
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, source.backbone.bottom_up.stem.conv1.weight)
    assert "tensors filled" not in logged.text


def test_empty_weights_and_missing_file(logged):
    model = fpn_detector(18)
    assert checkpointer(model).resume_or_load("", resume=False) == {}
    assert "MODEL.WEIGHTS is empty: random weights" in logged.text
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS: file nowhere\.pkl does not exist"):
        checkpointer(model).resume_or_load("nowhere.pkl", resume=False)
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS s3://b/x\.pkl: such addresses are not fetched"):
        checkpointer(model).resume_or_load("s3://b/x.pkl", resume=False)
    for name in ("catalog://ImageNetPretrained/R-50", "catalog://x"):
        with pytest.raises(WeightsError, match=f"MODEL.WEIGHTS {name}: detectron2's catalog has no such file"):
            checkpointer(model).resume_or_load(name, resume=False)


def test_an_unknown_query_is_named(backbone_pkl):
    with pytest.raises(
        WeightsError, match=r"MODEL\.WEIGHTS: unknown query \['v'\] in \S+backbone\.pkl\?v=1: leave it out"
    ):
        checkpointer(fpn_detector(18)).resume_or_load(f"{backbone_pkl}?v=1", resume=False)


def test_distributed_data_parallel(backbone_pkl, tmp_path, logged):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = fpn_detector(18, seed=1)
        wrapped = DistributedDataParallel(model)
        checkpointer(wrapped, fpn_cfg(18)).resume_or_load(backbone_pkl, resume=False)
        assert np.array_equal(backbone_state(wrapped)["res4.0.conv1.weight"], EXPORTED.res4[0].conv1.weight.detach())
    finally:
        dist.destroy_process_group()
    assert_filled(model.backbone.bottom_up)
    assert "100 of 100" in logged.text


def test_model_zoo_files_load(tmp_path, logged):
    # A detector of detectron2's zoo: arrays under the model's names, without matching_heuristics.
    source, model = fpn_detector(18, seed=1), fpn_detector(18, seed=2)
    arrays = {name: value.numpy() for name, value in source.state_dict().items()}
    (tmp_path / "zoo.pkl").write_bytes(
        pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, protocol=2)
    )
    checkpointer(model).resume_or_load(str(tmp_path / "zoo.pkl"), resume=False)
    assert torch.equal(model.roi_heads.box_head.fc1.weight, source.roi_heads.box_head.fc1.weight)
    # ImageNetPretrained/torchvision/R-50.pkl: detectron2 names with matching_heuristics.
    content = {"model": backbone_state(EXPORTED), "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content, protocol=2))
    checkpointer(model).resume_or_load(str(tmp_path / "R-18.pkl"), resume=False)
    assert_filled(model.backbone.bottom_up)
    checkpointer(model, fpn_cfg(18)).resume_or_load(str(tmp_path / "R-18.pkl"), resume=False)  # RGB, as in the file
    bgr = fpn_cfg(18)
    bgr.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match="pixel_format is RGB in the file"):
        checkpointer(model, bgr).resume_or_load(str(tmp_path / "R-18.pkl"), resume=False)
    # ImageNetPretrained/MSRA/R-50.pkl: Caffe2 names, affine norms only (frozen batch norm fills the rest), momentum.
    caffe2 = {"conv1_w_momentum": np.zeros(1, np.float32)}
    for name, value in backbone_state(EXPORTED).items():
        if "running" not in name:
            caffe2[_caffe2_name(name)] = value
    (tmp_path / "MSRA.pkl").write_bytes(pickle.dumps(caffe2, protocol=2))
    frozen = fpn_detector(18, norm="FrozenBN")
    checkpointer(frozen).resume_or_load(str(tmp_path / "MSRA.pkl"), resume=False)
    assert torch.equal(frozen.backbone.bottom_up.res5[1].conv2.weight, EXPORTED.res5[1].conv2.weight)
    assert torch.equal(frozen.backbone.bottom_up.stem.conv1.norm.bias, EXPORTED.stem.conv1.norm.bias)
    assert "momentum" not in logged.text
    with pytest.raises(ValueError, match=r"pixel_format is BGR in the file .*; pixel_std is \[1\.0, 1\.0, 1\.0\]"):
        checkpointer(frozen, fpn_cfg(18)).resume_or_load(str(tmp_path / "MSRA.pkl"), resume=False)
    d2 = get_cfg()  # detectron2's own defaults are for these weights
    d2.MODEL.RESNETS.DEPTH = 18
    checkpointer(frozen, d2).resume_or_load(str(tmp_path / "MSRA.pkl"), resume=False)


@pytest.mark.parametrize(("middle", "stride", "std"), [(64, True, 1.0), (4, False, 57.375)])
def test_images_of_caffe2_files(middle, stride, std):
    """MSRA's ResNets have the stride in the first convolution of a block; FAIR's ResNeXt, with groups, have not."""
    shapes = {"a": (64, 64, 1, 1), "b": (64, middle, 3, 3), "c": (256, 64, 1, 1)}
    facts = _caffe2_facts({f"res2_0_branch2{letter}_w": np.zeros(shape) for letter, shape in shapes.items()})
    assert facts["stride_in_1x1"] == stride and facts["pixel_std"][0] == std


def _caffe2_name(name):
    """Return Caffe2's name of a tensor: res2.0.conv1.norm.weight -> res2_0_branch2a_bn_s."""
    if name.startswith("stem.conv1"):
        name = name.replace("stem.conv1.norm", "res_conv1_bn").replace("stem.conv1", "conv1")
    for d2, c2 in (("shortcut", "branch1"), ("conv1", "branch2a"), ("conv2", "branch2b")):
        name = name.replace(f".{d2}", f".{c2}")
    name = name.replace(".norm", ".bn").replace("bn.weight", "bn.s").replace("bn.bias", "bn.b")
    return name.replace(".weight", ".w").replace(".", "_")


def test_a_pkl_that_runs_code_is_refused(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "evil.pkl").write_bytes(b"cpathlib\nPath.touch\n(cpathlib\nPath\n(V%bt\ntR." % str(marker).encode())
    with pytest.raises(ValueError, match="it holds no tensors"):
        checkpointer(fpn_detector(18)).resume_or_load(str(tmp_path / "evil.pkl"), resume=False)
    with pytest.raises(ValueError, match="it holds pathlib"):
        checkpointer(fpn_detector(18)).load(str(tmp_path / "evil.pkl"))
    assert not marker.exists()


def test_a_deeper_network_is_refused_although_it_fills_everything(tmp_path):
    path = tmp_path / "backbone.pkl"
    save_backbone(path, backbone_state(d2_resnet(34, seed=7)), {})
    with pytest.raises(
        ValueError, match=r"holds a deeper network .* has no res2\.2, res3\.2, res3\.3, .*RESNETS\.DEPTH"
    ):
        checkpointer(fpn_detector(18, seed=1)).resume_or_load(str(path), resume=False)


@pytest.mark.parametrize("array", [torch.tensor, np.array])
def test_statistics_of_images_beside_the_weights_are_compared(array, tmp_path, logged):
    """As models of early versions of detectron2 saved them: blue, green, red."""
    model, path = fpn_detector(18, seed=1), tmp_path / "old.pth"
    mean = array([[[103.53]], [[116.28]], [[123.675]]])
    torch.save({"model": {**model.state_dict(), "pixel_mean": mean}}, path)
    with pytest.raises(WeightsError, match=r"pixel_mean is \[103\.5\d*, .* but MODEL\.PIXEL_MEAN is \[123\.675"):
        checkpointer(model, fpn_cfg(18)).resume_or_load(str(path), resume=False)
    cfg = fpn_cfg(18)
    cfg.MODEL.PIXEL_MEAN = [103.53, 116.28, 123.675]
    checkpointer(model, cfg).resume_or_load(str(path), resume=False)


def test_weights_that_say_nothing_of_their_images_are_told(tmp_path, logged):
    path = tmp_path / "zoo.pkl"
    model = fpn_detector(18, seed=1)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))
    checkpointer(model, fpn_cfg(18)).resume_or_load(str(path), resume=False)
    assert "zoo.pkl does not say which images it takes: compare INPUT.FORMAT" in logged.text
