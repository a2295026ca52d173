"""A model of two networks says which one it exports; export, metadata and loading follow it."""

import numpy as np
import pytest
import torch
from torch import nn

from densesiam_d2.checkpoint import (
    CheckedCheckpointer,
    backbone_metadata,
    backbone_state,
    expected_metadata,
    read_checkpoint,
    recognise,
    save_backbone,
)
from densesiam_d2.tools.export_backbone import export_backbone
from tests.checkpoint.networks import d2_resnet, fpn_cfg, fpn_detector, resnet_cfg

STUDENT, TEACHER = d2_resnet(18, seed=1), d2_resnet(18, seed=2)
KEPT = {"backbone": STUDENT, "teacher.backbone": TEACHER}


class Pair(nn.Module):
    """Student and teacher, as SlotCon (which keeps the teacher) or BYOL (which keeps the student) have them."""

    def __init__(self, exports, seeds=(1, 2)):
        super().__init__()
        self.exports = exports
        self.backbone = d2_resnet(18, seed=seeds[0])
        self.teacher = nn.ModuleDict({"backbone": d2_resnet(18, seed=seeds[1])})


def assert_equal(state, network):
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert np.array_equal(state[name], value.numpy()), name


def saved(folder, model):
    expect = expected_metadata(resnet_cfg(18))
    CheckedCheckpointer(model, str(folder), expect=expect).save("model_final")
    return folder / "model_final.pth"


@pytest.mark.parametrize("exports", KEPT)
def test_the_module_and_its_checkpoint_export_the_same_network(tmp_path, exports):
    model = Pair(exports)
    assert_equal(backbone_state(model), KEPT[exports])
    path = saved(tmp_path, model)
    assert_equal(recognise(read_checkpoint(path)).state, KEPT[exports])
    metadata = export_backbone(path, tmp_path / "backbone.pkl")
    content = read_checkpoint(tmp_path / "backbone.pkl")
    assert_equal(content["model"], KEPT[exports])
    assert metadata["pixel_format"] == "RGB" and "exports" not in content["metadata"]  # the file holds one network


@pytest.mark.parametrize("exports", KEPT)
def test_a_detector_and_a_bare_backbone_get_the_exported_network(tmp_path, exports):
    path = saved(tmp_path, Pair(exports))
    detector = fpn_detector(18, seed=3)
    CheckedCheckpointer(detector, expect=expected_metadata(fpn_cfg(18))).resume_or_load(str(path), resume=False)
    assert_equal({n: v.numpy() for n, v in detector.backbone.bottom_up.state_dict().items()}, KEPT[exports])
    bare = nn.ModuleDict({"backbone": d2_resnet(18, seed=3)})  # all names of the student are here
    CheckedCheckpointer(bare).resume_or_load(str(path), resume=False)
    assert_equal({n: v.numpy() for n, v in bare.backbone.state_dict().items()}, KEPT[exports])


@pytest.mark.parametrize("exports", KEPT)
def test_a_bare_backbone_fills_the_student_of_a_pair(tmp_path, exports):
    """The names of the file end those of both networks; detectron2's matcher refuses that."""
    path = tmp_path / "backbone.pkl"
    network = d2_resnet(18, seed=5)
    save_backbone(path, backbone_state(network), backbone_metadata(resnet_cfg(18), 1))
    model = Pair(exports)
    CheckedCheckpointer(model).resume_or_load(str(path), resume=False)
    assert_equal({n: v.numpy() for n, v in model.backbone.state_dict().items()}, network)
    assert_equal({n: v.numpy() for n, v in model.teacher["backbone"].state_dict().items()}, TEACHER)


def test_a_pair_takes_a_whole_pair_as_it_is(tmp_path):
    path = saved(tmp_path, Pair("teacher.backbone"))
    model = Pair("teacher.backbone", seeds=(7, 8))
    CheckedCheckpointer(model).resume_or_load(str(path), resume=False)
    assert_equal({n: v.numpy() for n, v in model.backbone.state_dict().items()}, STUDENT)
    assert_equal({n: v.numpy() for n, v in model.teacher["backbone"].state_dict().items()}, TEACHER)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), Pair("teacher.backbone").parameters(), strict=True)
    )
