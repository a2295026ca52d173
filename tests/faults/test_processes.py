"""Signals, frozen and killed processes, full disks and crowded folders: how a run ends, and what it says."""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.faults.runs import ROOT, options, train, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("scenes"))


def saved(folder):
    return sorted(path.name for path in folder.glob("model_*.pth"))


@pytest.mark.parametrize("fault", ["term:7", "usr1:7"])
def test_a_signal_saves_and_leaves_with_75(images, tmp_path, fault):
    done = train(options(images, tmp_path, "DATALOADER.NUM_WORKERS", 2), faults=fault)
    assert done.returncode == 75, done.stderr[-2000:]
    assert saved(tmp_path) == ["model_0000004.pth", "model_0000007.pth"]
    assert train(options(images, tmp_path), "--resume").returncode == 0


def test_a_signal_to_one_process_stops_all_at_the_same_iteration(images, tmp_path):
    done = train(options(images, tmp_path), "--num-gpus", "2", faults="term:7:1")
    assert done.returncode == 75, done.stderr[-2000:]
    assert saved(tmp_path) == ["model_0000004.pth", "model_0000007.pth"]


@pytest.fixture
def start():
    """Return a function that starts a training, which ends with the test, however that ends."""
    started = []

    def run(words, *flags, faults, **options):
        command = [sys.executable, "-m", "tests.faults.inject", faults, *flags, *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **options))
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # ends frozen processes too
        process.wait()


def wait_for(condition, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def children(pid, named=""):
    found = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if named in line]


def alive(pid):
    try:
        return "Z" not in open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]  # noqa: PTH123
    except FileNotFoundError:
        return False


def test_a_signal_to_the_launcher_is_passed_on(start, images, tmp_path):
    process = start(options(images, tmp_path, "SOLVER.MAX_ITER", 500), "--num-gpus", "2", faults="slow:0")
    wait_for(lambda: saved(tmp_path))
    process.send_signal(signal.SIGTERM)
    assert process.wait(200) == 75
    last = (tmp_path / "last_checkpoint").read_text()
    assert (tmp_path / last).is_file() and last != "model_0000004.pth"


@pytest.mark.parametrize("num_gpus", ["1", "2"])
def test_ctrl_c_saves_and_leaves_with_75(start, images, tmp_path, num_gpus):
    words = options(images, tmp_path, "SOLVER.MAX_ITER", 500, "DATALOADER.NUM_WORKERS", 1)
    process = start(words, "--num-gpus", num_gpus, faults="slow:0")
    wait_for(lambda: saved(tmp_path))
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes of a command
    assert process.wait(200) == 75
    last = (tmp_path / "last_checkpoint").read_text()
    assert (tmp_path / last).is_file() and last != "model_0000004.pth"


def test_a_signal_after_the_last_step_leaves_with_75(images, tmp_path):
    done = train(options(images, tmp_path), faults="term_at_end:0")
    assert done.returncode == 75 and "leaving what follows training" in done.stderr, done.stderr[-2000:]
    assert train(options(images, tmp_path), "--resume").returncode == 0


def test_a_signal_while_processes_start_leaves_with_75(start, images, tmp_path):
    process = start(options(images, tmp_path), "--num-gpus", "2", faults="slow:0", stderr=subprocess.PIPE, text=True)
    wait_for(lambda: children(process.pid, "spawn_main"))  # imports start others for a moment, such as ldconfig
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 75, errors[-2000:]


def test_a_second_ctrl_c_does_not_wait_for_a_frozen_process(start, images, tmp_path):
    process = start(options(images, tmp_path), "--num-gpus", "2", faults="stop:7:1")
    wait_for((tmp_path / "fault_stop").exists)
    ranks = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(5)  # until the launcher has handled the first; rank 0, which waits for rank 1, says nothing
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(40) == 130
    wait_for(lambda: not any(map(alive, ranks)))


@pytest.mark.parametrize(("num_gpus", "reaction"), [("1", "without saving)\n"), ("2", "then leaving\n")])
def test_a_second_ctrl_c_ends_a_run_at_once(start, images, tmp_path, num_gpus, reaction):
    """Before the first Ctrl-C is handled, a second one counts as the same; the launcher passes it on as SIGTERM."""
    output = {"stderr": subprocess.PIPE, "text": True}
    process = start(options(images, tmp_path), "--num-gpus", num_gpus, faults="sleep:7", **output)
    wait_for((tmp_path / "fault_sleep").exists)
    os.killpg(process.pid, signal.SIGINT)
    for line in process.stderr:
        if "asked to stop" in line and line.endswith(reaction):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 130 and "goes on from the last checkpoint" in errors
    assert saved(tmp_path) == ["model_0000004.pth"]


def test_no_process_outlives_a_killed_launcher(start, images, tmp_path):
    """In the background of a script SIGINT is ignored, which is what torch would end its processes by."""
    words = options(images, tmp_path, "SOLVER.MAX_ITER", 500, "DATALOADER.NUM_WORKERS", 1)
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process = start(words, "--num-gpus", "2", faults="slow:0", **ignore)
    wait_for(lambda: saved(tmp_path))
    ranks = children(process.pid)
    everyone = [*ranks, *(worker for rank in ranks for worker in children(rank))]
    assert len(everyone) >= 4
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, everyone)))


def test_a_killed_process_is_named(images, tmp_path):
    done = train(options(images, tmp_path), "--num-gpus", "2", faults="kill:7:1")
    assert done.returncode == 1
    assert "rank 1 on " in done.stderr.splitlines()[-1] and "SIGKILL" in done.stderr.splitlines()[-1]


def test_a_process_that_fails_is_named(images, tmp_path):
    done = train(options(images, tmp_path), "--num-gpus", "2", faults="raise:7:1")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "rank 1 on " in last and "ZeroDivisionError: a fault was asked for" in last


def test_a_frozen_process_is_named_and_the_run_leaves(images, tmp_path):
    words = options(images, tmp_path, "RUN.WATCHDOG_SECONDS", 5, "SOLVER.IMS_PER_BATCH", 6)
    done = train(words, "--num-gpus", "3", faults="stop:7:1")
    assert done.returncode == 75, done.stderr[-2000:]
    assert "rank 0 on" in done.stderr and "no step done for 5 s" in done.stderr
    silent = set(re.findall(r"rank (\d) on \S+ \(pid \d+\) gives no sign of life", done.stderr))
    assert silent == {"1"}  # and not those that wait for it
    assert "all_reduce" in done.stderr  # where rank 0 waits
    assert saved(tmp_path) == ["model_0000004.pth"]


def test_a_frozen_first_process_does_not_hold_the_others(images, tmp_path):
    """It keeps the list of processes, so nobody can ask who is silent."""
    words = options(images, tmp_path, "RUN.WATCHDOG_SECONDS", 5)
    done = train(words, "--num-gpus", "2", faults="stop:7:0")
    assert done.returncode == 75, done.stderr[-2000:]
    assert "rank 1 on" in done.stderr and "does not answer" in done.stderr


def test_frozen_workers_do_not_hold_the_run(start, images, tmp_path):
    words = options(images, tmp_path, "DATALOADER.NUM_WORKERS", 2, "RUN.WATCHDOG_SECONDS", 4)
    process = start(
        [*words, "SOLVER.MAX_ITER", "200"], faults="slow:0,hang_worker:7", stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: saved(tmp_path))
    workers = children(process.pid)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 75, errors[-2000:]
    assert "_next_batch" in errors
    assert workers
    wait_for(lambda: not any(map(alive, workers)))  # killed with their parent, each as soon as it gets a processor


def test_a_killed_worker_is_explained(images, tmp_path):
    done = train(options(images, tmp_path, "DATALOADER.NUM_WORKERS", 2), faults="kill_worker:7")
    assert done.returncode == 1
    assert "memory ran out: take fewer DATALOADER.NUM_WORKERS" in done.stderr
    assert saved(tmp_path) == ["model_0000004.pth"]


def test_unwritable_metrics_do_not_end_a_run(images, tmp_path):
    (tmp_path / "metrics.json").symlink_to("/dev/full")
    done = train(options(images, tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "cannot write metrics" in done.stdout
    assert (tmp_path / "backbone.pkl").is_file()


def test_an_unwritable_log_does_not_end_a_run(images, tmp_path):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    done = train(options(images, tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_full_disk_at_one_save(images, tmp_path):
    (tmp_path / ".model_0000004.pth.partial").symlink_to("/dev/full")
    done = train(options(images, tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert saved(tmp_path) == ["model_0000009.pth", "model_final.pth"]
    assert "could not save model_0000004, no. 1 in a row" in done.stdout


def test_a_folder_has_one_run(start, images, tmp_path):
    process = start(options(images, tmp_path, "SOLVER.MAX_ITER", 500), faults="slow:0")
    wait_for(lambda: saved(tmp_path))
    second = train(options(images, tmp_path), "--resume")
    assert second.returncode == 2
    assert f"is in use by pid {process.pid} on " in second.stderr
    process.kill()
    process.wait()
    assert train(options(images, tmp_path), "--resume").returncode == 0


@pytest.mark.parametrize("fault", ["nan_loss:4", "nan_grad:4"])
def test_a_step_that_is_not_finite_is_dropped_and_never_saved(images, tmp_path, fault):
    """In the very iteration after which a checkpoint is due."""
    done = train(options(images, tmp_path), faults=fault)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "iteration 4 dropped, no. 1 in a row" in done.stdout
    assert saved(tmp_path) == ["model_0000004.pth", "model_0000009.pth", "model_final.pth"]
    for line in (tmp_path / "metrics.json").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_nan_in_one_process_is_dropped_in_both(images, tmp_path):
    done = train(options(images, tmp_path), "--num-gpus", "2", faults="nan_loss:4:1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "iteration 4 dropped" in done.stdout and (tmp_path / "model_final.pth").is_file()


def test_nan_weights_are_not_saved_and_end_the_run(images, tmp_path):
    done = train(options(images, tmp_path, "RUN.MAX_DROPPED_STEPS", 3), faults="nan_param:4")
    assert done.returncode == 2
    assert "could not save model_0000004, no. 1 in a row: the model has weights that are not finite" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("train_net.py: 3 steps in a row (RUN.MAX_DROPPED_STEPS)")
    assert "Traceback" not in done.stderr and "Traceback" in (tmp_path / "log.txt").read_text()
    assert saved(tmp_path) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_restarts(images, tmp_path, rank):
    """The rank is killed once; the restarted processes go on from the checkpoint."""
    words = ["--resume", "auto", *options(images, tmp_path, "SOLVER.MAX_ITER", 12)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command = [sys.executable, *torchrun, "-m", "tests.faults.inject", f"kill:7:{rank}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DENSESIAM_D2_TEST_ONCE": str(tmp_path / "done")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Starting training from iteration 5" in done.stdout
    assert (tmp_path / "backbone.pkl").is_file()


def test_children_are_told_from_dead_ones():
    """The helper above can fail: a live process counts as alive, an ended one does not."""
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(30,))
    process.start()
    assert alive(process.pid)
    process.kill()
    process.join()
    assert not alive(process.pid)
