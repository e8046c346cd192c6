"""``vivid compare``: pretrain several ways with several seeds, test them on the same images, judge who is better."""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vivid_monai.commands.arms import START, pairs, read_arms, tried
from vivid_monai.engines.matrix import Cell, run_matrix, run_submitted, seconds_per_step
from vivid_monai.engines.run import saves
from vivid_monai.errors import VividError
from vivid_monai.evaluation.finetuning import FINE_TUNED
from vivid_monai.evaluation.format import estimate
from vivid_monai.evaluation.verdicts import MARGIN, Tried, as_row, rule, write_verdicts
from vivid_monai.evaluation.workflows import INITIAL, PRETRAINED
from vivid_monai.networks.checkpoint import read_checkpoint
from vivid_monai.networks.modules import stored_parts
from vivid_monai.storage.configs import find_configs
from vivid_monai.storage.curves import CURVES, read_rows

REFERENCES = ("thumbnails", "bce_vit", "none")
OF_A_START = ("from_scratch", "linear_probe")
"""References of what is made of a start encoder: the arms of these names, of the same one."""
KEY_METRIC = "val/macro_auroc"
TIMED = " (equal time)"
OF_A_RUN = ("seed", "output_dir", "resume")
"""Keys of a run's config in which the seeds of an arm differ."""


def add_compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.epilog = "Arms, verdicts and files: docs/compare.md. Configs are those in configs/, else the package's own."
    what = "folder of a prepared data set, or several, asked in the union of their fields; a new phantom is generated"
    add("data", nargs="+", type=Path, metavar="DATA", help=what)
    what = "names of configs/arms.json, or files of your own arms in its format"
    add("--arms", nargs="+", default=["lm", "none", "bce_vit", "thumbnails"], metavar="ARM|FILE", help=what)
    what = f"what the arms with {START} in the table are made of: encoders by names, such as dino=transformers:FOLDER"
    add("--starts", nargs="+", default=[], metavar="NAME=ENCODER", help=what)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="a run of each arm for each")
    add("--out", type=Path, metavar="DIR", help="where all goes (default: runs/compare/NAME of the data)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of configs/train.json, of all arms")
    what = "values to try in every fine-tuned arm, such as learning_rate=1e-5,1e-4; validation images choose"
    add("--try", nargs="+", action="extend", default=[], dest="tries", metavar="KEY=VALUE,VALUE", help=what)
    add("--configs", nargs="+", default=[], metavar="FILE", help="overlays of configs/train.json, of all arms")
    what = "overlay of configs/evaluate.json (default: that of the data set, else configs/eval/table.json)"
    add("--task", metavar="FILE", help=what)
    add("--evaluate", nargs="+", default=[], metavar="KEY=VALUE", help="options of configs/evaluate.json")
    what = "images: as many steps; time: besides, each arm once more for as long as the slowest one took"
    add("--equal", choices=("images", "time"), default="images", help=what)
    add("--minutes", type=float, metavar="M", help="of training, in place of what the slowest arm took")
    what = f"references besides untrained, {', '.join(REFERENCES)}"
    add("--against", nargs="+", default=[], metavar="ARM", help=what)
    add("--margin", type=float, default=MARGIN, help="difference in macro AUROC that is worth the name")
    add("--processes", type=int, default=1, metavar="N", help="runs at a time")
    add("--gpus", type=int, default=0, metavar="N", help="runs at a time, each on a GPU of its own")
    add("--launcher", choices=("local", "submitit"), default="local", help="submitit: jobs of Slurm")
    what = "of submitit: timeout_min=120 gpus_per_node=1 slurm_partition=gpu"
    add("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help=what)


def run_compare(args: argparse.Namespace) -> int:
    """Train every arm with every seed, each run in a process of its own, test all encoders and their untrained twins on
    the same images, and judge which is better. The same command goes on where it stopped: what is done is not repeated,
    a run that was interrupted resumes from its last save, and two commands on one folder share the work."""
    if args.processes < 1 or args.gpus < 0 or len(set(args.seeds)) < len(args.seeds):
        raise VividError("--processes must be at least 1, --gpus not negative, and each seed given once")
    matrix = Matrix(args)
    failed = matrix.train(matrix.cells())
    tried = matrix.choose()
    if args.equal == "time":
        failed |= matrix.train(matrix.timed())
    if not matrix.complete():
        raise VividError(f"no arm has all its runs, so nothing can be compared: {_listed(failed)}")
    evaluation = matrix.evaluate()
    claims = matrix.claims()
    judged = write_verdicts(
        evaluation,
        matrix.out / "report.html",
        claims,
        {name: matrix.told(name) for name in matrix.encoders()},
        title=f"{matrix.name}: {len(matrix.arms)} arms, {len(args.seeds)} seeds",
        equal=matrix.equal(),
        failed=failed,
        margin=args.margin,
        tried=tried,
    )
    for setting in tried:
        value = "failed" if setting.mean is None else f"{setting.mean:.3f}"
        print(f"{'chosen' if setting.chosen else 'tried ':6s}  validation {value}  {setting.arm}: {setting.setting}")
    print(f"\n{rule(args.margin)}\n")
    width = max(len(f"{one.arm} better than {one.reference}") for one in judged) if judged else 0
    for one in judged:
        print(f"{f'{one.arm} better than {one.reference}':{width}s}  {one.verdict:9s}  {estimate(as_row(one))}")
    if failed:
        print(f"\nFailed: {_listed(failed)}\nThe same command tries them again.")
    print(f"\nNext: open {matrix.out / 'report.html'}; all findings: {evaluation / 'report.html'}")
    return 1 if failed else 0


class Matrix:
    """The runs of arms × seeds in a folder, and what becomes of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.configs = args, find_configs()
        self.name = args.data[0].name if len(args.data) == 1 else "union"
        self.out = args.out or Path("runs", "compare", self.name)
        self.arms = read_arms(args.arms, self.configs, pairs(args.starts, "--starts"))
        self.tries = {name: tried(arm, pairs(args.tries, "--try")) for name, arm in self.arms.items()}
        self._chosen: dict[str, str] = {}  # arm → folder of the setting that validation chose
        self._seconds: dict[str, float] = {}
        if args.tries and not any(arm.finetunes for arm in self.arms.values()):
            raise VividError("--try is for fine-tuned arms, whose validations can be compared; none of the arms is one")
        for name in args.against:
            if name not in self.arms:
                raise VividError(f"--against {name}: it is none of the arms {', '.join(self.arms)}")
        for folder in args.data:
            if not (folder / "manifest.parquet").exists() and (self.name, len(args.data)) != ("phantom", 1):
                raise VividError(f"{folder}: no manifest.parquet in it; make one with `vivid prepare`")
        if args.equal == "time" and (tuned := [arm.name for arm in self.arms.values() if arm.finetunes]):
            raise VividError(f"--equal time is for pretraining; {tuned[0]!r} trains until it gets no better")

    def folder(self, arm: str, seed: int) -> Path:
        """Of a run."""
        kind, name = ("time", arm.removesuffix(TIMED)) if arm.endswith(TIMED) else ("images", arm)
        return self.out / kind / self._chosen.get(name, name) / str(seed)

    def choose(self) -> list[Tried]:
        """Of each arm the setting whose best validations, mean over the seeds, are the best, of those that have all
        their runs; from then on it is the arm. Nothing of the test images is read.

        Returns:
            What was tried of the arms that try anything.
        """
        told = []
        for name, settings in self.tries.items():
            if len(settings) == 1:
                continue
            found = []
            for one in settings:
                values = (
                    [_best_validation(self.folder(one.name, s)) for s in self.args.seeds]
                    if self._done(one.name)
                    else []
                )
                found.append(Tried(name, one.name.removeprefix(f"{name}, "), tuple(values), chosen=False))
            done = [one for one in found if one.mean is not None]
            if done:
                best = found.index(max(done, key=lambda one: one.mean or 0.0))  # the first of equals
                self._chosen[name] = settings[best].name
                self.arms[name] = replace(settings[best], name=name)
                found[best] = found[best]._replace(chosen=True)
            told += found
        return told

    def cells(self) -> list[Cell]:
        """A run of every arm that is trained, for every seed: seed by seed, so that whole comparisons come early."""
        overlay = self._of_data("data", self.name)
        first = [str(self.configs / "train.json"), overlay, *self.args.configs]
        common = {"name": self.name, "dataset_dir": self._dataset_dir(), "bundle_root": self.out, "n_examples": 0}
        common |= pairs(self.args.set, "--set")
        return [
            Cell(
                f"{one.name}, seed {seed}",
                str(self.folder(one.name, seed)),
                (*first, *one.configs),
                {**common, **one.knobs, "seed": seed},
                "finetuning" if one.finetunes else "training",
            )
            for seed in self.args.seeds
            for settings in self.tries.values()
            for one in settings
            if not one.encoder
        ]

    def timed(self) -> list[Cell]:
        """The runs again, each with as many steps as it can train in the time of the slowest arm, which is left out."""
        names = [arm.name for arm in self.arms.values() if not arm.encoder and self._done(arm.name)]
        minutes = self.args.minutes
        target = 60 * minutes if minutes else max(map(self.seconds, names), default=0)
        again = []
        for cell in self.cells():
            name, _, seed = cell.name.rpartition(", seed ")
            if name not in names:
                continue
            config, ratio = self._config(name), target / self.seconds(name)
            steps = {"epoch_length": max(1, round(ratio * config["epoch_length"]))}
            if steps["epoch_length"] == config["epoch_length"]:
                continue
            total = steps["epoch_length"] * config["max_epochs"]
            steps["warmup_steps"] = min(round(ratio * config["warmup_steps"]), total - 1)
            folder = str(self.folder(name + TIMED, int(seed)))
            called = f"{name}{TIMED}, seed {seed}"
            again.append(replace(cell, name=called, folder=folder, knobs={**cell.knobs, **steps}))
        return again

    def train(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Run what is not done; what failed, with the reason."""
        for cell in cells:
            cell.ask()
        return self._launch(cells)

    def _launch(self, cells: Sequence[Cell]) -> dict[str, str]:
        args = self.args
        if args.launcher == "submitit":
            return run_submitted(cells, self.out / "submitit", _numbers(pairs(args.slurm, "--slurm")))
        return run_matrix(cells, processes=args.processes, gpus=args.gpus)

    def complete(self) -> list[str]:
        """Names of the arms that have all their runs, and of those among them that need none."""
        names = [arm.name for arm in self.arms.values() if arm.encoder or self._done(arm.name)]
        timed = [arm + TIMED for arm in self.arms if self.args.equal == "time" and self._done(arm + TIMED)]
        return names + timed

    def encoders(self) -> dict[str, list[str]]:
        """Name → an encoder for each seed: of every complete arm, and of the untrained twins."""
        specs: dict[str, list[str]] = {}
        for name in self.complete():
            arm = self.arms[name.removesuffix(TIMED)]
            folders = [self.folder(name, seed) for seed in self.args.seeds]
            specs[name] = [arm.encoder] if arm.encoder else [str(folder / PRETRAINED) for folder in folders]
        for name, twin in self.twins().items():
            specs.setdefault(twin, [str(self.folder(name, seed) / INITIAL) for seed in self.args.seeds])
        return specs

    def twins(self) -> dict[str, str]:
        """Trained arm → the name of its untrained twin: one for all arms that start from the same kind of network."""
        known: dict[str, str] = {}
        twins = {}
        for name in self.complete():
            arm = self.arms[name.removesuffix(TIMED)]
            if arm.encoder or arm.finetunes:  # what a fine-tuning started from is an encoder that was trained
                continue
            stored = stored_parts(read_checkpoint(self.folder(name, self.args.seeds[0]) / INITIAL, tensors=False)) or {}
            network = {key: stored[key] for key in ("kind", "config", "preprocess", "pool")}
            network["spd"] = stored["spd"] if stored["pool"] == "spd" else None  # else no feature hangs on it
            start = [network, *(self._config(name).get(one) for one in ("vit_weights", "start"))]
            called = f"untrained {name}" if known else "untrained"
            twins[name] = known.setdefault(json.dumps(start, sort_keys=True), called)
        return twins

    def claims(self) -> list[tuple[str, str]]:
        """(arm, reference): each arm against its untrained twin, and against the references that are there."""
        names, twins = self.complete(), self.twins()
        claims = []
        for name in names:
            suffix = TIMED if name.endswith(TIMED) else ""
            references = [twins[name]] if name in twins else []
            start = self.arms[name.removesuffix(TIMED)].start
            of_its_start = [f"{one} {start}" for one in OF_A_START if start]
            for reference in dict.fromkeys([*of_its_start, *REFERENCES, *self.args.against]):
                reference += suffix if reference + suffix in names else ""
                references += [reference] if reference in names else []
            others = [one for one in references if one.removesuffix(TIMED) != name.removesuffix(TIMED)]
            claims += [(name, one) for one in others if (one, name) not in claims]
        return claims

    def evaluate(self) -> Path:
        """One evaluation of all encoders on the same images; its folder."""
        folder = self.out / "evaluation"
        task = self.args.task or self._of_data("eval", self.name, f"{self.name}_probe")
        knobs: dict[str, Any] = {"dataset_dir": self._dataset_dir(), "bundle_root": self.out}
        if len(self.args.data) == 1:  # phantoms are there by now
            knobs["manifest"] = self.args.data[0] / "manifest.parquet"
        knobs |= {"encoder": self.encoders(), "baseline": "none", "seeds": self.args.seeds, "n_examples": 0}
        knobs["probes"] = {
            name: [str(self.folder(name, seed) / "probes" / f"{FINE_TUNED}-0.safetensors") for seed in self.args.seeds]
            for name in self.complete()
            if self.arms[name.removesuffix(TIMED)].finetunes
        }
        knobs |= {"cache_dir": self.out / "features", **pairs(self.args.evaluate, "--evaluate")}
        cell = Cell("evaluation", str(folder), (str(self.configs / "evaluate.json"), task), knobs, "evaluating")
        if cell.done and self._newest() > (folder / "results.json").stat().st_mtime:
            shutil.rmtree(folder)
        try:
            cell.ask()
        except VividError:  # of other arms or seeds: the features of most are kept
            shutil.rmtree(folder)
            cell.ask()
        if not cell.done and (failed := self._launch([cell])):
            raise VividError(f"the evaluation failed: {failed[cell.name]}")
        return folder

    def _newest(self) -> float:
        """When the last run ended."""
        runs = [self.folder(name, seed) / "results.json" for name in self.complete() for seed in self.args.seeds]
        return max((path.stat().st_mtime for path in runs if path.exists()), default=0)

    def told(self, name: str) -> dict[str, Any]:
        """What the page says of an encoder."""
        arm = self.arms.get(name.removesuffix(TIMED))
        if arm is None or arm.encoder:
            says = arm.says if arm else "the network before training, drawn anew for each seed"
            return {"says": says, "images": 0, "minutes": None, "settings": arm.encoder if arm else ""}
        settings = [*(Path(one).stem for one in arm.configs), *(f"{key}={value}" for key, value in arm.knobs.items())]
        config = self._config(name)
        steps = [self._steps(name, seed) for seed in self.args.seeds]
        images = round(config["batch_size"] * sum(steps) / len(steps))
        return {"says": arm.says, "images": images, "minutes": self.seconds(name) / 60, "settings": ", ".join(settings)}

    def equal(self) -> str:
        """What the arms have in common."""
        words = "All arms were trained for the same number of steps and images; the table says how many."
        if any(self.arms[name.removesuffix(TIMED)].finetunes for name in self.complete()):
            words = (
                "Fine-tuned arms are tested with their own heads, at the step with the best validation; to others a "
                "linear probe is fitted. The table says on how many images each was trained, its start not counted."
            )
        elif len({self.told(name)["images"] for name in self.twins() if not name.endswith(TIMED)}) > 1:
            words = "Arms were trained on different numbers of images, as the table says: they set them themselves."
        if self.args.equal == "time":
            how = f"for {self.args.minutes:g} minutes" if self.args.minutes else "as long as the slowest of them"
            words += f" Where it says{TIMED}, an arm was trained anew {how}, by the time of a step in its first runs."
        return words

    def seconds(self, name: str) -> float:
        """Of training of one run, mean over the seeds: the time of its steps, without validation."""
        if name not in self._seconds:
            of_runs = [self._steps(name, seed) * seconds_per_step(self.folder(name, seed)) for seed in self.args.seeds]
            self._seconds[name] = sum(of_runs) / len(of_runs)
        return self._seconds[name]

    def _steps(self, name: str, seed: int) -> int:
        """Of a run: those its config asked for, or of a fine-tuning, which may end before, those it has made."""
        if self.arms[name.removesuffix(TIMED)].finetunes:
            return max(step for step, _ in saves(self.folder(name, seed) / "checkpoints"))
        config = self._config(name)
        return config["max_epochs"] * config["epoch_length"]

    def _dataset_dir(self) -> str | list[str]:
        folders = [str(folder) for folder in self.args.data]
        return folders[0] if len(folders) == 1 else folders

    def _done(self, name: str) -> bool:
        return all((self.folder(name, seed) / "results.json").exists() for seed in self.args.seeds)

    def _config(self, name: str) -> dict[str, Any]:
        """The config of an arm's runs, which have to agree in it."""
        first: dict[str, Any] = {}
        for seed in self.args.seeds:
            path = self.folder(name, seed) / "config.json"
            config = {key: one for key, one in json.loads(path.read_text()).items() if key not in OF_A_RUN}
            if odd := [key for key in first or config if config.get(key) != (first or config).get(key)]:
                raise VividError(f"{path}: differs from the arm's first run in {', '.join(odd)}; delete one of them")
            first = first or config
        return first

    def _of_data(self, kind: str, *names: str) -> str:
        """The overlay of the data set, by the name of its folder, or that of any table."""
        return _find_first([self.configs / kind / f"{name}.json" for name in (*names, "table")])


def _best_validation(folder: Path) -> float:
    """Macro AUROC of a fine-tuning on its validation images, at the step whose weights it kept."""
    found = [row[KEY_METRIC] for row in read_rows(folder / CURVES) if KEY_METRIC in row]
    if not found:
        raise VividError(f"{folder / CURVES}: has no {KEY_METRIC}, by which --try chooses; remove the folder")
    return max(found)


def _find_first(paths: Sequence[Path]) -> str:
    return str(next((path for path in paths if path.is_file()), paths[-1]))


def _numbers(options: Mapping[str, str]) -> dict[str, Any]:
    return {key: int(value) if value.isdecimal() else value for key, value in options.items()}


def _listed(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in failed.items())
