"""Find out from the shapes of its tensors which ResNet a state is: depth, groups and widths."""

from collections.abc import Mapping
from typing import Any

from densesiam_d2.checkpoint.names import ResNetKind, check_complete, convolution_shapes, ordinary

__all__ = ["kind_of"]


def kind_of(state: Mapping[str, Any]) -> ResNetKind:
    """Return which ResNet a complete state is.

    Args:
        state: detectron2 name -> tensor or array, without ``num_batches_tracked``.

    Raises:
        ValueError: it is not one whole ResNet, or a shape is not that of any ResNet that detectron2 builds.
    """
    depth = check_complete(state)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    flat = next((n for n, shape in shapes.items() if ".norm." not in n and (len(shape) != 4 or 0 in shape)), None)
    if flat:
        shard = "this looks like one shard of a model (FSDP, ZeRO); save the full state dict"
        what = "a network for volumes or videos does not fit" if len(shapes[flat]) > 4 else shard
        raise ValueError(f"{flat} is {shapes[flat]}, but convolutions have 4 dimensions: {what}")
    stem, first, second = (shapes[f"{n}.weight"] for n in ("stem.conv1", "res2.0.conv1", "res2.0.conv2"))
    if stem[1:] != (3, 7, 7):
        raise ValueError(
            f"stem.conv1.weight is {stem}: detectron2's ResNets begin with a 7x7 convolution of 3 channels, those for "
            "small images (CIFAR) or other inputs do not"
        )
    if ordinary(depth).res2_out_channels == 64:  # basic blocks
        kind = ordinary(depth)
    else:
        per_group = max(second[1], 1)
        kind = ResNetKind(depth, first[0] // per_group, per_group, stem[0], shapes["res2.0.conv3.weight"][0])
    for name, shape in convolution_shapes(kind).items():
        expected = {
            name: shape,
            **{n: shape[:1] for n in shapes if n.startswith(f"{name.removesuffix('weight')}norm.")},
        }
        for key, wanted in expected.items():
            if shapes[key] != wanted:
                raise ValueError(f"{key} is {shapes[key]}, but a {kind.name} has {wanted}")
    return kind
