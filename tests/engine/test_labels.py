"""What the labels decide about a run: number and names of classes, or that there is no run."""

import json
import logging
import re

import cv2
import numpy as np
import pytest
import torch

from densesiam_d2.checkpoint.loading import WeightsError
from densesiam_d2.engine.labels import settle_labels
from densesiam_d2.engine.setup import load_config
from densesiam_d2.tools import segment
from tests.engine.test_train_net import CPU, FCN, MASK_RCNN, ROOT, UNSUP_SEG, _command, run
from tests.labels.coco_files import coco, write
from tests.labels.test_coco_json import encode

pytestmark = pytest.mark.usefixtures("catalog")

ROI, SEM_SEG = "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.NUM_CLASSES"


def config(recipe, train, test=(), *options):
    return load_config(str(ROOT / "configs" / recipe), ["DATASETS.TRAIN", train, "DATASETS.TEST", test, *options])


@pytest.fixture
def detection(tmp_path):
    """Write COCO files with the named classes, and return their names as datasets."""

    def make(name, *classes):
        content = coco()
        content["categories"] = [{"id": i, "name": c} for i, c in enumerate(classes, start=1)]
        return f"coco:{write(content, tmp_path, f'{name}.json')},images={tmp_path}/images"

    return make


@pytest.fixture
def masks(tmp_path):
    """Write four images with label maps of 0, 1 and 2, and return the name of the set."""
    for i in range(4):
        for part, value in (
            ("images", np.full((64, 64, 3), 40 * i)),
            ("labels", np.arange(64 * 64).reshape(64, 64) % 3),
        ):
            (tmp_path / part).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / part / f"{i}.png"), value.astype(np.uint8))
    return f"masks:{tmp_path}/images,labels={tmp_path}/labels"


def test_number_of_classes_follows_the_data(detection, caplog):
    cfg = config(MASK_RCNN, detection("train", "red", "blue", "green"), detection("val", "red", "blue", "green"))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4  # of the yaml
    with caplog.at_level(logging.INFO):
        settle_labels(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3 and cfg.MODEL.CLASS_NAMES == ["red", "blue", "green"]
    (line,) = [m for m in caplog.messages if m.startswith(f"{ROI} 4 -> 3: the classes of 'coco:")]
    assert line.endswith("red, blue, green")
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 54


def test_another_number_on_the_command_line(detection):
    cfg = config(MASK_RCNN, detection("train", "red", "blue"), (), ROI, "4")
    with pytest.raises(ValueError, match=rf"{ROI} is 4, but 'coco:.*' has 2 classes \(red, blue\); leave the key out"):
        settle_labels(cfg, fixed=[ROI])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    settle_labels(cfg, fixed=[ROI])


def test_classes_of_training_sets_must_agree(detection):
    train = (detection("a", "red", "blue"), detection("b", "blue", "red"))
    with pytest.raises(ValueError, match=r"its classes \(blue, red\) are not those of 'coco:.*', in order: red, blue"):
        settle_labels(config(MASK_RCNN, train))


def test_test_sets_with_another_order_are_scored_by_name(detection, caplog):
    cfg = config(MASK_RCNN, detection("train", "red", "blue"), detection("val", "blue", "red"))
    with caplog.at_level(logging.INFO):
        settle_labels(cfg)
    assert cfg.MODEL.CLASS_NAMES == ["red", "blue"]
    assert any("its classes have another order; scored by name" in m for m in caplog.messages)


@pytest.mark.parametrize("classes", [["red", "blue"], ["red", "blue", "green", "grey"], ["red", "blue", "yellow"]])
def test_test_sets_with_other_classes_stop(classes, detection):
    cfg = config(MASK_RCNN, detection("train", "red", "blue", "green"), detection("val", *classes))
    with pytest.raises(ValueError, match="classes-differ"):
        settle_labels(cfg)


def test_all_problems_come_in_one_message(tmp_path):
    names = []
    for part in ("train", "val"):
        content = coco()
        content["annotations"][0]["category_id"] = 9
        content["images"][1]["file_name"] = "gone.png"
        names.append(f"coco:{write(content, tmp_path, f'{part}.json', images=False)},images={tmp_path}/images")
        write(coco(), tmp_path, "right.json")
    with pytest.raises(ValueError) as error:
        settle_labels(config(MASK_RCNN, *names))
    assert [line.rpartition("[")[2] for line in str(error.value).splitlines()[1:5]] == [
        *["category-unknown]", "image-missing]"] * 2
    ]


def test_accepted_findings_do_not_stop(tmp_path, caplog):
    content = coco()
    del content["annotations"][0]["segmentation"]
    name = f"coco:{write(content, tmp_path)},images={tmp_path}/images"
    with pytest.raises(ValueError, match=r"DATASETS.ACCEPT \"\('mask-missing',\)\" \(annotation 1\)"):
        settle_labels(config(MASK_RCNN, name))
    settle_labels(config(MASK_RCNN, name, (), "DATASETS.ACCEPT", "mask-missing"))
    assert any("mask-missing" in message for message in caplog.messages)


def test_test_sets_without_annotations_are_not_scored(detection, tmp_path):
    content = coco()
    del content["annotations"]
    name = f"coco:{write(content, tmp_path, 'test-dev.json')},images={tmp_path}/images"
    settle_labels(config(MASK_RCNN, detection("train", "red", "blue"), name))
    with pytest.raises(ValueError, match="there are no annotations"):
        settle_labels(config(MASK_RCNN, name))


def test_what_is_accepted_trains(tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]  # corners, for which the message offers the switch
    name = f"coco:{write(content, tmp_path)},images={tmp_path}/images"
    options = ["MODEL.WEIGHTS", "", "DATASETS.TRAIN", name, "DATASETS.TEST", name, "OUTPUT_DIR", tmp_path / "out"]
    with pytest.raises(ValueError, match="boxes-xyxy"):
        run(MASK_RCNN, *CPU, *options)
    run(MASK_RCNN, *CPU, *options, "DATASETS.ACCEPT", "boxes-xyxy")
    assert {"bbox", "segm"} == scored(tmp_path, name)


def test_predictions_for_a_set_without_annotations_are_written(detection, tmp_path):
    content = coco()
    del content["annotations"]
    name = f"coco:{write(content, tmp_path, 'test-dev.json')},images={tmp_path}/images"
    train = detection("train", "red", "blue")
    run(
        *(MASK_RCNN, *CPU, "MODEL.WEIGHTS", "", "DATASETS.TRAIN", train, "DATASETS.TEST", name),
        *("OUTPUT_DIR", tmp_path / "out"),
    )
    assert (tmp_path / "out" / "inference" / "coco_instances_results.json").is_file()


def test_label_maps_without_class_names(masks, tmp_path):
    with pytest.raises(ValueError, match=rf"write classes\.txt, .* or set {SEM_SEG} N \[class-names\]"):
        settle_labels(config(FCN, masks))
    cfg = config(FCN, masks, (), SEM_SEG, "3")
    settle_labels(cfg, fixed=[SEM_SEG])
    assert cfg.MODEL.CLASS_NAMES == ["0", "1", "2"]
    copy = f"{masks},subset=3,seed=1"  # the first one has the names of three classes now
    with pytest.raises(ValueError, match=r"values that are no class: 3; .*: \[2\] in 1,365 pixels; classes are 0 to 1"):
        settle_labels(config(FCN, copy, (), SEM_SEG, "2"), fixed=[SEM_SEG])


def test_class_names_of_label_maps(masks, tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    cfg = config(FCN, masks)
    settle_labels(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3 and cfg.MODEL.CLASS_NAMES == ["sky", "road", "car"]


def test_clusters_are_not_touched(masks, tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    cfg = config(UNSUP_SEG, masks, masks, SEM_SEG, "7")
    settle_labels(cfg, fixed=[SEM_SEG])
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 7 and cfg.MODEL.CLASS_NAMES == []


def test_a_number_of_clusters_names_no_classes(masks, tmp_path):
    """Without class names, seven clusters would make seven classes, four of which do not exist."""
    with pytest.raises(ValueError, match=r"nothing says what its classes are: write classes\.txt.*classes=FILE \["):
        settle_labels(config(UNSUP_SEG, "folder:/nowhere", masks, SEM_SEG, "7"), fixed=[SEM_SEG])


def test_evaluation_needs_no_training_set(detection, tmp_path):
    """The config.yaml of a run names a set that is not on this machine."""
    cfg = config(MASK_RCNN, "someones_set", detection("val", "red", "blue"))
    settle_labels(cfg, eval_only=True)


def test_clusters_are_matched_on_a_set_with_the_same_classes(masks, tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    (tmp_path / "turned.txt").write_text("road\nsky\ncar\n")
    fit = "TEST.SEM_SEG_MATCHING_FIT"
    settle_labels(config(UNSUP_SEG, masks, masks, fit, f"{masks},subset=2,seed=1"))
    other = f"{masks},classes={tmp_path}/turned.txt"
    with pytest.raises(ValueError, match=rf"{fit} '{other}': its classes \(road, sky, car\) are not those of 'mask"):
        settle_labels(config(UNSUP_SEG, masks, masks, fit, other))


def test_pretraining_looks_at_no_labels(tmp_path):
    content = coco()
    content["annotations"][0]["category_id"] = 9
    settle_labels(config("quick/pretrain_instant_test.yaml", f"coco:{write(content, tmp_path)}"))


def test_one_name_is_a_tuple_of_one(detection, tmp_path):
    name = detection("train", "red", "blue")
    assert (name,) == config(MASK_RCNN, name).DATASETS.TRAIN
    (tmp_path / "one.yaml").write_text(f"_BASE_: {ROOT}/configs/{MASK_RCNN}\nDATASETS:\n  TRAIN: '{name}'\n")
    assert (name,) == load_config(str(tmp_path / "one.yaml")).DATASETS.TRAIN
    assert load_config(str(tmp_path / "one.yaml")).DATASETS.TEST == ("scenes_tiny",)


def scored(tmp_path, name) -> set[str]:
    return set(json.loads((tmp_path / "out" / "results.json").read_text())[name]) & {"bbox", "segm", "sem_seg"}


def test_boxes_train_a_faster_rcnn(tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    name = f"coco:{write(content, tmp_path)},images={tmp_path}/images"
    options = ["MODEL.WEIGHTS", "", "DATASETS.TRAIN", name, "DATASETS.TEST", name, "OUTPUT_DIR", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"without a mask .*: 6; set MODEL\.MASK_ON False"):
        run(MASK_RCNN, *CPU, *options)
    run(MASK_RCNN, *CPU, *options, "MODEL.MASK_ON", "False")
    assert {"bbox"} == scored(tmp_path, name)


def test_polygons_and_run_lengths_train_together(tmp_path):
    content = coco()
    content["annotations"][3]["segmentation"] = encode((55, 20, 35, 40))
    name = f"coco:{write(content, tmp_path)},images={tmp_path}/images"
    options = ["MODEL.WEIGHTS", "", "DATASETS.TRAIN", name, "DATASETS.TEST", name, "OUTPUT_DIR", tmp_path / "out"]
    run(MASK_RCNN, *CPU, *options)
    assert {"bbox", "segm"} == scored(tmp_path, name)


def test_label_maps_train_a_semantic_network(masks, tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    options = ["MODEL.WEIGHTS", "", "DATASETS.TRAIN", f"{masks},subset=2,seed=1", "DATASETS.TEST", masks]
    run(FCN, *CPU, *options, "OUTPUT_DIR", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())[masks]
    assert {"IoU-sky", "IoU-road", "IoU-car"} <= set(results["sem_seg"])
    trained = ["--config-file", tmp_path / "out" / "config.yaml", "--weights", tmp_path / "out" / "model_final.pth"]
    places = ["--input", tmp_path / "images", "--output", tmp_path / "segmented"]
    assert segment.main([str(word) for word in (*trained, *places)]) == 0
    classes = json.loads((tmp_path / "segmented" / "classes.json").read_text())
    assert [entry["name"] for entry in classes] == ["sky", "road", "car"]


def test_instances_are_foreground_for_a_semantic_network(detection, tmp_path):
    name = detection("train", "red", "blue")
    options = ["MODEL.WEIGHTS", "", "DATASETS.TRAIN", name, "DATASETS.TEST", name, "OUTPUT_DIR", tmp_path / "out"]
    run(FCN, *CPU, *options)
    scores = json.loads((tmp_path / "out" / "results.json").read_text())[name]["sem_seg"]
    assert {"IoU-background", "IoU-foreground"} == {key for key in scores if key.startswith("IoU-")}
    confusion = json.loads((tmp_path / "out" / "inference" / "sem_seg_evaluation.json").read_text())["confusion"]
    assert sum(confusion[1]) == 3 * (40 * 30 + 35 * 40)  # the rectangles of three images


def test_clusters_are_scored_on_instances(detection, tmp_path):
    name = detection("test", "red", "blue")
    options = ["MODEL.WEIGHTS", "", "DATASETS.TRAIN", f"folder:{tmp_path}/images", "DATASETS.TEST", name]
    run(UNSUP_SEG, *CPU, *options, "OUTPUT_DIR", tmp_path / "out", SEM_SEG, 2)
    results = json.loads((tmp_path / "out" / "results.json").read_text())[name]
    assert results["protocol"]["num_classes"] == 2 and results["protocol"]["num_clusters"] == 2


def test_foreground_needs_masks(tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    name = f"coco:{write(content, tmp_path)},images={tmp_path}/images"
    with pytest.raises(ValueError, match=r"without a mask .*: 6;"):
        settle_labels(config(UNSUP_SEG, name, name, "MODEL.MASK_ON", "False"))


def test_foreground_needs_annotations(tmp_path):
    content = coco()
    del content["annotations"]  # as in COCO's test-dev
    name = f"coco:{write(content, tmp_path)},images={tmp_path}/images"
    with pytest.raises(ValueError, match=r"no annotation to learn from or to score .*3 images"):
        settle_labels(config(UNSUP_SEG, f"folder:{tmp_path}/images", name))


def test_evaluation_takes_the_classes_of_the_weights(detection, tmp_path):
    train, turned, other = (detection(n, *c) for n, c in {"a": "rb", "b": "br", "c": "xyz"}.items())
    options = ["MODEL.WEIGHTS", "", "DATASETS.TRAIN", train, "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "out"]
    run(MASK_RCNN, *CPU, *options)
    weights = ["MODEL.WEIGHTS", tmp_path / "out" / "model_final.pth", "OUTPUT_DIR", tmp_path / "eval"]
    run(MASK_RCNN, *CPU, *weights, "DATASETS.TEST", turned, flags=("--eval-only",))
    assert "CLASS_NAMES:\n  - r\n  - b\n" in (tmp_path / "eval" / "config.yaml").read_text()
    with pytest.raises(ValueError, match=r"against MODEL\.WEIGHTS: 2 classes in training, 3 in the test set"):
        run(MASK_RCNN, *CPU, *weights, "DATASETS.TEST", other, flags=("--eval-only",))
    # Weights of somebody else, without names: their number is compared when they are loaded.
    torch.save({"model": torch.load(tmp_path / "out" / "model_final.pth")["model"]}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS: it has 2 classes, but 'coco:.*' has 3: x, y, z"):
        run(
            MASK_RCNN,
            *CPU,
            *weights,
            "MODEL.WEIGHTS",
            tmp_path / "foreign.pth",
            "DATASETS.TEST",
            other,
            flags=("--eval-only",),
        )


def test_evaluation_takes_the_classes_of_the_newest_whole_checkpoint(detection, tmp_path):
    train, turned = detection("a", "r", "b"), detection("b", "b", "r")
    options = ["MODEL.WEIGHTS", "", "DATASETS.TRAIN", train, "OUTPUT_DIR", tmp_path / "out", "DATASETS.TEST"]
    run(MASK_RCNN, *CPU, *options, "()")
    newest = tmp_path / "out" / "model_final.pth"
    whole = newest.read_bytes()
    newest.with_name("model_0000000.pth").write_bytes(whole)
    newest.write_bytes(whole[:1000])
    run(MASK_RCNN, *CPU, *options, turned, flags=("--eval-only", "--resume"))
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "its classes have another order than the model's" in log and f"cannot resume from {newest}" in log
    with pytest.raises(WeightsError, match=rf"^cannot read weights from {newest}: it is cut off"):
        run(MASK_RCNN, *CPU, *options, turned, "MODEL.WEIGHTS", newest, flags=("--eval-only",))


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the processes would need one each")
def test_every_process_learns_the_verdict(tmp_path):
    content = coco()
    good = f"coco:{write(content, tmp_path, 'good.json')},images={tmp_path}/images"
    content["annotations"][0]["category_id"] = 9
    bad = f"coco:{write(content, tmp_path, 'bad.json')},images={tmp_path}/images"
    options = [
        "--config-file",
        f"configs/{MASK_RCNN}",
        "--num-gpus",
        "2",
        *CPU,
        "MODEL.WEIGHTS",
        "",
        "DATASETS.TEST",
        "()",
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train_net.py"]
    for start, code in ((["train_net.py"], 2), (torchrun, 1)):  # torchrun has its own code for failed processes
        done = _command(*start, *options, "DATASETS.TRAIN", bad, "OUTPUT_DIR", tmp_path / f"bad{code}")
        assert done.returncode == code and "annotation 1 has category_id 9" in done.stderr
        assert done.stderr.count("labels cannot be used") == 1
        if code == 1:
            assert re.search(r"exitcode\s*: 2 ", done.stderr)
    done = _command("train_net.py", *options, "DATASETS.TRAIN", good, "OUTPUT_DIR", tmp_path / "good")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "NUM_CLASSES: 2" in (tmp_path / "good" / "config.yaml").read_text()
