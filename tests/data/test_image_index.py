"""Indices: the same images as the folder they were made of, in no memory."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
import tracemalloc

import pytest
from PIL import Image

from densesiam_d2.data.image_index import KIND, ImageFiles, write_index
from densesiam_d2.data.image_listing import index_if_large, load_image_folder, open_index
from densesiam_d2.image_io import read_image
from densesiam_d2.tools.index import main
from tests.evaluation.processes import in_two_processes


@pytest.fixture
def photos(tmp_path):
    """Images whose names sort in other ways by folder than as whole paths; returns their folder."""
    root = tmp_path / "photos"
    for i, name in enumerate(["a/2.png", "a.png", "a-b/1.png", "b/c/ü.jpg", "b/x.txt", ".hidden/1.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (i * 40, 100, 100)).save(root / name, "JPEG" if name.endswith("jpg") else "PNG")
    return root


def names(files):
    return [files[i]["file_name"] for i in range(len(files))]


def test_an_index_names_what_its_folder_holds(photos, capsys):
    assert main([str(photos)]) == 0
    assert "4 images" in capsys.readouterr().out
    files = ImageFiles.open(photos.with_name("photos.index"))
    listed = ImageFiles([record["file_name"] for record in load_image_folder(photos)])
    assert names(files) == names(listed) == sorted(names(listed))
    assert len(files) == 4
    assert files.digest() == listed.digest()
    with pytest.raises(IndexError):
        files[4]


def test_it_moves_with_its_folder(photos, tmp_path):
    main([str(photos)])
    digest = ImageFiles.open(tmp_path / "photos.index").digest()
    (tmp_path / "new").mkdir()
    for name in ("photos", "photos.index"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    files = ImageFiles.open(tmp_path / "new" / "photos.index")
    assert files[0]["file_name"].startswith(str(tmp_path / "new" / "photos"))
    assert files.digest() == digest


def test_only_one_subfolder(tmp_path):
    """The common folder of the names is then not the root."""
    (tmp_path / "photos" / "train").mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "train" / f"{i}.png")
    main([str(tmp_path / "photos")])
    listed = ImageFiles([r["file_name"] for r in load_image_folder(tmp_path / "photos")])
    assert ImageFiles.open(tmp_path / "photos.index").digest() == listed.digest()


def write_tar(path, images):
    with tarfile.open(path, "w") as tar:
        for name, data in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def as_png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path):
    root = tmp_path / "shards"
    root.mkdir()
    write_tar(root / "1.tar", {"./x/0.png": as_png(10), "x/0.json": b"{}", "x/1.png": as_png(20)})
    write_tar(root / "0.tar", {"a.png": as_png(30), "broken.png": as_png(40)[:60]})
    assert main([str(root)]) == 0
    return root


def test_images_in_tar_files(shards, capsys):
    files = ImageFiles.open(shards.with_name("shards.index"))
    assert [name.removeprefix(f"{shards}/") for name in names(files)] == [
        "0.tar/a.png",
        "0.tar/broken.png",
        "1.tar/x/0.png",
        "1.tar/x/1.png",
    ]
    values = [read_image(files[i]["file_name"], files[i]["file_part"])[0, 0, 0] for i in (0, 2, 3)]
    assert values == [30, 10, 20]
    with pytest.raises(ValueError, match=r"0\.tar/broken\.png"):
        read_image(files[1]["file_name"], files[1]["file_part"])
    assert main([str(shards)]) == 0  # over the index that is there
    assert "skipped: 1 .json" in capsys.readouterr().out


def test_a_folder_may_end_in_tar(tmp_path):
    folder = tmp_path / "root" / "backup.tar" / "old.tar"
    folder.mkdir(parents=True)
    write_tar(folder / "1.tar", {"x.tar/a.png": as_png(10)})
    assert main([str(tmp_path / "root")]) == 0
    (image,) = ImageFiles.open(tmp_path / "root.index")
    assert image["file_part"][0] == str(folder / "1.tar")
    assert read_image(image["file_name"], image["file_part"])[0, 0, 0] == 10


def test_tar_files_are_listed_like_images(shards, capsys):
    """Links are followed, hidden files and folders are left out, and the ending may be in upper case."""
    root = shards.with_name("root")
    (root / ".snapshot").mkdir(parents=True)
    (root / "link").symlink_to(shards)
    (root / "._0.tar").write_bytes(b"no tar file")
    for path in (root / ".snapshot" / "0.tar", root / "A.TAR"):
        write_tar(path, {"a.png": as_png(50)})
    capsys.readouterr()
    assert main([str(root)]) == 0
    assert "skipped: 1 hidden, 1 .json\n" in capsys.readouterr().out
    files = ImageFiles.open(root.with_name("root.index"))
    assert [name.removeprefix(f"{root}/") for name in names(files)] == [
        "A.TAR/a.png",
        *(f"link/{name}" for name in ("0.tar/a.png", "0.tar/broken.png", "1.tar/x/0.png", "1.tar/x/1.png")),
    ]
    assert [read_image(files[i]["file_name"], files[i]["file_part"])[0, 0, 0] for i in (0, 1)] == [50, 30]


def test_a_tar_file_that_has_changed_is_named(shards):
    files = ImageFiles.open(shards.with_name("shards.index"))
    os.truncate(shards / "1.tar", 100)
    read_image.__globals__["_open_part"].cache_clear()
    with pytest.raises(ValueError, match=r"1\.tar has changed since its index was made"):
        read_image(files[2]["file_name"], files[2]["file_part"])


def damaged(path):
    """Spoil the checksum in the header of the second member."""
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        data[tar.getmembers()[1].offset + 148] ^= 1
    return data


@pytest.mark.parametrize(
    "content",
    [lambda one, two: one.read_bytes() + two.read_bytes(), lambda one, two: damaged(one)],
    ids=["joined by cat", "damaged header"],
)
def test_images_after_a_wrong_end_are_not_lost(content, tmp_path, capsys):
    (tmp_path / "tars").mkdir()
    for name in ("1.tar", "2.tar"):
        write_tar(tmp_path / name, {"a.png": as_png(10), "b.png": as_png(20)})
    (tmp_path / "tars" / "all.tar").write_bytes(content(tmp_path / "1.tar", tmp_path / "2.tar"))
    assert main([str(tmp_path / "tars")]) == 2
    assert "all.tar cannot be read as an uncompressed tar file: more data after the end" in capsys.readouterr().err


def test_links_in_tar_files_are_counted(tmp_path, capsys):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(as_png(10))
    (tmp_path / "x" / "b.png").hardlink_to(tmp_path / "x" / "a.png")
    (tmp_path / "x" / "c.png").symlink_to("a.png")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as tar:
        tar.add(tmp_path / "x", ".")
    assert main([str(tmp_path / "tars")]) == 0
    printed = capsys.readouterr().out
    assert "1 images" in printed and printed.endswith("skipped: 2 links\n")


def test_a_folder_that_is_called_like_a_tar_file(photos, capsys):
    (photos / "x.tar").mkdir()
    (photos / "a.png").rename(photos / "x.tar" / "a.png")
    assert main([str(photos)]) == 0
    assert "4 images" in capsys.readouterr().out
    assert f"{photos}/x.tar/a.png" in names(ImageFiles.open(photos.with_name("photos.index")))


def test_names_that_are_not_utf8_can_be_printed(tmp_path, capfdbinary):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / os.fsdecode(b"caf\xe9.png")).write_bytes(as_png(10))
    assert main([str(tmp_path / "photos")]) == 0
    assert rb"photos/caf\udce9.png" in capfdbinary.readouterr().out


def test_mistakes_in_one_line(photos, tmp_path, capsys):
    def error(*words):
        assert main(list(map(str, words))) == 2
        return capsys.readouterr().err

    assert "nowhere does not exist" in error(tmp_path / "nowhere")
    assert "lies in" in error(photos, "--output", photos / "x.index")
    (tmp_path / "empty").mkdir()
    assert "no images" in error(tmp_path / "empty")
    (tmp_path / "empty" / "x.tar.gz").write_bytes(b"")
    assert "other files there: 1 .gz; unpack them" in error(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    assert "is no index" in error(photos, "--output", tmp_path / "other")
    (tmp_path / "other" / "index.json").write_text('{"my": 1}')
    assert "is no index" in error(photos, "--output", tmp_path / "other")
    (tmp_path / "other" / "index.json").write_text(json.dumps(KIND))
    assert "is no index" in error(photos, "--output", tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").exists()
    (tmp_path / "gz").mkdir()
    with tarfile.open(tmp_path / "gz" / "0.tar", "w:gz") as tar:
        tar.add(photos / "a.png")
    assert "uncompressed" in error(tmp_path / "gz")
    write_tar(photos / "0.tar", {"a.png": as_png(1)})
    assert "both images and tar files" in error(photos)


@pytest.mark.parametrize("damage", ["short", "kind", "json", "facts", "root", "none"])
def test_a_damaged_index_is_refused(damage, photos, tmp_path):
    main([str(photos)])
    index = tmp_path / "photos.index"
    facts = json.loads((index / "index.json").read_text())
    message = {"short": "bytes instead of", "kind": "is no index", "json": "not json", "root": "photos, which does not"}
    message["facts"] = r"index\.json has no valid root, images: make the index anew"
    if damage == "short":
        (index / "ends.bin").write_bytes(b"1234567")
    elif damage == "kind":
        (index / "index.json").write_text(json.dumps(facts | {"version": 99}))
    elif damage == "json":
        (index / "index.json").write_text("{")
    elif damage == "facts":
        del facts["root"]
        (index / "index.json").write_text(json.dumps(facts | {"images": "4"}))
    elif damage == "root":
        photos.rename(tmp_path / "elsewhere")
    else:
        (index / "index.json").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=message.get(damage, "no index.json: make it by")):
        ImageFiles.open(index)


def test_names_that_lead_out_are_refused(photos, tmp_path):
    write_index(tmp_path / "evil.index", photos, ["../secret.png"])
    with pytest.raises(ValueError, match="lies elsewhere"):
        ImageFiles.open(tmp_path / "evil.index")[0]


def test_opening_takes_no_memory_per_image(tmp_path):
    count = 300_000
    (tmp_path / "photos").mkdir()
    write_index(tmp_path / "many.index", tmp_path / "photos", (f"{i:030}.jpg" for i in range(count)))
    tracemalloc.start()
    files = ImageFiles.open(tmp_path / "many.index")
    assert files[count - 1]["file_name"].endswith("299999.jpg")
    assert tracemalloc.get_traced_memory()[1] < count / 10
    tracemalloc.stop()


def test_an_index_of_another_folder_is_refused(photos, tmp_path):
    main([str(photos)])
    (tmp_path / "new").mkdir()
    with pytest.raises(ValueError, match=r"photos\.index is of images in .*/photos/, not in .*/new: make it anew"):
        open_index(tmp_path / "photos.index", tmp_path / "new")
    assert len(open_index(tmp_path / "photos.index", photos)) == 4


def test_a_folder_that_changed_after_its_index_is_named(photos, tmp_path, caplog):
    main([str(photos)])
    open_index(tmp_path / "photos.index", photos)
    assert "has changed since" not in caplog.text
    hour_ago = time.time() - 3600
    os.utime(tmp_path / "photos.index" / "index.json", (hour_ago, hour_ago))
    Image.new("RGB", (8, 8)).save(photos / "new.png")
    assert len(open_index(tmp_path / "photos.index", photos)) == 4
    assert f"{photos}/ has changed since" in caplog.text
    main([str(photos)])
    caplog.clear()
    assert len(open_index(tmp_path / "photos.index", photos)) == 5
    assert "has changed since" not in caplog.text


def test_the_index_of_a_folder_that_is_named_in_a_roundabout_way(photos, tmp_path):
    (photos / "inner").mkdir(exist_ok=True)
    assert main([str(photos / "inner" / "..")]) == 0
    assert (tmp_path / "photos.index" / "index.json").is_file()


def test_a_large_folder_is_listed_once(photos, tmp_path):
    index = tmp_path / "out" / "images.index"

    def digest(rank):
        return index_if_large(photos, index, limit=3) and open_index(index).digest()

    listed = ImageFiles([record["file_name"] for record in load_image_folder(photos)])
    assert in_two_processes(digest) == [listed.digest()] * 2
    Image.new("RGB", (8, 8)).save(photos / "new.png")
    assert index_if_large(photos, index, limit=3)
    assert len(open_index(index)) == 4
    assert not index_if_large(photos, tmp_path / "out" / "other.index", limit=5)
    assert not (tmp_path / "out" / "other.index").exists()


def test_folders_linked_twice_are_listed_once_and_counted(photos, caplog):
    (photos / "z").symlink_to(photos / "b")
    with caplog.at_level("INFO"):
        assert len(load_image_folder(photos)) == 4
    assert "1 folders linked again" in caplog.text


@pytest.mark.parametrize("kind", ["folder beside its index", "large folder", "index", "tar"])
def test_training_from_an_index(kind, photos, shards, tmp_path):
    """The whole way, through worker processes, with an image that cannot be read among those in the tar files."""
    if kind != "large folder":
        main([str(photos)])
    name = {
        "folder beside its index": f"folder:{photos}",
        "large folder": f"folder:{photos}",
        "index": f"index:{tmp_path / 'photos.index'}",
        "tar": f"index:{tmp_path / 'shards.index'}",
    }[kind]
    words = ["DATASETS.TRAIN", f"('{name}',)", "OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "2"]
    words += ["SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2", "RUN.MAX_UNREADABLE", "1.0", "SEED", "1"]
    words += ["DATALOADER.INDEX_ABOVE", "3"] if kind == "large folder" else []
    config = "configs/quick/pretrain_instant_test.yaml"
    command = [sys.executable, "train_net.py", "--config-file", config, *words, "MODEL.DEVICE", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "model_final.pth").is_file()
    assert f"read from the index {tmp_path}" in done.stdout
    if kind == "tar":
        unreadable = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
        assert unreadable and all("0.tar/broken.png" in json.dumps(entry) for entry in unreadable)
