"""The command, its page from records written by hand, and one real comparison of one tiny method."""

import json
import re
from pathlib import Path

import pytest

from densesiam_d2.engine import load_config
from densesiam_d2.grid.compare import Budget, Comparison, Method
from densesiam_d2.grid.records import write_record
from densesiam_d2.grid.starts import Start
from densesiam_d2.samples.scenes import CLASSES, write_scenes
from densesiam_d2.tools.compare import main, write_compare_page

CONFIGS = Path(__file__).parents[2] / "configs"
PRETRAIN = str(CONFIGS / "quick" / "pretrain_instant_test.yaml")
FCN = str(CONFIGS / "quick" / "fcn_instant_test.yaml")
HARDWARE = {"cpu": "Some CPU", "cores": 2, "gpus": [], "torch": "2.6"}


@pytest.fixture
def words(tmp_path, catalog):
    write_scenes(tmp_path / "scenes", num=6, seed=0, size=64)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    (tmp_path / "other.txt").write_text("\n".join(reversed(CLASSES)))
    data = f"masks:{tmp_path}/scenes/images,labels={tmp_path}/scenes/sem_seg,classes={tmp_path}/classes.txt"
    fcn = (FCN, data, data, "MODEL.DEVICE", "cpu")

    def make(*more, configs=(PRETRAIN,), budget="pairs=20", starts=("scratch",), transfer=fcn, test=data):
        ret = ["--configs", *configs, "--data", f"folder:{tmp_path}/scenes/images", "--probe", data, test]
        ret += ["--transfer", *transfer, "--length", "0.00005"] if transfer else []
        ret += ["--starts", *starts, "--budget", budget, "--batch", "4"]
        return [*ret, "--output", str(tmp_path / "out"), "--seeds", "1", *more]

    return make


def finish(cell, ridge=0.0, **more):
    cell.folder.mkdir(parents=True)
    (cell.folder / "metrics.json").write_text(json.dumps({"iteration": 599, "time": 0.25}))
    (cell.folder / "log.txt").touch()
    record = {"state": "done", "words": cell.fixed_words, "command": "", "needs": {}, "date": "today", "peak_mib": 800}
    scores = {"ridge probe mIoU": ridge, "10-NN probe mIoU": ridge - 10} if cell.stage == "probe" else {}
    write_record(cell, {**record, "code": "abc", "hardware": HARDWARE, "seconds": 200.0, "scores": scores, **more})


def compared(root, names, budget):
    cfg = load_config(PRETRAIN)
    return Comparison(
        root=root,
        script=Path("t.py"),
        methods=[Method(name, f"{name}.yaml", cfg) for name in names],
        starts=[Start("scratch", "")],
        seeds=1,
        data=["folder:/a"],
        probe=("train", "test"),
        transfer=None,
        budget=Budget.parse(budget),
    )


def test_page_from_records(tmp_path):
    """600 steps of 0.25 s are 2.5 minutes; one method has failed."""
    comparison = compared(tmp_path, ("good", "lost"), "pairs=38400")
    cells = comparison.cells()
    scratch, good, probe, lost, _ = cells
    finish(scratch, 30.0)
    finish(good)
    finish(probe, 41.0)
    finish(lost, state="failed", error="exit code 1: no memory")
    page = write_compare_page(comparison, cells, "python -m compare").read_text()
    assert re.findall(r"<td>(.*?)</td>", page)[:21] == [
        *("scratch", "not pretrained here", "", "", "", "30.0", "20.0"),
        *("good", "38400 pairs", "2.50", "0.250", "800", "41.0", "31.0"),
        *("lost", "38400 pairs", "", "", "", "1 missing", "1 missing"),
    ]
    assert "failed: exit code 1: no memory" in page and "3 of 5 runs are done" in page
    assert page.count("data:image/png;base64,") == 1
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["costs"] == [
        {"method": "good", "budget": 38400, "seconds_per_step": 0.25, "minutes": 2.5, "mib": 800},
        {"method": "lost", "budget": 38400, "seconds_per_step": None, "minutes": None, "mib": None},
    ]
    assert content["budget"] == "pairs"


def test_scores_of_starts_before_a_method_is_timed(tmp_path):
    comparison = compared(tmp_path, ("slow",), "minutes=2")
    cells = comparison.cells()
    finish(next(cell for cell in cells if cell.stage == "probe"), 30.0)
    page = write_compare_page(comparison, cells, "python -m compare").read_text()
    assert re.findall(r"<td>(.*?)</td>", page)[:7] == ["scratch", "not pretrained here", "", "", "", "30.0", "20.0"]


def test_what_cannot_work_stops_before_the_grid(words, tmp_path, capsys):
    images = f"folder:{tmp_path}/scenes/images"
    other = f"masks:{tmp_path}/scenes/images,labels={tmp_path}/scenes/sem_seg,classes={tmp_path}/other.txt"
    for line, says in [
        (words(test=images), f"the labels cannot be used: {images}: no annotation"),
        (words(test=other), "they must be equal"),
        (words("--labels", "2", transfer=()), "--labels and --length are for the training of --transfer"),
        (words("--length", "2", transfer=()), "--labels and --length are for the training of --transfer"),
        (words(budget="hours=1"), "--budget hours=1: write pairs=N or minutes=M"),
        (words(budget="pairs=4,4"), "--budget pairs=4,4 names a value twice"),
        (words(budget="pairs=20,22"), "pairs=22: instant_test would have 24 pairs, in batches of 4: give a smaller"),
        (words(configs=[PRETRAIN, f"scratch={PRETRAIN}"]), "two of --configs and --starts are called scratch"),
        (words(configs=[f"a={FCN}"]), "SemanticSegmentor is no pretraining"),
        (words("MODEL.NORN", "BN"), f"compare: {PRETRAIN} or the command line: no config key MODEL.NORN"),
        (words(transfer=[PRETRAIN, images, images]), f"compare: {PRETRAIN}: DenseSiam does not learn from labels"),
        (words(starts=["no.pkl"]), "file no.pkl does not exist"),
        (words(transfer=["a.yaml"]), "--transfer takes a yaml, a training set and a test set"),
        (words(transfer=[FCN, "no", "no"]), "'no' is not a dataset"),
        (words("SOLVER.BASE_LR", "1"), "SOLVER.BASE_LR is set by this tool"),
        (words("--batch", "0"), f"compare: {PRETRAIN}: the config cannot work:\n  SOLVER.IMS_PER_BATCH is 0"),
    ]:
        assert main(line) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_defaults_of_output_and_budget(words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    line = words()
    for option in ("--budget", "--output"):
        del line[(at := line.index(option)) : at + 2]
    assert main(["--dry-run", *line]) == 0
    pretraining = next(text for text in capsys.readouterr().out.splitlines() if "/compare/pretrain/" in text)
    assert "SOLVER.MAX_ITER 25000 " in pretraining  # 100,000 pairs, 4 in an iteration
    assert f"OUTPUT_DIR {tmp_path}/output/compare/pretrain/instant_test/pairs_100000/seed_0" in pretraining


def test_names_and_lengths_of_budgets(words, tmp_path, capsys):
    """Minutes are those of this machine; train_net.py stretches MAX_ITER by REFERENCE_WORLD_SIZE / --num-gpus."""
    assert main(words("--dry-run", budget="pairs=1234567,1234568", transfer=None)) == 0
    text = capsys.readouterr().out
    assert "/pairs_1234567/" in text and "/pairs_1234568/" in text
    lengths = []
    for more in ((), ("SOLVER.REFERENCE_WORLD_SIZE", "4")):
        assert main(words("--dry-run", *more, budget="minutes=1", transfer=None)) == 0
        lengths.append(int(re.search(r"SOLVER.MAX_ITER (\d+) .*/time/", capsys.readouterr().out)[1]))
    assert lengths[0] == 4 * lengths[1]


@pytest.mark.slow
def test_a_real_comparison(words, tmp_path, capsys):
    assert main(words()) == 0, capsys.readouterr().out
    out = tmp_path / "out"
    content = json.loads((out / "results.json").read_text())
    assert content["missing"] == {} and [row["method"] for row in content["rows"]] == ["scratch", "instant_test"]
    (cost,) = content["costs"]
    assert cost["mib"] > 100
    assert cost["minutes"] == pytest.approx(cost["seconds_per_step"] * 5 / 60)  # 20 pairs in fours
    probe = json.loads((out / "probe" / "instant_test" / "pairs_20" / "seed_0" / "probe.json").read_text())
    (result,) = probe["results"].values()
    scores = content["rows"][1]["scores"]
    assert scores["ridge probe mIoU"]["values"] == [result["ridge"]["mIoU"]]
    assert scores["mIoU"]["mean"] is not None
    assert "5 of 5 runs are done" in (out / "report.html").read_text()
