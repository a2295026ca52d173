from densesiam_d2.checkpoint.export import (
    TORCHVISION_METADATA,
    backbone_metadata,
    backbone_state,
    expected_metadata,
    known_metadata,
    save_backbone,
    save_safetensors,
    save_torchvision,
    with_kind,
)
from densesiam_d2.checkpoint.files import read_checkpoint
from densesiam_d2.checkpoint.layouts import recognise
from densesiam_d2.checkpoint.loading import CheckedCheckpointer
from densesiam_d2.checkpoint.names import (
    check_complete,
    depth_of,
    from_torchvision,
    rename_in_order,
    to_torchvision,
)
from densesiam_d2.checkpoint.own_names import under_own_names

__all__ = [
    "TORCHVISION_METADATA",
    "CheckedCheckpointer",
    "backbone_metadata",
    "backbone_state",
    "check_complete",
    "depth_of",
    "expected_metadata",
    "from_torchvision",
    "known_metadata",
    "read_checkpoint",
    "recognise",
    "rename_in_order",
    "save_backbone",
    "save_safetensors",
    "save_torchvision",
    "to_torchvision",
    "under_own_names",
    "with_kind",
]
