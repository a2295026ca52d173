"""A real training on fixed global batches, run in one or two CPU processes (imported by child processes)."""

import sys
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from densesiam_d2.engine import Trainer, load_config

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "DATASETS.TRAIN",
    "('unused',)",
    "MODEL.DEVICE",
    "cpu",
    "SOLVER.IMS_PER_BATCH",
    "4",
    "SOLVER.MAX_ITER",
    "1",
    "MODEL.SSL.ZERO_INIT_RESIDUAL",
    "False",
    "MODEL.RESNETS.OUT_FEATURES",
    "['res3']",
    "MODEL.SSL.IN_FEATURE",
    "res3",
    "SOLVER.BASE_LR",
    "0.05",
    "MODEL.DENSESIAM.PROJ_DIMS",
    "[16,16,8]",
    "MODEL.DENSESIAM.PRED_DIM",
    "8",
    "MODEL.DENSESIAM.GRID_SIZE",
    "4",
    "MODEL.DENSESIAM.REGION.PROJ_DIMS",
    "[16,16,8]",
    "MODEL.DENSESIAM.REGION.PRED_DIM",
    "8",
]


def global_batches(num: int) -> list[dict]:
    """Return batches of 4 images; the views of the first image of each do not overlap."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[[0.0, 0, 40, 40], [30, 10, 70, 50]]]).repeat(4, 1, 1)
    boxes[0, 1] += 100
    boxes[1, 1] = torch.tensor([70.0, 10, 30, 50])  # flipped
    return [
        {"views": torch.randint(0, 256, (4, 2, 3, 64, 64), generator=generator, dtype=torch.uint8), "view_boxes": boxes}
        for _ in range(num)
    ]


class FixedTrainer(Trainer):
    """The trainer of this project, with this process's share of fixed batches for data."""

    @classmethod
    def build_train_loader(cls, cfg):
        rank, world = comm.get_rank(), comm.get_world_size()
        return [{k: v[rank::world] for k, v in b.items()} for b in global_batches(cfg.SOLVER.MAX_ITER)]


def train(output_dir: str) -> None:
    """Train from seeded weights and write the final state and losses to ``output_dir``."""
    torch.set_num_threads(1)
    cfg = load_config(str(ROOT / "configs" / "pretrain_R18.yaml"), [*OPTIONS, "OUTPUT_DIR", output_dir])
    seed_all_rng(1)
    trainer = FixedTrainer(cfg)
    trainer.train()
    if comm.is_main_process():
        torch.save(
            {
                "model": {k.removeprefix("module."): v for k, v in trainer.model.state_dict().items()},
                "norm": next(type(m).__name__ for m in trainer.model.modules() if "BatchNorm" in type(m).__name__),
            },
            Path(output_dir) / "result.pth",
        )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # or its threads abort the process, now and then


if __name__ == "__main__":
    launch(train, int(sys.argv[1]), dist_url="auto", args=(sys.argv[2],))
