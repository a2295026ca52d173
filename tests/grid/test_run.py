"""Real processes of tiny commands."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from densesiam_d2.atomic import atomic_write
from densesiam_d2.engine.run_lock import lock_file
from densesiam_d2.grid import Cell, Score, Table, records, restore, run_cells
from densesiam_d2.grid import run as module
from densesiam_d2.grid.records import State, files_of, read_record

# Adds a line to runs.txt in the grid's folder, so that a test sees what ran, and how often.
NOTE = "import sys, time, pathlib; root = pathlib.Path(sys.argv[1]); name = sys.argv[2];"
NOTE += "(root / 'runs.txt').open('a').write(name + chr(10));"
SCORE = "(root / name / 'r.json').write_text('{\"AP\": 3.5}')"


def cell(root: Path, name: str, code: str = SCORE, *, needs=(), **axes) -> Cell:
    words = ("python", "-c", NOTE + code, str(root), name)
    scores = (Score("AP", "r.json", "AP"),) if code == SCORE else ()
    return Cell(name, name.split("/")[0], words, root, axes, needs, scores)


def runs(root: Path) -> list[str]:
    return (root / "runs.txt").read_text().split()


def silent(line: str) -> None:
    pass


def test_cells_run_once_in_order_of_need_and_leave_a_record(tmp_path):
    cells = [cell(tmp_path, "one", seed=3), cell(tmp_path, "two", needs=("one",))]
    lines = []
    assert run_cells(cells, show=lines.append) == {}
    assert runs(tmp_path) == ["one", "two"]
    record = json.loads((tmp_path / "one" / "cell.json").read_text())
    assert record["state"] == "done" and record["scores"] == {"AP": 3.5} and record["exit_code"] == 0
    assert record["seed"] == 3 and record["axes"] == {"seed": 3} and record["command"] == cells[0].command
    assert record.keys() >= {"code", "hardware", "date", "seconds", "cpu_seconds", "peak_mib"}
    assert record["hardware"].keys() == {"cpu", "cores", "gpus", "torch"}
    assert (tmp_path / "one" / "log.txt").read_text().startswith(f"$ {cells[0].command}\n")
    assert any("[2/2] two: done" in line and "AP 3.5" in line for line in lines)
    assert run_cells(cells, show=silent) == {}
    assert runs(tmp_path) == ["one", "two"]


def test_what_only_restored_cells_need_does_not_run(tmp_path):
    def make(root):
        return [cell(root, "first", "pass"), *(cell(root, n, needs=("first",), method=n) for n in ("done", "new"))]

    cells = make(tmp_path / "old")
    assert run_cells(cells[:2], show=silent) == {} and runs(tmp_path / "old") == ["first", "done"]
    moved = make(tmp_path / "moved")
    assert restore(moved, Table(cells).to_json()) == ["done"]
    assert run_cells(moved[:2], show=silent) == {} and not (tmp_path / "moved" / "runs.txt").exists()
    assert run_cells(moved, show=silent) == {} and runs(tmp_path / "moved") == ["first", "new"]


def test_jobs_run_at_the_same_time(tmp_path):
    """Each of the two waits for the other."""
    wait = "other = root / {'a': 'b', 'b': 'a'}[name]; (root / name / 'here').touch();"
    wait += "[time.sleep(0.05) for _ in range(400) if not (other / 'here').exists()];"
    wait += "sys.exit(not (other / 'here').exists())"
    assert run_cells([cell(tmp_path, "a", wait), cell(tmp_path, "b", wait)], jobs=2, show=silent) == {}


def test_a_failed_cell_is_named_with_its_last_line_and_tried_again(tmp_path):
    fails = "sys.exit('no such luck' if not (root / 'fixed').exists() else 0)"
    cells = [cell(tmp_path, "one", fails), cell(tmp_path, "two", needs=("one",)), cell(tmp_path, "three")]
    not_done = run_cells(cells, show=silent)
    assert "exit code 1: no such luck" in not_done["one"] and not_done["two"] == "it needs one, which failed"
    assert runs(tmp_path) == ["one", "three"]
    assert read_record(cells[0])["state"] == "failed"
    (tmp_path / "fixed").touch()
    assert run_cells(cells, show=silent) == {}
    assert runs(tmp_path) == ["one", "three", "one", "two"]


def test_what_follows_each_cell_sees_its_state(tmp_path):
    cells = [
        cell(tmp_path, "one"),
        cell(tmp_path, "two", "1/0"),
        Cell("three", "three", ("no_such_command",), tmp_path),
    ]
    seen = []
    run_cells(cells, show=silent, ended=lambda: seen.append([read_record(c).get("state") for c in cells]))
    assert seen == [["done", None, None], ["done", "failed", None], ["done", "failed", "failed"]]


def test_a_cell_without_its_score_has_failed(tmp_path):
    words = ("python", "-c", "pass")
    lost = Cell("a", "a", words, tmp_path, scores=(Score("AP", "r.json", "AP"),))
    assert "score AP" in run_cells([lost], show=silent)["a"]
    assert "r.json" in read_record(lost)["error"]


def test_a_command_that_does_not_exist_is_a_failure(tmp_path):
    assert "no_such_command" in run_cells([Cell("a", "a", ("no_such_command",), tmp_path)], show=silent)["a"]


def test_only_some_stages(tmp_path):
    cells = [cell(tmp_path, "one"), cell(tmp_path, "two", needs=("one",)), cell(tmp_path, "three")]
    not_done = run_cells(cells, only=["two", "three"], show=silent)
    assert not_done == {"two": "it needs one, which is not done"} and runs(tmp_path) == ["three"]


def test_a_done_cell_with_another_command_is_refused(tmp_path):
    run_cells([cell(tmp_path, "one")], show=silent)
    with pytest.raises(ValueError, match="one was done with another command: python"):
        run_cells([cell(tmp_path, "one", SCORE + ";1")], show=silent)
    assert runs(tmp_path) == ["one"]


@pytest.mark.parametrize(
    ("name", "before", "same", "other"),
    [
        ("a.yaml", b"SEED: 1\n", b"SEED: 1  # a comment\n", b"SEED: 2\n"),
        ("base.yaml", b"SEED: 1\n", b"SEED:   1\n", b"SEED: 2\n"),  # the _BASE_ of top.yaml
        ("a.pkl", b"old weights", b"old weights", b"new weights"),
    ],
)
def test_a_done_cell_with_other_files_is_refused(tmp_path, name, before, same, other):
    (tmp_path / name).write_bytes(before)
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\n")
    named = str(tmp_path / ("top.yaml" if name == "base.yaml" else name))
    done = cell(tmp_path / "grid", "one")
    done = dataclasses.replace(done, words=(*done.words, named))
    assert run_cells([done], show=silent) == {}
    (tmp_path / name).write_bytes(same)
    assert run_cells([done], show=silent) == {}
    (tmp_path / name).write_bytes(other)
    os.utime(named)
    with pytest.raises(ValueError, match=rf"one was done with another content of {re.escape(named)}: name another"):
        run_cells([done], show=silent)
    assert runs(tmp_path / "grid") == ["one"]


def test_a_failed_cell_with_another_command_starts_anew(tmp_path):
    run_cells([cell(tmp_path, "one", "(root / name / 'old').touch(); 1/0")], show=silent)
    assert (tmp_path / "one" / "old").exists()
    assert run_cells([cell(tmp_path, "one")], show=silent) == {}
    assert not (tmp_path / "one" / "old").exists()


def test_a_result_from_an_earlier_run_of_what_it_needs_is_refused(tmp_path):
    cells = [cell(tmp_path, "one"), cell(tmp_path, "two", needs=("one",))]
    run_cells(cells, show=silent)
    (tmp_path / "one" / "cell.json").unlink()
    with pytest.raises(ValueError, match="two was done from a run of one that is not there any more"):
        run_cells(cells, show=silent)


@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b'{"state": "done"}', b"\xff\x00\x80"])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "cell.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"one/cell.json is no record of a cell \(.*delete it"):
        run_cells([cell(tmp_path, "one")], show=silent)


# Several calls on one folder, each a process.
CALL = """
import sys
from pathlib import Path
from tests.grid.test_run import cell
from densesiam_d2.grid import run_cells
root = Path(sys.argv[1])
cells = [cell(root, f"a/{i}", "time.sleep(0.3)") for i in range(8)]
cells += [cell(root, f"b/{i}", needs=(f"a/{i}",)) for i in range(8)]
print(run_cells(cells, jobs=2), flush=True)
"""


def call(root: Path, code: str = CALL) -> subprocess.Popen:
    repo = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root)], cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(path: Path) -> None:
    """Wait until a file has a text, which may be written after the file is there."""
    end = time.monotonic() + 200
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < end, path
        time.sleep(0.05)


def test_two_calls_share_the_cells(tmp_path):
    calls = [call(tmp_path), call(tmp_path)]
    said = [process.communicate(timeout=120)[0] for process in calls]
    assert [process.returncode for process in calls] == [0, 0], said
    assert all(text.strip().endswith("{}") for text in said), said
    assert sorted(runs(tmp_path)) == sorted(f"{stage}/{i}" for stage in "ab" for i in range(8))


def test_a_cell_that_another_process_holds_is_left_to_it(tmp_path):
    holder = call(
        tmp_path,
        "import sys, time; from pathlib import Path; from densesiam_d2.engine.run_lock import lock_file\n"
        "root = Path(sys.argv[1]); lock = lock_file(root / '.locks' / 'one.lock'); (root / 'held').write_text('yes')\n"
        "while not (root / 'runs.txt').exists(): time.sleep(0.05)",
    )
    wait_for(tmp_path / "held")
    cells = [cell(tmp_path, "one"), cell(tmp_path, "two")]
    assert run_cells(cells, show=silent) == {}
    assert runs(tmp_path) == ["two", "one"]  # the holder ends after the first, so that "one" becomes free
    holder.wait(200)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"


STOPPED = """
import sys
from pathlib import Path
from tests.grid.test_run import cell
from densesiam_d2.grid import run_cells
root = Path(sys.argv[1])
code = "import os; (root / 'done').exists() or ((root / 'pid').write_text(str(os.getpid())), time.sleep(100))"
cells = [cell(root, "one", code)]
try:
    print(run_cells(cells))
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_commands_and_the_next_call_goes_on(tmp_path, number):
    process = call(tmp_path, STOPPED)
    wait_for(tmp_path / "pid")
    child = int((tmp_path / "pid").read_text())
    process.send_signal(number)
    assert process.communicate(timeout=200)[0].endswith("stopped\n")
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert json.loads((tmp_path / "one" / "cell.json").read_text())["state"] == "stopped"
    lock_file(tmp_path / ".locks" / "one.lock").close()  # free again
    (tmp_path / "done").touch()
    assert call(tmp_path, STOPPED).communicate(timeout=200)[0].endswith("{}\n")
    assert runs(tmp_path) == ["one", "one"]


def stop(*signs: Path) -> threading.Thread:
    """Stop this process's run_cells when its commands have left all signs."""

    def run():
        for sign in signs:
            wait_for(sign)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


# A training with a reader, which it needs until it has saved.
TRAINING = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
reader = subprocess.Popen(["sleep", "100"])
def save(*_):
    time.sleep(float(sys.argv[2]))
    print("saving", flush=True)
    (folder / "saved").write_text(f"reader: {reader.poll()}")
    reader.kill()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
(folder / "pid").write_text(str(os.getpid()))
time.sleep(100)
"""


@pytest.mark.parametrize(("seconds", "saved"), [(1, "reader: None"), (100, None)])
def test_a_training_in_a_shell_ends_too(tmp_path, monkeypatch, seconds, saved):
    monkeypatch.setattr(module, "_SECONDS_TO_STOP", 100 if saved else 0.5)
    folder = tmp_path / "one"
    training = shlex.join([sys.executable, "-c", TRAINING, str(folder), str(seconds)])
    one = Cell("one", "one", ("sh", "-c", f"{training} | cat; touch {folder}/late"), tmp_path)
    thread = stop(folder / "pid")
    with pytest.raises(KeyboardInterrupt):
        run_cells([one], show=silent)
    thread.join()
    assert not alive(int((folder / "pid").read_text()))
    assert read_record(one)["state"] == State.STOPPED and not (folder / "late").exists()
    assert ((folder / "saved").read_text() if saved else (folder / "saved").exists()) == (saved or False)


def test_a_signal_while_a_command_starts_stops_it(tmp_path, monkeypatch):
    started, real = [], subprocess.Popen

    def popen(*args, **kwargs):
        process = real(*args, **kwargs)
        if kwargs.get("start_new_session"):
            started.append(process.pid)
            os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    cells = [cell(tmp_path, name, "time.sleep(100)") for name in ("one", "two")]
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, jobs=2, show=silent)
    assert [read_record(c).get("state") for c in cells] == [State.STOPPED, None]
    assert not alive(started[0])


def test_a_command_that_has_ended_before_a_signal_is_recorded(tmp_path, monkeypatch):
    started, real = [], subprocess.Popen

    def popen(*args, **kwargs):
        started.append(real(*args, **kwargs))
        return started[-1]

    def show(line):
        if "one: started" in line:
            os.waitid(os.P_PID, started[-1].pid, os.WEXITED | os.WNOWAIT)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", popen)
    one = cell(tmp_path, "one")
    with pytest.raises(KeyboardInterrupt):
        run_cells([one], show=show)
    assert read_record(one)["state"] == State.DONE


def test_a_full_disk_lets_the_commands_stop_as_they_can(tmp_path, monkeypatch):
    def write(path):
        if path.exists():  # all but the first record of a cell
            raise OSError(28, "No space left on device")
        return atomic_write(path)

    monkeypatch.setattr(records, "atomic_write", write)
    wait = "[time.sleep(0.05) for _ in range(400) if not (root / 'slow' / 'pid').exists()]"
    slow = Cell("slow", "slow", ("python", "-c", TRAINING, str(tmp_path / "slow"), "2"), tmp_path)
    cells = [cell(tmp_path, "ends", wait), cell(tmp_path, "stops", "time.sleep(100)"), slow]
    with pytest.raises(OSError, match=r"No space left on device: .*/cell\.json"):
        run_cells(cells, jobs=3, show=silent)
    assert (slow.folder / "saved").exists()
    assert [read_record(c)["state"] for c in cells] == [State.STARTED] * 3


def test_commands_end_with_a_call_that_is_killed(tmp_path):
    process = call(tmp_path, STOPPED)
    wait_for(tmp_path / "pid")
    child = int((tmp_path / "pid").read_text())
    process.kill()
    process.communicate(timeout=200)
    end = time.monotonic() + 100
    while time.monotonic() < end and alive(child):
        time.sleep(0.05)
    assert not alive(child)
    (tmp_path / "done").touch()
    assert call(tmp_path, STOPPED).communicate(timeout=200)[0].endswith("{}\n")


def test_a_failed_cell_starts_anew_with_another_yaml(tmp_path):
    """What its first attempt left, such as a checkpoint, is of another training."""
    yaml, code = tmp_path / "a.yaml", "(root / name / 'left').open('a').write('x'); sys.exit(1 - (sys.argv[3] == 'b'))"
    words = ("python", "-c", NOTE + code, str(tmp_path / "grid"), "one")
    for content, left in (("SEED: 1", "x"), ("SEED: 1", "xx"), ("SEED: 2", "x")):
        yaml.write_text(content)
        (tmp_path / "grid").mkdir(exist_ok=True)
        one = Cell("one", "one", (*words, str(yaml)), tmp_path / "grid")
        assert list(run_cells([one], show=silent)) == ["one"]
        assert (tmp_path / "grid" / "one" / "left").read_text() == left


def test_a_page_that_cannot_be_written_stops_no_cell(tmp_path):
    def fail():
        raise OSError("disk full")

    lines = []
    cells = [cell(tmp_path, "one"), cell(tmp_path, "two")]
    assert run_cells(cells, show=lines.append, ended=fail) == {} and runs(tmp_path) == ["one", "two"]
    assert any("after one: disk full" in line for line in lines)


def test_restored_cells_run_again_where_their_files_are_needed(tmp_path):
    def make(root):
        chain = [cell(root, "first"), cell(root, "second", "pass", needs=("first",))]
        return [*chain, *(cell(root, name, needs=("second",), method=name) for name in ("done", "new"))]

    cells = make(tmp_path / "old")
    assert run_cells(cells[:3], show=silent) == {}
    moved = make(tmp_path / "moved")
    assert restore(moved, Table(cells).to_json()) == ["first", "done"]
    assert run_cells(moved[:3], show=silent) == {} and not (tmp_path / "moved" / "runs.txt").exists()
    assert run_cells(moved, show=silent) == {} and runs(tmp_path / "moved") == ["first", "second", "new"]


def test_what_another_call_does_with_another_command_is_not_taken(tmp_path):
    cells = [cell(tmp_path, "one"), cell(tmp_path, "two"), cell(tmp_path, "three", needs=("two",))]
    other = [cell(tmp_path, "two", SCORE + ";1")]
    not_done = run_cells(cells, show=silent, ended=lambda: run_cells(other, show=silent))
    assert "two was done with another command" in not_done["two"] and "it needs two" in not_done["three"]
    assert runs(tmp_path) == ["one", "two"]


def test_a_failed_command_may_have_removed_its_log(tmp_path):
    cells = [cell(tmp_path, "one", "(root / name / 'log.txt').unlink(); 1/0"), cell(tmp_path, "two")]
    assert run_cells(cells, show=silent)["one"].startswith("failed, exit code 1: ")
    assert runs(tmp_path) == ["one", "two"]


def test_files_are_found_as_the_commands_find_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("old.pth.tar", "w.ckpt", "w.pth", "train.json", "code.py"):
        (tmp_path / name).write_text("1")
    words = (f"{tmp_path}/code.py", f"{tmp_path}/old.pth.tar", "~/w.ckpt", f"{tmp_path}/w.pth?matching_heuristics=True")
    cell = Cell("one", "one", (*words, "coco:~/train.json,images=~/images"), tmp_path / "grid")
    assert [Path(file).name for file in files_of(cell)] == ["old.pth.tar", "w.ckpt", "w.pth", "train.json"]


def test_weights_beside_the_grids_folder_are_looked_at(tmp_path):
    (tmp_path / "grid_old").mkdir()
    weights = tmp_path / "grid_old" / "backbone.pkl"
    weights.write_bytes(b"1")
    one = Cell("one", "one", ("train", str(weights), str(tmp_path / "grid" / "one")), tmp_path / "grid")
    assert list(files_of(one)) == [str(weights)]
    assert one.fixed_words == ["train", str(weights), "GRID/one"]


def test_files_of_labels_are_looked_at(tmp_path):
    labels, classes = tmp_path / "train.json", tmp_path / "classes.txt"
    words = (f"('coco:{labels},images=/x,subset=3',)", f"masks:/a,labels=/b,classes={classes}")
    one = Cell("one", "one", words, tmp_path / "grid")
    assert files_of(one) == {}
    labels.write_text("{}")
    classes.write_text("a")
    before = files_of(one)
    assert list(before) == [str(labels), str(classes)]
    labels.write_text("[]")
    os.utime(labels, (1, 1))
    after = files_of(one)
    assert after[str(labels)] != before[str(labels)] and after[str(classes)] == before[str(classes)]
