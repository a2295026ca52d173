"""Compare pretraining methods at equal cost: pretrain, probe the exported backbone, train with labels from it."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from densesiam_d2.checkpoint import backbone_metadata, backbone_state, save_backbone
from densesiam_d2.grid.cells import Cell, Score
from densesiam_d2.grid.low_shot import transfer_scores, transfer_words
from densesiam_d2.grid.records import State, read_record, state_of
from densesiam_d2.grid.schedules import stretched
from densesiam_d2.grid.starts import Start, check_starts, on_cpu, quiet
from densesiam_d2.modeling import BASELINES
from densesiam_d2.reporting.curves import read_metrics

__all__ = ["Budget", "Comparison", "Cost", "Method", "Transfer", "check_backbones", "cost_of"]

PROBE_SCORES = (
    Score("ridge probe mIoU", "probe.json", "results.*.ridge.mIoU"),
    Score("10-NN probe mIoU", "probe.json", "results.*.knn.10.mIoU"),
)
_TIMED = 60  # iterations that measure the seconds per step


@dataclass(frozen=True)
class Budget:
    """What all methods get alike: a number of pairs of views, or minutes of training on this machine.

    Attributes:
        unit: "pairs" or "minutes".
        values: one pretraining for each.
    """

    unit: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, word: str) -> "Budget":
        """Read "pairs=2000,10000" or "minutes=5".

        Raises:
            ValueError: it has another form.
        """
        found = re.fullmatch(r"(pairs|minutes)=(\d+(?:\.\d+)?(?:,\d+(?:\.\d+)?)*)", word)
        values = tuple(float(value) for value in found[2].split(",")) if found else ()
        if not values or min(values) <= 0:
            raise ValueError(f"--budget {word}: write pairs=N or minutes=M, several with commas between them")
        if len(set(values)) < len(values):
            raise ValueError(f"--budget {word} names a value twice")
        return cls(found[1], values)

    def iterations(self, value: float, batch: int, seconds_per_step: float | None) -> int:
        """Return the length of a pretraining.

        Args:
            value: one of ``values``.
            batch: pairs in an iteration.
            seconds_per_step: of this method on this machine; needed for minutes only.
        """
        return max(1, round(value / batch if self.unit == "pairs" else 60 * value / seconds_per_step))


@dataclass(frozen=True)
class Method:
    """A pretraining.

    Attributes:
        name: in tables, plots and names of folders.
        config_file: the yaml.
        cfg: its checked config.
    """

    name: str
    config_file: str
    cfg: CfgNode


@dataclass(frozen=True)
class Transfer:
    """The training with labels that follows each pretraining.

    Attributes:
        cfg: the checked config.
        test: the set for the scores.
        command: the other arguments of ``transfer_words`` that are equal for all trainings.
    """

    cfg: CfgNode
    test: str
    command: dict


@dataclass(frozen=True)
class Comparison:
    """All that the cells are made of.

    Attributes:
        root: the grid's folder.
        script: train_net.py.
        methods: the pretrainings.
        starts: weights that are not pretrained here, such as "scratch", for comparison.
        seeds: number of seeds, from 0.
        data: names of the datasets to pretrain on.
        probe: names of the datasets for the probe's training and test.
        transfer: None leaves it out.
        budget: what each pretraining may cost.
        batch: pairs in an iteration, with BASE_LR scaled in proportion; None takes those of the yaml.
        num_gpus: of each training.
        opts: further keys and values for pretraining and probe.
    """

    root: Path
    script: Path
    methods: Sequence[Method]
    starts: Sequence[Start]
    seeds: int
    data: Sequence[str]
    probe: tuple[str, str]
    transfer: Transfer | None
    budget: Budget
    batch: int | None = None
    num_gpus: int = 1
    opts: Sequence[str] = field(default_factory=tuple)

    def check_pairs(self) -> None:
        """Refuse budgets of pairs that whole batches miss by more than 5 percent: the methods would not cost the same.

        Raises:
            ValueError: a budget is too small for the batch of a method.
        """
        for value in self.budget.values if self.budget.unit == "pairs" else ():
            for method in self.methods:
                batch = self._batch(method)
                pairs = batch * self.budget.iterations(value, batch, None)
                if abs(pairs - value) > 0.05 * value:
                    raise ValueError(
                        f"--budget pairs={value:.15g}: {method.name} would have {pairs} pairs, in batches of {batch}: "
                        "give a smaller --batch, or more pairs"
                    )

    def timing_cells(self) -> list[Cell]:
        """Return the short trainings that measure the seconds per step, one for each method; none for pairs."""
        if self.budget.unit == "pairs":
            return []
        return [
            self._pretraining(
                method, f"time/{method.name}", "time", {"method": method.name}, 0, self._asked(method, _TIMED)
            )
            for method in self.methods
        ]

    def _asked(self, method: Method, iterations: int) -> int:
        """Return the MAX_ITER with which a training has ``iterations``: SOLVER.REFERENCE_WORLD_SIZE stretches it."""
        return max(1, round(iterations * self.num_gpus / (method.cfg.SOLVER.REFERENCE_WORLD_SIZE or self.num_gpus)))

    def cells(self) -> list[Cell]:
        """Return all cells, a seed after the other.

        With a budget in minutes, a method has only its timing cell until that is done.
        """
        found = self.timing_cells()
        timing = {cell.axes["method"]: cell for cell in found}
        steps = {method: _seconds_per_step(cell) for method, cell in timing.items()}
        for seed in range(self.seeds):
            for start in self.starts:
                where, axes = f"{start.name}/seed_{seed}", {"method": start.name, "seed": seed}
                found += self._scoring(self.methods[0], start.weights, where, axes, seed, needs=())
            for value in self.budget.values:
                for method in self.methods:
                    if method.name in timing and steps[method.name] is None:
                        continue
                    where = f"{method.name}/{self.budget.unit}_{value:.15g}/seed_{seed}"
                    axes = {"method": method.name, "budget": value, "seed": seed}
                    length = self.budget.iterations(value, self._batch(method), steps.get(method.name))
                    if self.budget.unit == "minutes":  # pairs stay: the batch shrinks as the length grows
                        length = self._asked(method, length)
                    needs = (timing[method.name].name,) if timing else ()
                    cell = self._pretraining(method, f"pretrain/{where}", "pretrain", axes, seed, length, needs)
                    weights = str(cell.folder / "backbone.pkl")  # pretraining exports it at its end
                    found += [cell, *self._scoring(method, weights, where, axes, seed, needs=(cell.name,))]
        return found

    def _batch(self, method: Method) -> int:
        return self.batch or method.cfg.SOLVER.IMS_PER_BATCH

    def _pretraining(
        self, method: Method, name: str, stage: str, axes: dict, seed: int, iterations: int, needs: tuple[str, ...] = ()
    ) -> Cell:
        solver, batch = method.cfg.SOLVER, self._batch(method)
        words = ["python", str(self.script), "--config-file", method.config_file, "--num-gpus", str(self.num_gpus)]
        words += ["--resume", "auto", *stretched(method.cfg, iterations), "SOLVER.IMS_PER_BATCH", str(batch)]
        words += ["SOLVER.BASE_LR", f"{solver.BASE_LR * batch / solver.IMS_PER_BATCH:g}", *self.opts]
        data = self.data[0] if len(self.data) == 1 else repr(tuple(self.data))
        words += ["DATASETS.TRAIN", data, "DATASETS.TEST", "()"]
        words += ["SEED", str(seed), "OUTPUT_DIR", str(self.root / name)]
        return Cell(name, stage, tuple(words), self.root, axes, needs, work=iterations * batch)

    def _scoring(
        self, method: Method, weights: str, where: str, axes: dict, seed: int, *, needs: tuple[str, ...]
    ) -> list[Cell]:
        """Return the probe of some weights, and the training with labels that starts from them."""
        folder = self.root / "probe" / where
        words = ["python", "-m", "densesiam_d2.tools.probe", "--config-file", method.config_file]
        words += ["--weights", weights or "random", "--train", self.probe[0], "--test", self.probe[1]]
        words += ["--output", str(folder / "probe.json"), *self.opts, "SEED", str(seed)]
        cells = [Cell(f"probe/{where}", "probe", tuple(words), self.root, axes, needs, PROBE_SCORES)]
        if self.transfer:
            name, transfer = f"transfer/{where}", self.transfer
            words, iterations = transfer_words(
                transfer.cfg, weights=weights, test=transfer.test, seed=seed, **transfer.command
            )
            words += ("OUTPUT_DIR", str(self.root / name))
            scores = transfer_scores(transfer.cfg, transfer.test)
            cells.append(Cell(name, "transfer", words, self.root, axes, needs, scores, work=iterations))
        return cells


@dataclass(frozen=True)
class Cost:
    """What a finished training has cost.

    Attributes:
        seconds_per_step: median of what the training has logged, loading of images included; None for less than four
            iterations, which log no time.
        minutes: this times the number of iterations.
        mib: memory: the most that one GPU has held, or on the CPU the resident memory of the largest process.
    """

    seconds_per_step: float | None
    minutes: float | None
    mib: int


def cost_of(cell: Cell) -> Cost:
    """Read the cost of a finished training from its metrics.json, log.txt and cell.json."""
    iterations, times = read_metrics(cell.folder).get("time", ((), ()))
    seconds = float(median(times)) if len(times) else None
    on_gpu = [int(mib) for mib in re.findall(r"max_mem: (\d+)M", (cell.folder / "log.txt").read_text(errors="replace"))]
    minutes = seconds * iterations[-1] / 60 if len(times) else None
    return Cost(seconds, minutes, max(on_gpu, default=read_record(cell)["peak_mib"]))


def _seconds_per_step(cell: Cell) -> float | None:
    return cost_of(cell).seconds_per_step if state_of(cell) == State.DONE else None


def check_backbones(methods: Sequence[Method], cfg: CfgNode) -> None:
    """Check that the backbone of each method can be loaded by the training with labels, before any training begins.

    Args:
        methods: the pretrainings.
        cfg: the config of the training with labels.

    Raises:
        ValueError: some cannot; one message lists them all.
    """
    with tempfile.TemporaryDirectory() as folder:
        starts = []
        for method in methods:
            with quiet():
                model = build_model(on_cpu(method.cfg))
                if isinstance(model, BASELINES):
                    raise ValueError(f"{method.config_file}: {method.cfg.MODEL.META_ARCHITECTURE} trains no backbone")
                path = Path(folder, f"{method.name}.pkl")
                save_backbone(path, backbone_state(model), backbone_metadata(method.cfg, None))
            starts.append(Start(method.config_file, str(path)))
        check_starts(cfg, starts)
