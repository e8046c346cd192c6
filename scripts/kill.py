"""Kill programs at random times, go on as the docs say, and compare with what they leave when nobody kills them.

    python scripts/kill.py --kills 50 --seed 1             # preparing, training, evaluation, bundle, prediction in turn
    python scripts/kill.py --kills 9 --only training       # one of them

Each command runs to its end once. Then it is started in a folder of its own, killed with all its processes (SIGKILL)
at a time drawn evenly from the duration of that run, or as soon after it as something is written, sometimes once more
while it goes on, and run to its end: by the same command, a training run with --resume True once it has saved. What
lies in the folder then must be what lies in that of the first run: the same files, no more, with the same content. Ends
with status 1 at the first that is not so; its folders are kept, and printed with the seed. (A seed fixes the shares of
the duration, not what is done by then.)
"""

import argparse
import csv
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.bundle.conftest import ROOT, SMALL, bundle_command
from tests.deploy.conftest import NAME, make_run
from tests.deploy.made_dicom import dicom
from tests.evaluation.small import data_set
from tests.processes import _module, _start, quiet, run_code
from vivid_monai.deploy.bundle import build_bundle
from vivid_monai.deploy.calibration import load_calibrated
from vivid_monai.prepare.phantoms import prepare as prepare_phantoms
from vivid_monai.ums.label_space import load_label_space

AGAIN = 0.3
"""Share of the kills that are followed by one more, while the command goes on."""
WRITING = 0.5
"""Share of the kills that wait, after that time, for something to be written, and meet it half done."""
HALF = ", a file half written"
LONG = 300
"""Seconds after which a command that goes on is taken to hang."""


@dataclass(frozen=True, eq=False)
class Program:
    """A command that is killed.

    Attributes:
        words: its arguments; it runs in a folder of its own, so that paths of what it writes are relative.
        phase: folder → what it was at, by what lies there.
        way_on: folder → what to add to the words after a kill; it may remove what it is told to remove.
    """

    name: str
    module: str
    words: Sequence[object]
    phase: Callable[[Path], str]
    way_on: Callable[[Path], Sequence[str]] = lambda _: ()


class Inputs:
    """What the commands read, each made when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    @cached_property
    def phantoms(self) -> Path:
        prepare_phantoms(self.folder / "phantoms", n=SMALL["phantom_images"], seed=0, size=SMALL["image_size"])
        return self.folder / "phantoms"

    @cached_property
    def data(self) -> Path:
        """A prepared folder of many small images."""
        data_set(self.folder / "many", n=600)
        return self.folder / "many"

    @cached_property
    def table(self) -> Path:
        """Its images in a table with a mapping, map.json; one is no image."""
        fields, rng = load_label_space("chexpert-12").fields, np.random.default_rng(0)
        files = [*sorted((self.data / "images").iterdir()), self.folder / "notes.png"]
        files[-1].write_text("no image")
        path = self.folder / "labels.csv"
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "patient", *fields])
            rows.writerows([one, f"p{i // 3}", *rng.integers(0, 2, len(fields))] for i, one in enumerate(files))
        mapping = {"mapping_version": "1.0", "dataset": "made", "source": "human", "image": "file"}
        mapping |= {"patient": "patient", "label_columns": {one: one for one in fields}}
        mapping |= {"values": {"1": "present", "0": "absent"}}
        (self.folder / "map.json").write_text(json.dumps(mapping), encoding="utf-8")
        return path

    @cached_property
    def run(self) -> Path:
        """A finished training run."""
        return make_run(self.folder)  # with data/ beside it

    @cached_property
    def bundle(self) -> Path:
        return build_bundle(load_calibrated(self.run), self.folder / NAME, onnx="float32")

    @cached_property
    def images(self) -> Path:
        """60 files: images of the run's test split, eight of them as DICOM, one blank, one that is no image."""
        folder, files = self.folder / "images", sorted((self.run.parent / "data" / "images").iterdir())[-50:]
        folder.mkdir()
        for i, file in enumerate(files):
            shutil.copy(file, folder)
            if i < 8:
                with Image.open(file) as image:
                    dicom(folder / f"{i}.dcm", seed=i, pixels=np.asarray(image))
        Image.new("L", (40, 25), 128).save(folder / "blank.png")
        (folder / "notes.png").write_text("no image")
        return folder


def by_files(*phases: tuple[str, str], first: str) -> Callable[[Path], str]:
    """The phase whose file (a pattern) is there, the last of them first."""

    def phase(folder: Path) -> str:
        return next((name for name, pattern in reversed(phases) if any(folder.glob(pattern))), first)

    return phase


def preparing(inputs: Inputs) -> Iterator[Program]:
    words = ["prepare", "table", inputs.table, "--mapping", inputs.folder / "map.json", "--check", "images", "--jsonl"]
    phases = by_files(("writing", "out/*"), ("writing records", "out/manifest.parquet"), first="reading")
    yield Program("prepare table", CLI, [*words, "--workers", 1, "--out", "out"], phases)
    phases = by_files(("drawing", ".out.*"), ("closing", "out"), first="starting")
    words = ["phantom", "--n", 200, "--size", 64, "--workers", 1, "--out", "out"]
    yield Program("phantom", CLI, words, phases)
    words = ["prepare", "conditions", inputs.data, "--noise", 0.1, "--missing", 0.1, "--labels", 0.5, "--out", "out"]
    phases = by_files(("writing", "out"), ("closing", "out/manifest.parquet"), first="reading")
    yield Program("prepare conditions", CLI, words, phases)


def training(inputs: Inputs) -> Iterator[Program]:
    words = bundle_command(
        dataset_dir=inputs.phantoms, output_dir="run", bundle_root=".", epoch_length=10, save_every=3
    )
    phases = by_files(
        ("before the first checkpoint", "run/*.safetensors"),
        ("training", "run/checkpoints/step_*.pt"),
        ("evaluation", "run/features"),
        ("writing results", "run/results.json"),
        first="setting up",
    )
    yield Program("training", words[1], words[2:], phases, way_on=resume)


def resume(folder: Path) -> Sequence[str]:
    """As the messages say: what has not saved is removed and started again."""
    if any((folder / "run" / "checkpoints").glob("step_*.pt")):
        return ["--resume", "True"]
    shutil.rmtree(folder / "run", ignore_errors=True)
    return []


def evaluating(inputs: Inputs) -> Iterator[Program]:
    files = [str(ROOT / "configs" / name) for name in ("evaluate.json", "eval/table.json")]
    knobs = {"encoder": inputs.run / "pretrained_vit.safetensors", "manifest": inputs.data / "manifest.parquet"}
    knobs |= {"bundle_root": ".", "output_dir": "out", "cache_dir": "cache", "n_resamples": 50, "batch_size": 16}
    options = [part for key, value in knobs.items() for part in (f"--{key}", value)]
    phases = by_files(("extracting features", "cache/*"), ("writing results", "out/results.json"), first="setting up")
    yield Program("evaluation", "monai.bundle", ["run", "evaluating", "--config_file", str(files), *options], phases)


def bundling(inputs: Inputs) -> Iterator[Program]:
    phases = by_files(
        ("exporting", f"{NAME}/models/.*"), ("writing", f"{NAME}/models/model.*"), ("docs", f"{NAME}/LICENSE"),
        first="calibrating",
    )  # fmt: skip
    for onnx in ("float32", "none"):
        yield Program(f"bundle {onnx}", CLI, ["bundle", inputs.run, "--out", NAME, "--onnx", onnx], phases)


def predicting(inputs: Inputs) -> Iterator[Program]:
    phases = by_files(("predicting", "out/journal.jsonl"), ("closing", "out/unreadable.csv"), first="loading")
    words = ["predict", inputs.images, "--bundle", inputs.bundle, "--out", "out", "--batch-size", 2]
    yield Program("predict", CLI, [*words, "--overlays", "--reports"], phases)
    yield Program("predict with a worker", CLI, [*words, "--runtime", "torch", "--workers", 1], phases)


CLI = "vivid_monai.cli"
PROGRAMS: dict[str, Callable[[Inputs], Iterator[Program]]] = {
    "prepare": preparing,
    "training": training,
    "evaluation": evaluating,
    "bundle": bundling,
    "predict": predicting,
}


class Failed(Exception):
    """A command that does not go on, or ends at something else."""


@dataclass
class Running:
    """A command in a process group of its own; what it prints goes into files beside its folder."""

    program: Program
    folder: Path
    number: Iterator[int] = field(default_factory=itertools.count)

    def start(self, more: Sequence[str] = ()) -> None:
        self.out = self.folder.with_name(f"{self.folder.name}.out{next(self.number)}")
        argv = [self.program.module, *map(str, self.program.words), *more]
        code = f"import os; os.setsid(); {_module(self.program.module)}"
        self.process = _start(code, argv, str(self.folder), quiet(), str(self.out), str(self.out), "")

    def kill_after(self, seconds: float, *, writing: bool = False) -> bool:
        """Kill it with all its processes, then or as soon as it writes something; False: it had ended."""
        self.process.join(seconds)
        before = sizes(self.folder)
        while writing and self.process.exitcode is None and sizes(self.folder) == before:
            time.sleep(0.001)
        if self.process.exitcode is not None:
            return False
        try:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        except ProcessLookupError:  # it is so young that it has no group
            self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def end(self) -> None:
        """Wait for its end, which must be a good one."""
        self.process.join(LONG)
        code = self.process.exitcode
        if code != 0:
            self.kill_after(0)
            raise Failed(f"ended with {code}: {self.out.read_text(errors='replace')[-1500:]}")


def sizes(folder: Path) -> dict[str, int]:
    """Path → bytes of the files in a folder in which something is written."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found[os.path.join(root, name)] = os.stat(os.path.join(root, name)).st_size
    return found


def half_written(folder: Path) -> bool:
    return any(folder.rglob(".*.part"))


def started(program: Program, folder: Path) -> Running:
    folder.mkdir()
    return Running(program, folder)


def whole(program: Program, folder: Path) -> tuple[dict[str, Any], float]:
    """Run a command to its end: what it leaves, and its duration in seconds."""
    one, begun = started(program, folder), time.monotonic()
    one.start()
    one.end()
    return contents(folder), time.monotonic() - begun


def killed(
    program: Program, folder: Path, reference: dict[str, Any], duration: float, draw: random.Random
) -> list[str]:
    """Kill a command, let it go on to its end and compare; returns the phase of each kill, none where it was faster.

    Raises:
        Failed: it does not end well, or at something else.
    """
    one, phases = started(program, folder), []
    one.start()
    while one.kill_after(draw.uniform(0, duration), writing=draw.random() < WRITING):
        phases.append(program.phase(folder) + (HALF if half_written(folder) else ""))
        one.start(program.way_on(folder))
        if draw.random() >= AGAIN:
            break
    one.end()
    if differences := compare(reference, contents(folder)):
        at = ", ".join(phases) or "no kill"
        raise Failed(f"{at}: {len(differences)} differences: " + "; ".join(differences[:5]))
    return phases


def contents(folder: Path) -> dict[str, Any]:
    """Relative path → content of every file, and None of every folder; events of TensorBoard as one file a folder."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.startswith("events.out.tfevents."):
            found.setdefault(str(Path(name).with_name("events")), {}).update(_scalars(path))
        else:
            found[name] = None if path.is_dir() else _content(path)
    return found


def compare(reference: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, in words. Of TensorBoard's events a kill takes those of the last two minutes, no more."""
    told = [f"{name}: stray" for name in found if name not in reference]
    told += [f"{name}: missing" for name in reference if name not in found]
    for name in reference.keys() & found.keys():
        same = reference[name] == found[name]
        if Path(name).name == "events":
            same = found[name].items() <= reference[name].items()
        if not same:
            told.append(f"{name}: another content")
    return sorted(told)


def _content(path: Path) -> Any:
    """Of a file what must be the same: its bytes, without dates, durations, drawn UIDs and the word --resume."""
    if path.name in ("times.csv", "progress.png"):  # which shows them
        return "durations"
    if path.name in ("results.json", "config.json"):
        return _timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.name == "report.html":
        text, _, _ = path.read_text(encoding="utf-8").partition('<section aria-labelledby="again">')
        text = re.sub('<section aria-labelledby="training">.*?</section>', "", text, flags=re.DOTALL)
        return re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+|<dt>seconds</dt>\s*<dd>.*?</dd>", "", text)
    if path.parent.name == "probes":
        with safe_open(path, "np") as file:
            described = {key: _timeless(json.loads(value)) for key, value in file.metadata().items()}
            return described, {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118
    if path.suffix == ".pt":  # a pickle's bytes depend on which of its objects are one
        return _plain(torch.load(path, map_location="cpu", weights_only=True))
    if path.suffix == ".dcm":
        report = pydicom.dcmread(path)
        return [str(one) for one in report.iterall() if one.VR not in ("UI", "DA", "TM", "DT")]
    return path.read_bytes()


_OF_ONE_RUN = ("created", "seconds", "command", "resume")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in _OF_ONE_RUN}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if key != "times"}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else repr(value)  # NaN is not NaN


def _scalars(path: Path) -> dict[tuple[str, int], str]:
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    return {(tag, one.step): repr(one.value) for tag in events.Tags()["scalars"] for one in events.Scalars(tag)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the times (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="of the programs")
    args = parser.parse_args()
    work, draw = Path(tempfile.mkdtemp(prefix="vivid-kill-")), random.Random(args.seed)
    run_code("pass", cwd=work)  # the server of tests.processes imports what the commands need
    inputs, kills, runs = Inputs(work / "inputs"), Counter[tuple[str, str]](), Counter[str]()
    commands = {kind: itertools.cycle(list(PROGRAMS[kind](inputs))) for kind in args.only}
    references: dict[Program, tuple[dict[str, Any], float]] = {}
    with tqdm(total=args.kills, unit="kill") as bar:
        for kind in itertools.cycle(args.only):
            if kills.total() >= args.kills:
                break
            program = next(commands[kind])
            name = program.name.replace(" ", "-")
            folder = work / f"{name}-{runs.total():03d}"
            try:
                if program not in references:
                    references[program] = whole(program, work / f"{name}-whole")
                phases = killed(program, folder, *references[program], draw)
            except Failed as failed:
                again = f"python scripts/kill.py --only {kind} --kills {args.kills} --seed {args.seed}"
                print(f"\nFAILED: {program.name}: {failed}\nkept: {folder}, {name}-whole; {again}", file=sys.stderr)
                return 1
            kills.update((kind, phase) for phase in phases)
            runs[kind] += 1
            bar.update(len(phases))
            for path in work.glob(f"{folder.name}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(work)
    durations = ", ".join(f"{program.name} {seconds:.1f} s" for program, (_, seconds) in references.items())
    print(f"{kills.total()} kills, seed {args.seed}, no failure; whole runs: {durations}")
    for kind in args.only:
        told = {phase.removesuffix(HALF): 0 for of, phase in kills if of == kind}
        for phase in told:
            told[phase] = kills[kind, phase] + kills[kind, phase + HALF]
        half = sum(n for (of, phase), n in kills.items() if of == kind and phase.endswith(HALF))
        where = ", ".join(f"{n} {phase}" for phase, n in sorted(told.items(), key=lambda one: -one[1]))
        print(
            f"{kind}: {sum(told.values())} kills in {runs[kind]} runs ({where}; {half} with a file half written), "
            "all ended at equal results"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
