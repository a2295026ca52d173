"""Every method goes on after a save as if it had not stopped, with its own yaml: teacher, schedules, optimizer."""

import shutil
from pathlib import Path

import pytest
import torch

import train_net
from densesiam_d2.engine import argument_parser, checked_config, load_config
from densesiam_d2.modeling import METHODS
from densesiam_d2.modeling.meta_arch import MoCo, SimSiam
from densesiam_d2.samples.scenes import write_scenes

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.SSL.ZERO_INIT_RESIDUAL": False,
    "MODEL.DENSESIAM.PROJ_DIMS": [16, 16, 8],
    "MODEL.DENSESIAM.GRID_SIZE": 4,
    "MODEL.SIMSIAM.PROJ_DIMS": [16, 16, 8],
    "MODEL.BYOL.HIDDEN_DIM": 16,
    "MODEL.PIXPRO.HIDDEN_DIM": 16,
    "MODEL.SIMCLR.PROJ_DIMS": [16, 16, 8],
    "MODEL.MOCO.PROJ_DIMS": [16, 8],
    "MODEL.MOCO.QUEUE_LENGTH": 16,
    "MODEL.SLOTCON.HIDDEN_DIM": 16,
    "MODEL.RESIM.DIM": 8,
    "MODEL.CLUSTERING.GRID_SIZE": 8,
    "MODEL.IIC.WIDTH": 8,
    "MODEL.IIC.WINDOW": 2,
    "INPUT.SSL.VIEW_SIZE": 64,
    "INPUT.SSL.PATCH_SIZE": 21,
    "INPUT.SSL.PRE_CROP": 0,
    "DATASETS.TEST": (),
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.CHECKPOINT_KEEP_LAST": 0,
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.WARMUP_EPOCHS": 1.0,
    "SOLVER.EPOCHS": 2.0,  # of 8 images: 4 iterations
    "TEST.EVAL_PERIOD": 0,
    "SEED": 3,
}


# Each method as it is, and keys that a recipe does not set.
CASES = [*((method, ()) for method in METHODS), (SimSiam, ("INPUT.SSL.COLOR_ON_DEVICE", True))]
CASES.append((SimSiam, ("MODEL.SSL.CHECKPOINT_STAGES", "['res2']")))
CASES.append((MoCo, ("SOLVER.ACCUMULATE", 2)))


def recipe_of(method) -> Path:
    """Return the shortest named yaml that trains a method."""
    recipes = [path for path in CONFIGS.rglob("*.yaml") if path.parent.name in ("configs", "unsup_seg")]
    own = [path for path in recipes if method.__name__ == load_config(str(path)).MODEL.META_ARCHITECTURE]
    return min((path for path in own if not path.name.startswith("Base")), key=lambda path: (len(path.name), path.name))


def tensors(value, name="") -> dict[str, torch.Tensor]:
    """Return all tensors in nested dicts and lists, by their place."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key: tensor for k, v in items for key, tensor in tensors(v, f"{name}/{k}").items()}


@pytest.mark.parametrize(("method", "keys"), CASES, ids=[" ".join(map(str, (m.__name__, *keys))) for m, keys in CASES])
def test_resumed_equals_undisturbed(method, keys, tmp_path):
    write_scenes(tmp_path / "scenes", num=8, seed=0, size=64)

    def run(folder, *flags):
        words = [str(w) for pair in SMALL.items() for w in pair] + list(map(str, keys))
        words += ["DATASETS.TRAIN", f"folder:{tmp_path / 'scenes' / 'images'}", "OUTPUT_DIR", str(folder)]
        args = argument_parser().parse_args([*flags, "--config-file", str(recipe_of(method)), *words])
        train_net.main(checked_config(args), args)
        return torch.load(folder / "model_final.pth", weights_only=True)

    straight, half = tmp_path / "straight", tmp_path / "half"
    expected = run(straight)
    assert expected["iteration"] == 3
    config = (straight / "config.yaml").read_text()
    assert "MAX_ITER: 4\n" in config and "WARMUP_ITERS: 2\n" in config and "EPOCHS: 0.0\n" in config
    half.mkdir()
    shutil.copy(straight / "model_0000001.pth", half)
    (half / "last_checkpoint").write_text("model_0000001.pth")
    stored = torch.load(half / "model_0000001.pth", weights_only=True)["model"]
    assert any(not torch.equal(value, expected["model"][name]) for name, value in stored.items())
    actual = run(half, "--resume")
    one, other = ({**tensors(x["model"]), **tensors(x["trainer"])} for x in (expected, actual))
    assert one.keys() == other.keys() and len(one) > 90
    assert not [name for name in one if not torch.equal(one[name], other[name])]
    run(half, "--resume")  # nothing is left to train
    assert not list(half.glob("config.*.yaml")), "copies of a config.yaml that has not changed"
