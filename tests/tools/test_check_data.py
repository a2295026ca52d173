import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densesiam_d2.data import load_image_list
from densesiam_d2.samples.scenes import write_scenes
from densesiam_d2.tools import check_data, index, reader_pool

from ..data.photos import smooth_image
from ..faults.zoo import write_zoo

SIZES = {"a.png": (40, 60), "b.jpg": (100, 200), "town/c.png": (50, 40), "town/small.png": (31, 90)}


@pytest.fixture
def photos(tmp_path):
    """A folder of good images of known height and width, a text and a hidden file."""
    for seed, (name, size) in enumerate(SIZES.items()):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth_image(*size, seed)).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("notes")
    (tmp_path / "photos" / ".hidden.png").write_text("no image")
    return tmp_path / "photos"


def check(*words):
    return check_data.main([str(word) for word in (*words, "--workers", 2)])


def check_with_report(tmp_path, *words):
    status = check(*words, "--report", tmp_path / "report.json")
    return status, json.loads((tmp_path / "report.json").read_text())


def test_good_images(photos, tmp_path, capsys):
    status, report = check_with_report(tmp_path, photos, f"folder:{photos / 'town'}")  # the second adds no image
    assert status == 0
    # 60 x 40, 200 x 100, 40 x 50 and 90 x 31 pixels.
    assert report["megapixels"] == pytest.approx({"min": 0.002, "median": (0.0024 + 0.00279) / 2, "max": 0.02})
    assert report["images"] == 4 and report["unreadable"] == []
    assert report["kinds"] == {"PNG RGB": 3, "JPEG RGB": 1}
    assert report["skipped"] == {".txt": 1, "hidden": 1, "named again": 2}
    assert report["small"] == [str(photos / "town" / "small.png")]
    assert "dark" not in report
    assert "4 images, 0 unreadable" in capsys.readouterr().out


def test_16_bit_images_of_12_bits(photos, tmp_path, capsys):
    Image.fromarray(np.full((40, 50), 2800, np.uint16)).save(photos / "dark.png")
    status, report = check_with_report(tmp_path, photos)
    assert status == 0
    assert report["dark"] == {"images": 1, "highest": 2800, "WHITE_LEVEL": 4095}
    assert "1 16-bit images use values up to 2800 of 65535" in capsys.readouterr().out
    Image.fromarray(np.full((40, 50), 65000, np.uint16)).save(photos / "full.png")
    assert "dark" not in check_with_report(tmp_path, photos)[1]  # the other one is a dark photograph


@pytest.mark.filterwarnings("ignore")
def test_zoo(tmp_path, capsys):
    (tmp_path / "zoo").mkdir()
    animals = [a for a in write_zoo(tmp_path / "zoo") if a.path.parent == tmp_path / "zoo"]
    listed = [a for a in animals if len(a.path.name) < 256 and not a.path.is_dir()]
    status, report = check_with_report(tmp_path, tmp_path / "zoo", "--list", tmp_path / "good.txt")
    assert status == 1
    assert {file["path"] for file in report["unreadable"]} == {str(a.path) for a in listed if a.pixels is None}
    assert all(file["path"] in file["reason"] for file in report["unreadable"])
    good = [record["file_name"] for record in load_image_list(tmp_path / "good.txt")]
    assert good == sorted(str(a.path) for a in listed if a.pixels is not None)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(f"{len(report['unreadable'])} unreadable:")
    assert [line.strip() for line in lines[start + 1 : start + 11]] == [f["reason"] for f in report["unreadable"][:10]]
    assert lines[start + 11] == "  ..."


def test_manifest_finds_a_flipped_byte(photos, tmp_path, capsys):
    (photos / "copy.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "broken.png").write_bytes(b"broken already")
    manifest = tmp_path / "photos.jsonl"
    status, report = check_with_report(tmp_path, photos, "--write-manifest", manifest)
    assert status == 1 and len(report["unreadable"]) == 1
    assert report["duplicates"] == [[str(photos / "a.png"), str(photos / "copy.png")]]
    first = json.loads(manifest.read_text().splitlines()[0])
    assert first.keys() == {"path", "bytes", "sha256"}
    assert (first["path"], first["bytes"]) == ("a.png", (photos / "a.png").stat().st_size)

    (photos / "broken.png").unlink()
    moved = photos.rename(tmp_path / "elsewhere")
    _, report = check_with_report(tmp_path, moved, "--manifest", manifest)
    assert report["manifest"] == {"missing": ["broken.png"], "changed": [], "new": []}
    data = bytearray((moved / "b.jpg").read_bytes())
    data[len(data) // 2] ^= 1
    (moved / "b.jpg").write_bytes(data)
    (moved / "copy.png").rename(moved / "other.png")
    (moved / "a.png").unlink()
    os.mkfifo(moved / "a.png")  # there, but not to be read
    capsys.readouterr()
    status, report = check_with_report(tmp_path, moved, "--manifest", manifest)
    assert status == 1 and [file["path"] for file in report["unreadable"]] == [str(moved / "a.png")]
    assert report["manifest"] == {
        "missing": ["broken.png", "copy.png"],
        "changed": ["a.png", "b.jpg"],
        "new": ["other.png"],
    }
    assert "2 changed by the manifest:\n  a.png\n  b.jpg\n" in capsys.readouterr().out


def test_a_manifest_of_labelled_images_fits_a_copy_of_them(tmp_path, monkeypatch):
    write_scenes(tmp_path / "set", num=3, seed=0, size=64)
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    source = "coco:{0}/instances.json,images={0}/images"
    monkeypatch.chdir(tmp_path)
    check(source.format(tmp_path / "set"), "--write-manifest", "m.jsonl")
    paths = {json.loads(line)["path"] for line in (tmp_path / "m.jsonl").read_text().splitlines()}
    assert len(paths) == 3 and not any("/" in path for path in paths)
    monkeypatch.chdir(tmp_path / "copy")
    _, report = check_with_report(tmp_path, source.format(tmp_path / "copy"), "--manifest", tmp_path / "m.jsonl")
    assert report["manifest"] == {"missing": [], "changed": [], "new": []}


def test_a_list_of_labelled_images_by_a_relative_name_works(tmp_path, monkeypatch):
    write_scenes(tmp_path / "set", num=2, seed=0, size=64)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    assert check("coco:set/instances.json,images=set/images", "--list", "lists/good.txt") == 0
    assert check("list:lists/good.txt") == 0
    paths = [record["file_name"] for record in load_image_list(tmp_path / "lists" / "good.txt")]
    assert sorted(paths) == sorted(str(path) for path in (tmp_path / "set" / "images").iterdir())


def test_a_change_alone_fails_and_a_new_file_does_not(photos, tmp_path):
    assert check(photos, "--write-manifest", tmp_path / "m.jsonl") == 0
    (photos / "new.png").write_bytes((photos / "a.png").read_bytes())
    assert check(photos, "--manifest", tmp_path / "m.jsonl") == 0
    (photos / "a.png").unlink()
    assert check(photos, "--manifest", tmp_path / "m.jsonl") == 1


def test_list_with_missing_images(photos, tmp_path):
    (photos / "images.txt").write_text("a.png\n\n  nowhere.png \ntown/c.png\na.png\n")
    status, report = check_with_report(tmp_path, f"list:{photos / 'images.txt'}", "--list", tmp_path / "good.txt")
    assert status == 1 and report["images"] == 3 and report["skipped"] == {"named again": 1}
    assert [file["path"] for file in report["unreadable"]] == [str(photos / "nowhere.png")]
    good = [record["file_name"] for record in load_image_list(tmp_path / "good.txt")]
    assert good == [str(photos / "a.png"), str(photos / "town" / "c.png")]


def test_a_name_that_is_in_a_tar_file_twice(photos, tmp_path, capsys):
    (photos / "b.jpg").write_bytes(b"no image")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as tar:
        for name in ("b.jpg", "a.png"):
            tar.add(photos / name, "x.png")
    assert index.main([str(tmp_path / "tars")]) == 0
    status, report = check_with_report(tmp_path, f"index:{tmp_path / 'tars.index'}")
    assert status == 1 and report["images"] == 2 and len(report["unreadable"]) == 1
    assert check(f"index:{tmp_path / 'tars.index'}", "--write-manifest", tmp_path / "m.jsonl") == 2
    assert "0.tar/x.png stands twice in its tar file; a manifest cannot" in capsys.readouterr().err


@pytest.mark.parametrize("checksums", [False, True])
def test_files_that_kill_or_block_a_worker(photos, monkeypatch, checksums):
    def read(path, part):
        if path.startswith("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if path.startswith("hangs"):
            time.sleep(60)
        if path == "fault":
            raise KeyError("a fault of a decoder")
        return smooth_image(40, 60)

    monkeypatch.setattr(reader_pool, "read_image", read)  # workers are forks of this process
    paths = [f"good{i}" for i in range(20)]
    paths[1:1] = ["dies0", "dies1"]
    paths[9:9] = ["hangs", "fault"]
    paths.append("dies2")
    records = [{"file_name": path} for path in paths]
    results = list(reader_pool.check_images(records, 2, timeout=3, with_checksums=checksums))
    assert [result.path for result in results] == paths
    for result in results:
        if result.path.startswith("good"):
            assert result.error is None and result.size == (60, 40)
    errors = {result.path: result.error for result in results if result.error}
    assert errors.keys() == {"dies0", "dies1", "dies2", "hangs", "fault"}
    assert errors["hangs"] == "cannot read hangs: it takes more than 3 s"
    assert errors["dies2"] == "cannot read dies2: it kills the process that reads it, or memory has run out"
    assert errors["fault"] == "cannot read fault: KeyError: 'a fault of a decoder'"


INTERRUPTED = """
import time
from densesiam_d2.tools import reader_pool

def read(path, part):
    print("reading", flush=True)
    time.sleep(60)

reader_pool.read_image = read
list(reader_pool.check_images([{"file_name": "a"}, {"file_name": "b"}], 2))
"""


def test_ctrl_c_ends_the_workers_at_once():
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == b"reading\n"
        start = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.communicate(timeout=50)  # returns when the workers, which hold the pipe, have ended
    assert process.returncode == -signal.SIGINT and time.monotonic() - start < 30


def test_names_that_a_list_cannot_hold(tmp_path, capsys):
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [b"plain.png", b"two\nlines.png", b"latin-\xe9.png", "line\u2028separator.png".encode()]
    for name in names:
        Image.new("RGB", (40, 40)).save(folder / os.fsdecode(name))
    (folder / "\x1b[31mred\n.png").write_text("no image")
    words = ["--list", tmp_path / "good.txt", "--write-manifest", tmp_path / "m.jsonl"]
    status, report = check_with_report(tmp_path, folder, *words)
    assert status == 1 and report["images"] == 5 and len(report["unreadable"]) == 1
    assert [record["file_name"] for record in load_image_list(tmp_path / "good.txt")] == [str(folder / "plain.png")]
    output = capsys.readouterr().out
    assert "3 left out of the list" in output and "\x1b" not in output and "\\x1b[31mred\\n.png" in output
    _, report = check_with_report(tmp_path, folder, "--manifest", tmp_path / "m.jsonl")
    assert report["manifest"] == {"missing": [], "changed": [], "new": []}


def test_files_of_several_pages_are_a_kind(tmp_path):
    (tmp_path / "stacks").mkdir()
    pages = [Image.new("L", (40, 40), value) for value in (10, 20)]
    pages[0].save(tmp_path / "stacks" / "one.tif")
    pages[0].save(tmp_path / "stacks" / "two.tif", save_all=True, append_images=pages[1:])
    _, report = check_with_report(tmp_path, tmp_path / "stacks")
    assert report["kinds"] == {"TIFF L": 1, "TIFF L of several pages": 1}


def test_wrong_usage(photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "a.zip").touch()
    (tmp_path / "latin.txt").write_bytes(b"\xe9.png\n")
    (tmp_path / "no_manifest.jsonl").write_text('{"path": "a.png"}\n')
    for words, message in (
        ([tmp_path / "nowhere"], "nowhere does not exist"),
        ([f"list:{tmp_path / 'nowhere.txt'}"], "nowhere.txt"),
        ([f"list:{tmp_path / 'latin.txt'}"], "latin.txt, line 1: not UTF-8"),
        ([f"list:{photos}"], "photos is a folder: folder: reads its images"),
        ([tmp_path / "empty"], "empty holds no images"),
        ([tmp_path / "zips"], "other files there: 1 .zip"),
        ([""], "names no folder"),
        ([f"folder:{photos / 'a.png'}"], f"a.png is a file: give a folder, or list:{photos / 'a.png'} if"),
        ([photos, "--report", tmp_path], "cannot be written"),
        ([photos, "--report", tmp_path / "a", "--list", tmp_path / "a"], "--report and --list both name"),
        ([photos, "--list", tmp_path / "nowhere" / "good.txt"], "cannot be written"),
        ([photos, "--manifest", tmp_path / "nowhere.jsonl"], "nowhere.jsonl"),
        ([photos, "--manifest", tmp_path / "no_manifest.jsonl"], "no_manifest.jsonl has not been written by"),
        ([photos, photos / "town", "--write-manifest", tmp_path / "m.jsonl"], "give one source"),
        (
            [photos, "--manifest", tmp_path / "latin.txt"],
            "latin.txt has not been written by --write-manifest: UnicodeDecodeError: 'utf-8'",
        ),
        ([photos, "--timeout", "0"], "--timeout 0.0 must be positive"),
        ([photos, "--timeout", "nan"], "--timeout nan must be positive"),
    ):
        assert check(*words) == 2
        error = capsys.readouterr().err
        assert error.startswith("check_data: ") and message in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        check_data.main([])
    assert caught.value.code == 2
    assert not list(Path(tmp_path).glob("*.partial"))


def test_an_index_and_images_in_tar_files(photos, tmp_path, capsys):
    (tmp_path / "shards").mkdir()
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:-30])
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        tar.add(photos, "x")
    for name in ("photos", "shards"):
        index.main([str(tmp_path / name)])
    _, of_folder = check_with_report(tmp_path, photos, "--write-manifest", tmp_path / "sums.jsonl")
    status, of_index = check_with_report(tmp_path, f"index:{tmp_path / 'photos.index'}")
    assert status == 1 and len(of_folder["unreadable"]) == 1
    assert of_index.keys() | {"duplicates"} == of_folder.keys()
    assert all(of_index[key] == of_folder[key] for key in ("images", "unreadable", "small", "megapixels", "kinds"))
    of_shards = tmp_path / "shards.jsonl"
    source = f"index:{tmp_path / 'shards.index'}"
    status, of_tar = check_with_report(tmp_path, source, "--write-manifest", of_shards)
    assert status == 1 and of_tar["images"] == 5
    assert [Path(file["path"]).name for file in of_tar["unreadable"]] == ["broken.png"]
    assert of_tar["kinds"] == of_folder["kinds"]
    sums = [
        {Path(r["path"]).name: r["sha256"] for r in map(json.loads, f.read_text().splitlines())}
        for f in (tmp_path / "sums.jsonl", of_shards)
    ]
    assert sums[0] == sums[1]
    assert check(source, "--list", tmp_path / "good.txt") == 2
    assert "--list cannot name images in tar files" in capsys.readouterr().err


def test_endings_that_are_not_text_lose_no_report(photos, tmp_path):
    Path(os.fsdecode(os.fsencode(photos) + b"/notes.M\xfcller")).write_bytes(b"")
    words = [sys.executable, "-m", "densesiam_d2.tools.check_data", str(photos), "--report", str(tmp_path / "r.json")]
    done = subprocess.run([*words, "--workers", "1"], env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, text=True)
    assert done.returncode == 0 and (tmp_path / "r.json").is_file()
