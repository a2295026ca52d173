"""Small copies in tar files: right sizes, bytes and names; a stopped run goes on; bad files stop nothing."""

import io
import json
import os
import re
import signal

import numpy as np
import pytest
from PIL import Image

from densesiam_d2.data.image_index import ImageFiles
from densesiam_d2.image_io import read_bytes, read_image
from densesiam_d2.tools import check_data, index, shrink
from tests.data.photos import smooth_image


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    (root / "b").mkdir(parents=True)
    Image.fromarray(smooth_image(60, 80)).save(root / "a.jpg", quality=95)
    Image.fromarray(smooth_image(90, 30)).save(root / "b" / "ü.png")
    Image.fromarray(smooth_image(20, 24)).save(root / "b" / "small.jpg", quality=95)
    Image.fromarray(smooth_image(20, 24)).save(root / "b" / "small.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(smooth_image(50, 100)).save(root / "b" / "turned.JPG", quality=95, exif=exif)
    (root / "notes.txt").write_text("")
    return root


def run(*words):
    return shrink.main([*map(str, words), "--workers", "2"])


def copies(index):
    files = ImageFiles.open(index)
    records = [files[i] for i in range(len(files))]
    return {r["file_name"].partition(".tar/")[2]: r for r in records}


def test_files_of_others_beside_the_output_stay(photos, tmp_path, capsys):
    for name in ("small.jsonl", "small.unreadable", "small.index/index.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        assert run(photos, "--max-side", 40, "--output", tmp_path / "small") == 2
        assert re.search(r"small\.\w+ exists(,| and) .*: (take it away, or )?name another", capsys.readouterr().err)
        assert path.read_text() == "mine" and not (tmp_path / "small").exists()
        path.unlink()


def test_sizes_names_and_bytes(photos, tmp_path, capsys):
    assert run(photos, "--max-side", 40) == 0
    found = copies(tmp_path / "photos-40.index")
    shapes = {name: read_image(r["file_name"], r["file_part"]).shape[:2] for name, r in found.items()}
    # 60 x 80 and 90 x 30 are divided by 2 and 2.25 (13.3 is rounded); the turned image is 100 x 50, divided by 2.5.
    assert shapes == {
        "a.jpg": (30, 40),
        "b/ü.png.jpg": (40, 13),
        "b/small.jpg": (20, 24),
        "b/small.png.jpg": (20, 24),
        "b/turned.JPG": (40, 20),
    }
    small = found["b/small.jpg"]
    assert read_bytes(small["file_name"], small["file_part"]) == (photos / "b" / "small.jpg").read_bytes()
    before = sum(path.stat().st_size for path in photos.rglob("*") if path.suffix != ".txt")
    after = sum(r["file_part"][2] for r in found.values())
    summary = capsys.readouterr().out
    assert f"5 images in {tmp_path / 'photos-40.index'}: {before / 1e6:,.1f} MB became {after / 1e6:,.1f} MB" in summary
    assert "0 could not be read; skipped: 1 .txt" in summary


def test_a_copy_does_not_take_the_name_of_another_image(photos, tmp_path):
    Image.fromarray(smooth_image(20, 24, seed=1)).save(photos / "b" / "small.png.jpg")
    assert run(photos, "--max-side", 40) == 0
    found = copies(tmp_path / "photos-40.index")
    assert len(found) == 6 and {"b/small.png.jpg", "b/small.png_.jpg"} < found.keys()
    lines = (tmp_path / "photos-40.jsonl").read_text().splitlines()
    assert len({json.loads(line)["path"] for line in lines}) == 6


def test_pixels_are_those_of_a_good_resize(photos, tmp_path):
    assert run(photos, "--max-side", 40, "--quality", 95) == 0
    record = copies(tmp_path / "photos-40.index")["a.jpg"]
    ours = read_image(record["file_name"], record["file_part"]).astype(int)
    expected = np.asarray(Image.open(photos / "a.jpg").resize((40, 30), Image.BILINEAR)).astype(int)
    assert np.abs(ours - expected).mean() < 3  # JPEG, with half the resolution of colours
    coarse = tmp_path / "coarse"
    assert run(photos, "--max-side", 40, "--quality", 5, "--output", coarse) == 0
    record = copies(tmp_path / "coarse.index")["a.jpg"]
    worse = np.abs(read_image(record["file_name"], record["file_part"]) - expected).mean()
    assert worse > 2 * np.abs(ours - expected).mean()


def test_the_checksums_are_those_that_check_data_compares(photos, tmp_path, capsys):
    assert run(photos, "--max-side", 40) == 0
    words = [f"index:{tmp_path / 'photos-40.index'}", "--manifest", str(tmp_path / "photos-40.jsonl"), "--workers", "1"]
    assert check_data.main(words) == 0
    tar = tmp_path / "photos-40" / "00000.tar"
    record = copies(tmp_path / "photos-40.index")["a.jpg"]
    data = bytearray(tar.read_bytes())
    data[record["file_part"][1] + record["file_part"][2] - 20] ^= 1
    tar.write_bytes(data)
    assert check_data.main(words) == 1
    assert "a.jpg" in capsys.readouterr().out


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(shrink, "SHARD", 2)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert run(photos, "--max-side", 40, "--output", straight) == 0
    write = shrink._write_shard

    def write_one(tar, folder, results, facts):
        def until(results):
            for i, result in enumerate(results):
                if tar.name != "00000.tar" and i == 1:
                    raise KeyboardInterrupt
                yield result

        write(tar, folder, until(results), facts)

    monkeypatch.setattr(shrink, "_write_shard", write_one)
    assert run(photos, "--max-side", 40, "--output", stopped) == 75
    assert [path.name for path in sorted(stopped.glob("*.tar"))] == ["00000.tar"]
    assert not (tmp_path / "stopped.index").exists()
    first = (stopped / "00000.tar").stat().st_mtime_ns
    monkeypatch.setattr(shrink, "_write_shard", write)
    assert run(photos, "--max-side", 40, "--output", stopped) == 0
    assert (stopped / "00000.tar").stat().st_mtime_ns == first
    names = [path.name for path in sorted(straight.iterdir())]
    assert names == [f"0000{i}.{end}" for i in range(3) for end in ("json", "tar")]
    assert all((straight / name).read_bytes() == (stopped / name).read_bytes() for name in names)
    assert (tmp_path / "straight.jsonl").read_bytes() == (tmp_path / "stopped.jsonl").read_bytes()


def test_going_on_with_other_images_or_settings_is_refused(photos, tmp_path, capsys):
    def error(*words):
        assert run(photos, "--output", tmp_path / "out", *words) == 2
        return capsys.readouterr().err

    assert run(photos, "--output", tmp_path / "out", "--max-side", 40) == 0
    assert "'max_side': 40" in error("--max-side", 50)
    Image.new("RGB", (8, 8)).save(photos / "new.png")
    assert "other images than when" in error("--max-side", 40)
    (tmp_path / "out" / "00000.json").unlink()
    assert "00000.tar is not of this folder" in error("--max-side", 40)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"", b"\xff\xfe"])
def test_damaged_facts_of_a_tar_file_are_named(content, photos, tmp_path, capsys):
    words = (photos, "--output", tmp_path / "out", "--max-side", 40)
    assert run(*words) == 0
    (tmp_path / "out" / "00000.json").write_bytes(content)
    assert run(*words) == 2
    assert "out/00000.json does not hold the facts of 00000.tar: delete both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--white-level", 0), "--white-level 0 must lie between 1 and 65535"),
        (("--white-level", 65536), "--white-level 65536 must lie"),
        (("--max-side", 65501), "--max-side 65501 must lie between 1 and 65500"),
        (("--timeout", "nan"), "--timeout must be positive and finite"),
        (("--timeout", "inf"), "--timeout must be positive and finite"),
    ],
)
def test_values_that_cannot_be_used(words, message, photos, capsys):
    assert run(photos, "--max-side", 40, *words) == 2
    assert message in capsys.readouterr().err


def test_bad_files_are_named_and_counted(photos, tmp_path, capsys, monkeypatch):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 30)).save(buffer, "PNG")
    (photos / "cut.png").write_bytes(buffer.getvalue()[:40])
    (photos / "c.png").write_bytes(buffer.getvalue())

    def read(path, **options):
        if path.endswith("c.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read_image(path, **options)

    monkeypatch.setattr(shrink, "read_image", read)  # workers are forks of this process
    assert run(photos, "--max-side", 40) == 1
    printed = capsys.readouterr()
    assert f"2 could not be read, named in {tmp_path / 'photos-40.unreadable'}" in printed.out
    lines = (tmp_path / "photos-40.unreadable").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"cannot read {photos / name}" for name in ("c.png", "cut.png")]
    assert "kills the process" in lines[0] and printed.err.splitlines()[-2:] == lines
    assert len(copies(tmp_path / "photos-40.index")) == 5
    entries = [json.loads(line) for line in (tmp_path / "photos-40.jsonl").read_text().splitlines()]
    assert len(entries) == 5


def test_files_that_were_mended_are_read_again(photos, tmp_path, capsys):
    whole = (photos / "a.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(whole[:100])
    assert run(photos, "--max-side", 40) == 1
    before = (tmp_path / "photos-40" / "00000.tar").stat()
    assert run(photos, "--max-side", 40) == 1
    assert (tmp_path / "photos-40" / "00000.tar").stat().st_mtime_ns == before.st_mtime_ns  # not written again
    (photos / "a.jpg").write_bytes(whole)
    assert run(photos, "--max-side", 40) == 0
    assert "5 images in" in capsys.readouterr().out and "a.jpg" in copies(tmp_path / "photos-40.index")
    assert not (tmp_path / "photos-40.unreadable").exists()


def test_a_folder_without_a_readable_image(tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no image")
    assert run(tmp_path / "bad", "--max-side", 40) == 2
    assert re.search(
        r"none of the 1 images in .*bad can be read; the first: cannot read .*a\.jpg", capsys.readouterr().err
    )
    Image.fromarray(smooth_image(60, 80)).save(tmp_path / "bad" / "a.jpg")
    assert run(tmp_path / "bad", "--max-side", 40) == 0


def test_a_folder_whose_name_is_not_utf8(photos, capsys):
    """Its name is printed, by the index tool too, which standard output refuses as it is."""
    folder = photos.rename(photos.with_name(os.fsdecode(b"caf\xe9")))
    assert run(folder, "--max-side", 40) == 0 and index.main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(r"caf\udce9" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--max-side", "0"], "--max-side 0 must lie between 1 and 65500"),
        (["--max-side", "40", "--quality", "101"], "--quality 1 to 100"),
        (["--max-side", "40", "--output", "{root}/x"], "lies in"),
    ],
)
def test_mistakes_in_one_line(photos, words, text, capsys):
    assert run(photos, *(word.format(root=photos) for word in words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    (photos.parent / "zips").mkdir()
    (photos.parent / "zips" / "a.zip").touch()
    for folder, message in (
        (photos / "nowhere", "does not exist"),
        ("", "names no folder"),
        (photos.parent / "zips", "other files there: 1 .zip"),
    ):
        assert run(folder, "--max-side", "40") == 2
        assert message in capsys.readouterr().err
