"""A run that is broken off and resumed ends as if it had never stopped."""

import json

import pytest
import torch

from tests.faults.runs import differences, final_state, options, train, write_images

WORKERS = ["DATALOADER.NUM_WORKERS", 2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def straight(images, tmp_path_factory):
    """A run of 12 iterations without workers; the folder."""
    folder = tmp_path_factory.mktemp("straight")
    done = train(options(images, folder))
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def rows(folder):
    return [json.loads(line)["iteration"] for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("iterations", [[3], [5, 11]], ids=["before the first save", "after a save and in the end"])
def test_killed_and_resumed_is_bit_identical(images, straight, tmp_path, iterations):
    """Loader workers on top, where the straight run has none; the first restart has nothing to resume from."""
    for iteration in iterations:
        killed = train(options(images, tmp_path, *WORKERS), "--resume", "auto", faults=f"kill:{iteration}")
        assert killed.returncode == -9
    done = train(options(images, tmp_path, *WORKERS), "--resume", "auto")
    assert done.returncode == 0, done.stderr[-2000:]
    assert differences(straight, tmp_path) == []


def test_rows_of_metrics_come_once(images, tmp_path):
    """22 iterations, killed at 21 after the row of 19 was written, and resumed from 14."""
    words = options(images, tmp_path, "SOLVER.MAX_ITER", 22, "SOLVER.CHECKPOINT_PERIOD", 15)
    assert train(words, faults="kill:21").returncode == -9
    before = rows(tmp_path)
    with (tmp_path / "metrics.json").open("ab") as file:  # what a power cut may leave
        file.write(b'[1]\n{"iteration": null}\n{"iteration": 3, \xff\0\0')
    assert train(words, "--resume").returncode == 0
    assert before == [19]
    assert rows(tmp_path) == [19, 21]


def test_rows_before_the_first_checkpoint_come_once(images, tmp_path):
    words = options(images, tmp_path, "SOLVER.MAX_ITER", 22, "SOLVER.CHECKPOINT_PERIOD", 100)
    assert train(words, faults="kill:21").returncode == -9
    assert rows(tmp_path) == [19]
    assert train(words, "--resume", "auto").returncode == 0
    assert rows(tmp_path) == [19, 21]


def test_two_processes_resume_bit_identical(images, tmp_path):
    two = options(images, "OUTPUT", "SOLVER.MAX_ITER", 8)
    first, second = ([str(f) if word == "OUTPUT" else word for word in two] for f in (tmp_path / "a", tmp_path / "b"))
    assert train(first, "--num-gpus", "2").returncode == 0
    assert train(second, "--num-gpus", "2", faults="kill:6:1").returncode == 1
    done = train(second, "--num-gpus", "2", "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert differences(tmp_path / "a", tmp_path / "b") == []


def test_another_number_of_processes_goes_on(images, tmp_path):
    """The norm of a single CPU process has another name than that of two; it is the same training."""
    words = options(images, tmp_path, "SOLVER.MAX_ITER", 8)
    assert train(words, faults="kill:6").returncode == -9
    done = train(words, "--num-gpus", "2", "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "there were 1 processes and are 2: weights will differ" in done.stdout
    assert "Starting training from iteration 5" in done.stdout


def test_without_a_seed_the_drawn_one_is_kept(images, tmp_path):
    """SEED -1 draws one; the resumed part goes on with it instead of drawing again."""
    words = options(images, tmp_path, "SEED", -1)
    assert train(words, faults="kill:6").returncode == -9
    stored = torch.load(tmp_path / "model_0000004.pth", weights_only=True)["trainer"]["hooks"]["ExactResumeHook"]
    done = train(words, "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert final_state(tmp_path)["trainer"]["hooks"]["ExactResumeHook"]["seed"] == stored["seed"] >= 0


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (["SOLVER.IMS_PER_BATCH", 2, "SEED", 8], ["SOLVER.IMS_PER_BATCH was 4 and is 2", "SEED was 7 and is 8"]),
        (["DATASETS.TRAIN", "('folder:{images}/..',)"], ["DATASETS.TRAIN had 12 images and has"]),
        (["MODEL.DENSESIAM.PIXEL.LOSS_WEIGHT", 2.0], ["MODEL.DENSESIAM.PIXEL.LOSS_WEIGHT was 1.0 and is 2.0"]),
    ],
)
def test_another_training_is_refused(images, straight, tmp_path, change, lines):
    (tmp_path / "model_final.pth").write_bytes((straight / "model_final.pth").read_bytes())
    change = [str(word).format(images=images) for word in change]
    done = train(options(images, tmp_path, *change), "--resume")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for line in lines:
        assert line in done.stderr
    allowed = train(options(images, tmp_path, *change, "RUN.ALLOW_MISMATCH", True), "--resume")
    assert allowed.returncode == 0, allowed.stderr[-2000:]
    assert "resumed with another setting: " + lines[0] in allowed.stdout


def test_other_schedules_are_listed(images, straight, tmp_path):
    (tmp_path / "model_final.pth").write_bytes((straight / "model_final.pth").read_bytes())
    done = train(options(images, tmp_path, "SOLVER.MAX_ITER", 13), "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resumed with another setting: SOLVER.MAX_ITER was 12 and is 13" in done.stdout


def test_a_lower_rate_is_used(images, tmp_path):
    """Two runs go on from iteration 5, one with a rate of zero, which changes no weight."""
    words = options(images, tmp_path, "SOLVER.WEIGHT_DECAY", 0.0)
    assert train(words, faults="kill:6").returncode == -9
    before = torch.load(tmp_path / "model_0000004.pth", weights_only=True)["model"]
    done = train(options(images, tmp_path, "SOLVER.BASE_LR", 1e-30), "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resumed with another setting: SOLVER.BASE_LR was" in done.stdout
    after = final_state(tmp_path)["model"]
    assert all(torch.equal(after[name], before[name]) for name in before if name.endswith("weight"))


def test_modes_of_resume(images, tmp_path):
    done = train(options(images, tmp_path), "--resume")
    assert done.returncode == 2 and "holds no checkpoint" in done.stderr
    done = train(options(images, tmp_path, "SOLVER.MAX_ITER", 1), "--resume", "auto")
    assert done.returncode == 0
    done = train(options(images, tmp_path))
    assert done.returncode == 2 and "holds an earlier run" in done.stderr
