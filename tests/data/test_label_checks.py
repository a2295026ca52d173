"""One look at labels in every layout: what is wrong is found, and what is right passes."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.pascal_voc import register_pascal_voc
from PIL import Image

from densesiam_d2.data import image_file_checks, register_sem_seg_folder
from densesiam_d2.data.cityscapes27 import load_cityscapes27_val
from densesiam_d2.data.label_checks import look_at
from densesiam_d2.data.path_datasets import register_path_datasets
from tests.data_trees import real_data, write_cityscapes_tree, write_voc_tree
from tests.labels.coco_files import coco, write

pytestmark = pytest.mark.usefixtures("catalog")


def found(name, semantic=False, masks=True, sample=1000) -> dict:
    """Return level and count of each kind of finding."""
    labelled = look_at(name, semantic=semantic, masks=masks, sample=sample)
    return {finding.kind: (finding.level, finding.count) for finding in labelled.findings}


# ---- instances ----


@pytest.fixture
def coco_set(tmp_path):
    """Write a COCO file and its images, and return the name of the set."""

    def make(content):
        name = f"coco:{write(content, tmp_path)},images={tmp_path}/images"
        register_path_datasets([name])
        return name

    return make


def test_sound_coco_file(coco_set):
    labelled = look_at(coco_set(coco()), semantic=False, masks=True)
    assert (labelled.classes, labelled.num_annotations, len(labelled.images)) == (["red", "blue"], 6, 3)
    assert labelled.findings == []


def test_images_that_are_not_there(coco_set, tmp_path):
    name = coco_set(coco())
    (tmp_path / "images" / "p2.png").unlink()
    labelled = look_at(name, semantic=False, masks=True)
    (finding,) = labelled.findings
    assert (finding.level, finding.count) == ("error", 1)
    assert "images that do not exist: 1; names in a JSON are relative to images=DIR" in str(finding)
    assert str(finding).endswith(f"({tmp_path}/images/p2.png) [image-missing]")


def test_images_whose_accents_are_characters_of_their_own(coco_set, tmp_path):
    content = coco()
    content["images"][0]["file_name"] = "caf\u00e9.png"
    name = coco_set(content)
    (tmp_path / "images" / "caf\u00e9.png").rename(tmp_path / "images" / "cafe\u0301.png")
    (finding,) = look_at(name, semantic=False, masks=True).findings
    assert finding.kind == "image-missing"
    assert "caf\u00e9.png, but its accents have another Unicode form there: rename the file" in str(finding)


def test_a_folder_in_the_place_of_an_image_has_no_accents(coco_set):
    content = coco()
    content["images"][0]["file_name"] += "/"
    (finding,) = look_at(coco_set(content), semantic=False, masks=True).findings
    assert finding.kind == "image-missing" and "accents" not in str(finding)


def test_images_in_a_folder_that_may_not_be_listed_are_not_missing(coco_set, tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    name = coco_set(coco())
    monkeypatch.setattr(image_file_checks.os, "listdir", refuse)  # root may list whatever chmod forbids
    assert look_at(name, semantic=False, masks=True).findings == []


def test_an_unknown_size_is_one_finding(coco_set):
    content = coco()
    del content["images"][1]["width"]
    (finding,) = look_at(coco_set(content), semantic=False, masks=True).findings
    assert (finding.kind, finding.count) == ("image-size", 1)


def test_backslashes(coco_set, tmp_path):
    content = coco()
    name = coco_set(content)
    for image in content["images"]:
        image["file_name"] = f"images\\{image['file_name']}"
    write(content, tmp_path, images=False)
    assert found(name) == {"image-backslash": ("error", 3)}


def test_sizes_of_the_file_before_its_rotation(coco_set, tmp_path):
    content = coco()
    name = coco_set(content)
    for i in (1, 2):  # shown as 64 x 96
        with Image.open(tmp_path / "images" / f"p{i}.png") as image:
            exif = image.getexif()
            exif[0x0112] = 6
            image.save(tmp_path / "images" / f"p{i}.png", exif=exif)
    content["images"][0].update(width=64, height=96)  # right
    content["annotations"] = content["annotations"][2:]  # boxes of the others fit
    coco_set(content)
    labelled = look_at(name, semantic=False, masks=True)
    (finding,) = labelled.findings
    assert finding.count == 1
    assert "p2.png has 64 x 96, the set says 96 x 64, which are swapped" in str(finding)


def test_damaged_images_in_the_sample(coco_set, tmp_path):
    name = coco_set(coco(9))
    for i in (1, 5, 6):
        (tmp_path / "images" / f"p{i}.png").write_bytes(b"nothing")
    assert found(name, sample=None) == {"image-unreadable": ("error", 3)}
    assert found(name, sample=3) == {"image-unreadable": ("error", 2)}  # the first, the fifth and the last


def test_boxes_without_masks(coco_set):
    content = coco()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    name = coco_set(content)
    assert found(name) == {"mask-missing": ("error", 6)}
    assert found(name, masks=False) == {}


def test_sets_registered_with_detectron2(tmp_path):
    content = coco()
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    register_coco_instances("theirs", {}, str(write(content, tmp_path)), str(tmp_path / "images"))
    assert found("theirs") == {"polygon-short": ("repaired", 1), "mask-unusable": ("repaired", 1)}


def test_images_elsewhere(coco_set, tmp_path):
    content = coco()
    name = coco_set(content)
    content["images"][0]["file_name"] = "../secret.png"
    write(content, tmp_path, images=False)
    labelled = look_at(name, semantic=False, masks=True)
    assert "lie outside" in str(labelled.findings.of("error")[0])


def test_python_sets(tmp_path):
    write(coco(), tmp_path)
    record = {"file_name": str(tmp_path / "images" / "p1.png"), "width": 96, "height": 64}
    annotation = {"bbox": [1, 2, 3, 4], "category_id": 0, "segmentation": [[1, 2, 3, 4, 5, 6]]}
    DatasetCatalog.register(
        "python", lambda: [{**record, "annotations": [annotation, {**annotation, "category_id": 2}]}]
    )
    MetadataCatalog.get("python").thing_classes = ["a", "b"]
    assert found("python") == {"category-unknown": ("error", 1), "class-unused": ("warning", 1)}
    DatasetCatalog.register("broken", lambda: {}["annotations"])
    (finding,) = look_at("broken", semantic=False, masks=True).findings
    assert (finding.level, finding.kind) == ("error", "load")
    assert re.search(r"KeyError: 'annotations', in .*test_label_checks\.py, line \d+", str(finding))


# ---- VOC ----


@pytest.fixture
def voc(tmp_path):
    """Write a VOC tree of COCO-128, and return its root; the set is "voc"."""
    root = tmp_path / "voc"
    write_voc_tree(real_data("coco128"), root, "trainval")
    register_pascal_voc("voc", str(root), "trainval", 2007)
    return root


def first_xml(root):
    return sorted((root / "Annotations").glob("*.xml"))[0]


def test_sound_voc_tree(voc):
    labelled = look_at("voc", semantic=False, masks=False)
    assert {f.kind for f in labelled.findings} <= {"class-unused"}
    assert labelled.num_annotations == sum(f.read_text().count("<object>") for f in (voc / "Annotations").glob("*.xml"))
    assert labelled.num_annotations == sum(len(r["annotations"]) for r in DatasetCatalog.get("voc"))


VOC_FAULTS = {
    "own class": (lambda root: replace(first_xml(root), "<name>", "<name>own "), "class-unknown", "'own "),
    "all difficult": (
        lambda root: [replace(f, "<difficult>0", "<difficult>1") for f in (root / "Annotations").iterdir()],
        "all-difficult",
        "every object is difficult",
    ),
    "no XML": (lambda root: first_xml(root).unlink(), "xml-missing", ".xml"),
    "damaged XML": (lambda root: first_xml(root).write_text("<annotation>"), "xml-unreadable", "as XML"),
    "no size": (
        lambda root: replace(first_xml(root), "<width>", "<w>", "</width>", "</w>"),
        "xml-unreadable",
        "size/width",
    ),
    "objects in a list": (
        lambda root: replace(first_xml(root), "<object>", "<o><object>", "</object>", "</object></o>"),
        "xml-unreadable",
        "<bndbox> are in no <object> directly below <annotation>",
    ),
    "two boxes": (
        lambda root: replace(first_xml(root), "</bndbox>", "</bndbox><bndbox></bndbox>"),
        "xml-unreadable",
        "has more than one <bndbox>",
    ),
    "no box": (lambda root: replace(first_xml(root), "bndbox", "box"), "xml-unreadable", "bndbox/xmin"),
    "columns": (lambda root: add_column(root / "ImageSets/Main/trainval.txt"), "split", "line 1"),
    "empty split": (lambda root: (root / "ImageSets/Main/trainval.txt").write_text("\n"), "split", "names no image"),
    "other split": (lambda root: (root / "ImageSets/Main/trainval.txt").unlink(), "load", "trainval.txt"),
}


def replace(path, *words):
    text = path.read_text()
    for old, new in zip(words[::2], words[1::2], strict=True):
        text = text.replace(old, new)
    path.write_text(text)


def add_column(path):
    path.write_text("".join(f"{line}  -1\n" for line in path.read_text().splitlines()))


@pytest.mark.parametrize("fault", VOC_FAULTS)
def test_fault_in_a_voc_tree(fault, voc):
    change, kind, text = VOC_FAULTS[fault]
    change(voc)
    errors = look_at("voc", semantic=False, masks=False).findings.of("error")
    assert [error.kind for error in errors] == [kind]
    assert text in str(errors[0])


def test_voc_records_are_those_of_detectron2(voc):
    theirs = DatasetCatalog.get("voc")
    look_at("voc", semantic=False, masks=False)
    assert DatasetCatalog["voc"].func.__module__.startswith("densesiam_d2")
    assert DatasetCatalog.get("voc") == theirs
    split = voc / "ImageSets" / "Main" / "trainval.txt"
    names = split.read_text()
    split.write_text(names + names.split()[0])
    assert found("voc", masks=False)["split-twice"] == ("repaired", 1)
    assert DatasetCatalog.get("voc") == theirs
    split.write_text(split.read_text().split()[0])  # detectron2's loader fails on a split of one image
    assert DatasetCatalog.get("voc") == theirs[:1]


def test_voc_has_no_masks(voc):
    labelled = look_at("voc", semantic=False, masks=True)
    assert found("voc")["mask-missing"] == ("error", labelled.num_annotations)


@pytest.mark.parametrize("corner", ["<xmin>-5", "<ymin>-5", "<xmax>9000", "<ymax>9000"])
def test_voc_boxes_beyond_their_image(corner, voc):
    tag = corner[:6]
    path = first_xml(voc)
    path.write_text(re.sub(rf"{tag}\d+", corner, path.read_text(), count=1))
    assert found("voc", masks=False)["box-clipped"] == ("warning", 1)


@pytest.mark.parametrize("corners", [{"min": 9000, "max": 9010}, {"min": -20, "max": -10}])
def test_voc_boxes_outside_their_image(corners, voc):
    number, path = look_at("voc", semantic=False, masks=False).num_annotations, first_xml(voc)
    path.write_text(re.sub(r"<x(min|max)>\d+", lambda m: f"<x{m[1]}>{corners[m[1]]}", path.read_text(), count=2))
    labelled = look_at("voc", semantic=False, masks=False)
    assert [(f.level, f.count) for f in labelled.findings if f.kind == "box-outside"] == [("repaired", 1)]
    assert labelled.num_annotations == number - 1 == sum(len(r["annotations"]) for r in DatasetCatalog.get("voc"))


def test_voc_names_with_spaces(voc):
    path, split = first_xml(voc), voc / "ImageSets" / "Main" / "trainval.txt"
    replace(split, path.stem, f"my photo {path.stem} ")
    for file in (path, voc / "JPEGImages" / f"{path.stem}.jpg"):
        file.rename(file.with_stem(f"my photo {path.stem}"))
    assert found("voc", masks=False).keys() <= {"class-unused"}
    assert DatasetCatalog.get("voc")[0]["image_id"] == f"my photo {path.stem}"


def test_voc_boxes_in_shares(voc):
    for path in (voc / "Annotations").iterdir():
        text = re.sub(r"<([xy]m)in>\d+", r"<\1in>0.2", path.read_text())
        path.write_text(re.sub(r"<([xy]m)ax>\d+", r"<\1ax>0.9", text))
    kinds = found("voc", masks=False)
    assert kinds["boxes-relative"][0] == "error" and kinds["boxes-relative"][1] > 100


def test_voc_boxes_counted_from_0(voc):
    path = first_xml(voc)
    path.write_text(re.sub(r"<xmin>\d+", "<xmin>0", path.read_text(), count=1))
    assert found("voc", masks=False)["box-from-0"] == ("warning", 1)


def test_voc_image_missing(voc):
    sorted((voc / "JPEGImages").glob("*.jpg"))[0].unlink()
    assert found("voc", masks=False)["image-missing"] == ("error", 1)


# ---- Cityscapes ----


@pytest.fixture
def cityscapes(tmp_path):
    root = tmp_path / "cityscapes"
    write_cityscapes_tree(real_data("camvid"), root, limit=2, splits=("train",))
    places = {"image_dir": str(root / "leftImg8bit/train"), "gt_dir": str(root / "gtFine/train")}
    for name, kind in (("city_sem", "cityscapes_sem_seg"), ("city_inst", "cityscapes_instance")):
        DatasetCatalog.register(name, lambda: load_cityscapes_semantic(places["image_dir"], places["gt_dir"]))
        MetadataCatalog.get(name).set(evaluator_type=kind, ignore_label=255, **places)
        MetadataCatalog.get(name).stuff_classes = MetadataCatalog.get("cityscapes_fine_sem_seg_train").stuff_classes
    return root


def test_sound_cityscapes_tree(cityscapes):
    assert set(found("city_sem", semantic=True)) <= {"class-unused"}
    assert found("city_inst") == {}


@pytest.mark.parametrize(
    ("name", "semantic", "kind"),
    [
        ("city_sem", True, "labelTrainIds"),
        ("city_sem", True, "polygons"),
        ("city_inst", False, "instanceIds"),
        ("city_inst", False, "polygons"),
    ],
)
def test_cityscapes_files_that_are_missing(name, semantic, kind, cityscapes):
    for file in (cityscapes / "gtFine").rglob(f"*_{kind}.*"):
        file.unlink()
    expected = "train-ids-missing" if kind == "labelTrainIds" else "label-missing"
    assert found(name, semantic) == {expected: ("error", 2)}


@pytest.mark.parametrize(("name", "semantic"), [("city_sem", True), ("city_inst", False)])
@pytest.mark.parametrize("text", ["", '{"imgHeight": 4, "ob', "<html>not found</html>"])
def test_cityscapes_polygons_that_are_cut(name, semantic, text, cityscapes):
    sorted((cityscapes / "gtFine").rglob("*_polygons.json"))[1].write_text(text)
    assert found(name, semantic) == {"polygons-damaged": ("error", 1)}


def test_other_files_among_the_images(cityscapes):
    city = next((cityscapes / "leftImg8bit/train").iterdir())
    (city / "Thumbs.db").write_text("")
    assert found("city_inst")["load"] == ("error", 1)


# ---- label maps ----


@pytest.fixture
def label_folder(tmp_path):
    """Write a label map and an image for each array, and return a function that looks at them."""

    def make(*arrays, classes=("ground", "red", "blue"), sample=1000):
        for i, array in enumerate(arrays):
            array = np.asarray(array, np.uint8)
            for part in ("images", "labels"):
                (tmp_path / part).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / "images" / f"{i}.jpg"), np.zeros(array.shape[:2], np.uint8))
            cv2.imwrite(str(tmp_path / "labels" / f"{i}.png"), array)
        register_sem_seg_folder("mine", tmp_path / "images", tmp_path / "labels", classes)
        labelled = look_at("mine", semantic=True, masks=False, sample=sample)
        return {finding.kind: finding for finding in labelled.findings}

    return make


SOUND = np.arange(30).reshape(5, 6) % 3


def test_sound_label_maps(label_folder):
    assert label_folder(SOUND, SOUND) == {}


def test_label_maps_for_a_model_of_objects(label_folder):
    label_folder(SOUND, SOUND)
    (finding,) = look_at("mine", semantic=False, masks=True).findings
    assert "(2 images, which have label maps, but this model learns from objects) [none-left]" in str(finding)


def test_class_that_never_occurs(label_folder):
    # 5 of 30 pixels are 255.
    label = np.where(SOUND == 2, [[255] * 3 + [0] * 3] * 5, SOUND)
    assert (label == 255).sum() == 5
    finding = label_folder(label)["class-unused"]
    assert finding.level == "warning"
    assert finding.examples == ["'blue'; 17 % of the pixels are 255, the ignore label"]


def test_mask_of_0_and_255(label_folder):
    label = np.zeros((10, 10))
    label[:4, :4] = 255
    finding = label_folder(label, classes=["background", "lesion"])["one-class"]
    assert finding.level == "error"
    assert "'lesion' never occurs; 16 % of the pixels are 255" in str(finding) and "need 0 and 1" in str(finding)


def test_everything_ignored(label_folder):
    finding = label_folder(np.full((5, 6), 255))["all-ignored"]
    assert finding.level == "error" and finding.examples == ["100 % of the pixels are 255, the ignore label"]


def test_values_that_are_no_class(label_folder):
    finding = label_folder(SOUND, SOUND + 1)["label-value"]
    assert (finding.level, finding.count) == ("error", 1)
    assert "1.png: [3] in 10 pixels; classes are 0 to 2" in str(finding)


def test_colours(label_folder):
    finding = label_folder(SOUND, np.zeros((5, 6, 3)))["label-unreadable"]
    assert (finding.level, finding.count) == ("error", 1) and "mode RGB" in str(finding)


def test_palettes_that_contradict_each_other(label_folder, tmp_path):
    """Pictures of labels, saved with as many colours as each has: a class has another value in each of them."""
    label_folder(SOUND, SOUND, SOUND)
    colors = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    for i, order in enumerate([(0, 1, 2), (0, 1, 2), (2, 1, 0)]):
        label = Image.fromarray(SOUND.astype(np.uint8))
        label.putpalette([number for color in order for number in colors[color]])
        label.save(tmp_path / "labels" / f"{i}.png")
    (finding,) = look_at("mine", semantic=True, masks=False).findings
    assert (finding.level, finding.kind, finding.count) == ("warning", "label-palette", 1)
    assert "2.png: value 0 is (0, 0, 255), but (0, 0, 0) in " in finding.examples[0] and "0.png" in finding.examples[0]


def test_damaged_label_maps(label_folder, tmp_path):
    arrays = [SOUND] * 9
    label_folder(*arrays)
    for i in (0, 1, 8):
        path = tmp_path / "labels" / f"{i}.png"
        path.write_bytes(path.read_bytes()[:-20])
    assert found("mine", semantic=True)["label-unreadable"] == ("error", 3)
    assert found("mine", semantic=True, sample=3)["label-unreadable"] == ("error", 2)


def test_damaged_images_of_label_maps(label_folder, tmp_path):
    label_folder(SOUND, SOUND, SOUND)
    (path,) = (tmp_path / "images").glob("1.*")
    path.write_bytes(path.read_bytes()[:-20])
    labelled = look_at("mine", semantic=True, masks=False)
    (finding,) = labelled.findings.of("error")
    assert (finding.kind, finding.count) == ("image-unreadable", 1) and str(path) in finding.examples[0]


def test_sizes_of_label_maps(label_folder, tmp_path):
    label_folder(SOUND, SOUND)
    cv2.imwrite(str(tmp_path / "labels" / "1.png"), np.zeros((6, 5), np.uint8))
    labelled = look_at("mine", semantic=True, masks=False)
    (finding,) = [f for f in labelled.findings if f.level == "error"]
    assert "1.png: 5 x 6, its image 6 x 5" in str(finding)


def test_a_sample_is_spread_over_the_set(label_folder):
    finding = label_folder(*[SOUND] * 3, np.where(SOUND == 2, 0, SOUND), *[SOUND % 2] * 2, sample=2)
    assert finding == {}  # the first has all classes, the last two; the sample has them all
    assert found("mine", semantic=True, sample=1) == {}


def test_sample_without_a_class(label_folder):
    finding = label_folder(SOUND % 2, SOUND, SOUND % 2, sample=2)["class-unused"]
    assert "in the sample of 2 of 3 label maps" in str(finding)


def test_files_without_partner_are_named(label_folder, tmp_path):
    label_folder(SOUND, SOUND, SOUND)
    (tmp_path / "labels" / "1.png").unlink()
    shutil.copy(tmp_path / "labels" / "0.png", tmp_path / "labels" / "other.png")
    found = {f.kind: f for f in look_at("mine", semantic=True, masks=False).findings}
    assert found["image-alone"].examples == [str(tmp_path / "images" / "1.jpg")]
    assert found["label-alone"].examples == [str(tmp_path / "labels" / "other.png")]
    assert {f.level for f in found.values()} == {"warning"}


def test_train_ids_under_the_name_of_cityscapes_label_ids(tmp_path):
    for part, name in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        (tmp_path / part / "val" / "ulm").mkdir(parents=True)
        value = 255 if part == "gtFine" else 0
        path = tmp_path / part / "val" / "ulm" / f"ulm_0_0_{name}.png"
        cv2.imwrite(str(path), np.full((4, 4), value, np.uint8))
        shutil.copytree(tmp_path / part / "val", tmp_path / part / "train")
    DatasetCatalog.register("streets", lambda: load_cityscapes27_val(tmp_path))
    known = MetadataCatalog.get("cityscapes27_val").as_dict()
    own = {"name", "image_roots", "sem_seg_root"}
    MetadataCatalog.get("streets").set(**{key: value for key, value in known.items() if key not in own})
    labelled = look_at("streets", semantic=True, masks=False)
    assert "_labelIds.png of gtFine have values up to 33" in str(labelled.findings.of("error")[0])


def test_pixelmaps_in_the_place_of_stuffthingmaps(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    cv2.imwrite(str(images / "000000000001.jpg"), np.zeros((4, 4), np.uint8))
    cv2.imwrite(str(labels / "000000000001.png"), np.full((4, 4), 183, np.uint8))
    record = {"file_name": str(images / "000000000001.jpg"), "sem_seg_file_name": str(labels / "000000000001.png")}
    DatasetCatalog.register("stuff", lambda: [record])
    stuff27 = MetadataCatalog.get("coco_stuff27_val").as_dict()
    own = {"name", "image_root", "sem_seg_root"}
    MetadataCatalog.get("stuff").set(**{key: value for key, value in stuff27.items() if key not in own})
    labelled = look_at("stuff", semantic=True, masks=False)
    assert "unpack stuffthingmaps_trainval2017.zip" in str(labelled.findings.of("error")[0])


def test_real_sets_are_sound():
    camvid = real_data("camvid")
    name = f"masks:{camvid}/images/val,labels={camvid}/labels/val"
    register_path_datasets([name])
    assert found(name, semantic=True) == {}
    coco128 = real_data("coco128")
    name = f"coco:{coco128}/instances.json,images={coco128}/images"
    register_path_datasets([name])
    assert found(name) == {"category-unused": ("warning", 9)}
    assert len({a["category_id"] for a in json.loads((coco128 / "instances.json").read_text())["annotations"]}) == 71
