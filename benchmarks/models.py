"""The models whose steps are measured, and batches of random views for them."""

import torch
from detectron2.modeling import build_model
from torch import nn

from densesiam_d2.engine import load_config
from densesiam_d2.engine.setup import with_cpu_norms
from densesiam_d2.solver import build_optimizer

__all__ = ["R18", "Floor", "build", "random_batch", "train_step"]

R18 = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]


def build(config: str, *words, device: str = "cpu") -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return model and optimizer of a config file, for steps at the end of training, where all losses count."""
    cfg = load_config(config, ["MODEL.DEVICE", device, *words])
    model = build_model(with_cpu_norms(cfg)).to(memory_format=torch.channels_last).train()
    # Metrics are for every twentieth step only.
    model.metrics_due, model.progress = (lambda: False), 1.0
    return model, build_optimizer(cfg, model)


def random_batch(images: int, side: int, device: str = "cpu") -> dict:
    """Return what ``collate_views`` would, with views that overlap."""
    draw = torch.Generator().manual_seed(0)
    views = torch.randint(256, (images, 2, side, side, 3), generator=draw, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    corner = torch.rand(images, 2, 2, generator=draw) * 50
    boxes = torch.cat([corner, corner + 300], dim=2)
    return {"views": views.to(device), "view_boxes": boxes.to(device)}


class Floor(nn.Module):
    """What a step cannot do without: the same calls of the backbones, forward and backward, and nothing else."""

    def __init__(self, model: nn.Module, batch):
        """Note which backbones a model calls on a batch, with what, and whether for gradients (a teacher: without)."""
        super().__init__()
        self.model, self.calls = model, []

        def note(backbone: nn.Module, args: tuple) -> None:
            self.calls.append((backbone, args[0], torch.is_grad_enabled()))

        backbones = [module for name, module in model.named_modules() if name.split(".")[-1] == "backbone"]
        hooks = [backbone.register_forward_pre_hook(note) for backbone in backbones]
        model(batch)
        for hook in hooks:
            hook.remove()

    def forward(self, batch) -> torch.Tensor:
        """Return a number whose gradient goes through all outputs; the noted calls are made, whatever the batch."""
        total = 0.0
        for backbone, x, learns in self.calls:
            with torch.set_grad_enabled(learns):
                outputs = backbone(x)
            if learns:
                total = total + sum(output.mean() for output in outputs.values())
        return total


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer | None, batch, dtype: torch.dtype | None = None):
    """Return a function that takes one step; without an optimizer it stops at the gradients."""
    device = next(model.parameters()).device.type

    def step() -> None:
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            losses = model(batch)
            loss = sum(losses.values()) if isinstance(losses, dict) else losses
        model.zero_grad()
        loss.backward()
        if optimizer is not None:
            optimizer.step()

    return step
