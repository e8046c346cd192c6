"""Run the experiments of configs/evidence.json by `vivid compare`, and write docs/evidence.md: claims and verdicts.

    python scripts/write_evidence.py --processes 2           # all experiments, then the page; resumes where it stopped
    python scripts/write_evidence.py --only phantom kermany  # some of them, in the table's order
    python scripts/write_evidence.py --seeds 2               # the first two seeds of each; more may follow
    python scripts/write_evidence.py --page                  # the page alone, from docs/evidence/*.json
    python scripts/write_evidence.py --quick                 # all on 120 phantoms and two steps, in runs/evidence-quick

Data sets that the table makes are in data/evidence; all others must be prepared in data/. An experiment whose data are
not there is left out, and its claims are "not run".
"""

import argparse
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from measure_answers import ask, measure
from monai.bundle import ConfigParser

from vivid_monai.cli import main as vivid
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.evaluation.verdicts import rule
from vivid_monai.prepare.conditions import Conditions, prepare, told_of
from vivid_monai.storage.files import whole_file

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "configs" / "evidence.json"
STORE = ROOT / "docs" / "evidence"
PAGE = ROOT / "docs" / "evidence.md"
CONFIGS = Path("configs")
QUICK = {"phantom_images": 120, "image_size": 32, "batch_size": 8, "max_epochs": 1, "epoch_length": 2}
QUICK |= {"warmup_steps": 1, "min_positives": 1, "min_present": 1, "min_absent": 1}
QUICK_EVALUATION = {"min_present": 1, "min_absent": 1, "n_resamples": 50}
EACH = "each"


@dataclass(frozen=True)
class Evidence:
    """The table, and where its data, runs and results are; the current folder is the checkout.

    Attributes:
        table: "data" (name → "config" whose manifest it is, or "of" and conditions), "arms" (as configs/arms.json, and
            "data" in place of that of the experiment), "experiments" (name → "says", "data", "arms", "seeds", and
            "configs", "set", "evaluate" of `vivid compare`; "probed_on", a data set whose labels the probes learn;
            "answers", arms whose own answers are measured) and "claims" ("says", "arm", "against").
        data, runs, store: folders.
        quick: as small as it gets, to see that all of it runs.
    """

    table: Mapping[str, Any]
    data: Path = Path("data")
    runs: Path = Path("runs/evidence")
    store: Path = STORE
    quick: bool = False

    def seeds(self, name: str, most: int | None) -> list[int]:
        n = self.table["experiments"][name]["seeds"]
        return list(range(min(n, most or n, 2 if self.quick else n)))

    def folder(self, name: str) -> Path:
        """Of a data set."""
        return self.data / "evidence" / name if name in self.table["data"] else self.data / name

    def make(self, name: str, seeds: Sequence[int] = ()) -> Path:
        """The folder of a data set, which is made where the table says how; one for each seed, where it says so."""
        entry, folder = self.table["data"].get(name), self.folder(name)
        if entry is None:
            if not (folder / "manifest.parquet").is_file():
                raise VividError(f"{folder}: no manifest.parquet in it; make one with `vivid prepare` (docs/data.md)")
        elif "config" in entry:
            parser = ConfigParser()
            parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / entry["config"])])
            quick = {key: QUICK[key] for key in ("phantom_images", "image_size")} if self.quick else {}
            parser.update({"dataset_dir": str(folder), **entry.get("set", {}), **quick})
            parser.get_parsed_content("manifest")
        else:
            settings = {key: value for key, value in entry.items() if key != "of"}
            if self.quick:  # of a dozen patients
                settings |= {key: 0.5 for key in ("labels",) if key in settings}
            base = self.make(entry["of"])
            if settings.get("seed") != EACH:
                prepare(base, folder, Conditions(**settings))
            for seed in seeds if settings.get("seed") == EACH else ():
                prepare(base, folder.with_name(f"{name}-{seed}"), Conditions(**settings | {"seed": seed}))
        return folder

    def run(self, name: str, *, seeds: int | None = None, processes: int = 1, gpus: int = 0) -> int:
        """Run an experiment by `vivid compare` and store what came of it; the command's exit status."""
        one = self.table["experiments"][name]
        out, drawn = self.runs / name, self.seeds(name, seeds)
        folders = [self.make(data) for data in one["data"]]
        evaluated = {**one.get("evaluate", {}), **(QUICK_EVALUATION if self.quick else {})}
        if "probed_on" in one:
            evaluated["manifest"] = self.make(one["probed_on"]) / "manifest.parquet"
        against = {claim["against"] for claim in self.table["claims"]} & set(one["arms"])
        options = {
            "--out": [out],
            "--arms": [self._arm(arm, drawn) for arm in one["arms"]],
            "--against": sorted(against),
            "--seeds": drawn,
            "--configs": [CONFIGS / config for config in one.get("configs", ())],
            "--set": _pairs({**self._drawn(one["data"][0]), **one.get("set", {}), **(QUICK if self.quick else {})}),
            "--evaluate": _pairs(evaluated),
            "--processes": [processes],
            "--gpus": [gpus],
        }
        words = [str(word) for option, given in options.items() if given for word in (option, *given)]
        try:
            status = vivid(["compare", *map(str, folders), *words])
            for arm in one.get("answers", ()):
                self._measure(name, arm, drawn)
            return status
        finally:
            self._store(name)

    def _measure(self, name: str, arm: str, seeds: Sequence[int]) -> None:
        """Measure what the networks of an arm answer themselves, where all its runs are done and it is not known."""
        runs, path = [self.runs / name / "images" / arm / str(seed) for seed in seeds], self._answers(name, arm)
        done = [run / "results.json" for run in runs]
        if not all(one.exists() for one in done):
            return
        newest = max(one.stat().st_mtime for one in done)
        if path.exists() and path.stat().st_mtime > newest and json.loads(path.read_text())["seeds"] == len(runs):
            return
        measured = measure([ask(run) for run in runs], n_resamples=50 if self.quick else 1000)
        with whole_file(path) as part:
            part.write_text(json.dumps(measured), encoding="utf-8")

    def _answers(self, name: str, arm: str) -> Path:
        return self.runs / name / "answers" / f"{arm}.json"

    def _drawn(self, name: str) -> Mapping[str, Any]:
        """Options with which the data were generated that a data set rests on: a run that reads them checks these."""
        entry = self.table["data"].get(name, {})
        return self._drawn(entry["of"]) if "of" in entry else entry.get("set", {})

    def _arm(self, name: str, seeds: Sequence[int]) -> str:
        """An arm as `vivid compare` takes it: its name, or a file of the table's own."""
        if (arm := self.table["arms"].get(name)) is None:
            return name
        arm = {"knobs": {}, **arm}
        if (data := arm.pop("data", None)) is not None:
            folder, each = self.make(data, seeds), self.table["data"].get(data, {}).get("seed") == EACH
            arm["knobs"] |= {"dataset_dir": f"$'{folder}-' + str(@seed)" if each else str(folder)}
        path = self.runs / "arms" / f"{name}.json"
        with whole_file(path) as part:
            part.write_text(json.dumps({name: arm}, indent=1), encoding="utf-8")
        return str(path)

    def _store(self, name: str) -> None:
        """Keep what the page tells of an experiment: data, trained seeds, and the report where there is one."""
        one, out = self.table["experiments"][name], self.runs / name
        report = out / "report.json"
        content = {
            "data": {data: _described(self.folder(data)) for data in one["data"]},
            "trained": {
                arm: sorted(int(path.parent.name) for path in out.glob(f"images/{arm}/*/results.json"))
                for arm in one["arms"]
                if (out / "images" / arm).is_dir()
            },
            "report": json.loads(report.read_text(encoding="utf-8")) if report.exists() else None,
            "answers": {
                arm: json.loads(path.read_text(encoding="utf-8"))
                for arm in one.get("answers", ())
                if (path := self._answers(name, arm)).exists()
            },
        }
        text = json.dumps(_rounded(content), indent=1, ensure_ascii=False) + "\n"
        if found := re.search(r'["\' =(](/[\w.-]+/[\w./-]+)', text):
            raise VividError(f"{out}: its results name {found[1]}; run it in the checkout, with data inside it")
        with whole_file(self.store / f"{name}.json") as part:
            part.write_text(text, encoding="utf-8")

    def stored(self, name: str) -> dict[str, Any]:
        """What was stored of an experiment; nothing of one that has not been run."""
        path = self.store / f"{name}.json"
        if not path.exists():
            return {"data": {}, "trained": {}, "report": None, "answers": {}}
        return json.loads(path.read_text(encoding="utf-8"))

    def write_page(self, page: Path) -> None:
        """The page, from what is stored and the table alone."""
        names = list(self.table["experiments"])
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(Path(__file__).with_suffix(".md.j2").read_text(encoding="utf-8"))
        claims = [row for claim in self.table["claims"] for row in self._claim(claim, names)]
        experiments = [{"name": name, **self.table["experiments"][name], **self._arms(name)} for name in names]
        asked = [(name, arm) for name in names for arm in self.table["experiments"][name].get("answers", ())]
        unseen = [row for one in asked for row in self._unseen(*one)]
        controls = [row for one in asked for row in self._controls(*one)]
        with whole_file(page) as part:
            text = template.render(
                rule=rule(), claims=claims, unseen=unseen, controls=controls, experiments=experiments
            )
            part.write_text(text.rstrip() + "\n", encoding="utf-8")

    def _claim(self, claim: Mapping[str, str], names: Sequence[str]) -> Iterator[list[str]]:
        """Rows of a claim: one for each experiment that has both arms."""
        says = claim["says"]
        for name in names:
            arms, stored = self.table["experiments"][name]["arms"], self.stored(name)
            if claim["arm"] not in arms or claim["against"] not in (*arms, "untrained"):
                continue
            wanted = self.table["experiments"][name]["seeds"]
            verdicts = stored["report"]["verdicts"] if stored["report"] else []
            found = [one for one in verdicts if (one["arm"], one["reference"]) == (claim["arm"], claim["against"])]
            pair = f"{claim['arm']} − {claim['against']}"
            if found:
                one = found[0]
                seeds = f"{one['seeds']}" + (f" of {wanted}" if one["seeds"] < wanted else "")
                cells = [_signed(one), seeds, f"{one['patients']:,}", f"**{one['verdict']}**"]
            else:
                trained = stored["trained"]
                both = [set(trained[arm]) for arm in (claim["arm"], claim["against"]) if arm in trained]
                done = len(set.intersection(*both)) if both and claim["arm"] in trained else 0
                cells = ["–", f"{done} of {wanted}", "–", "not run"]
            yield [says, name, pair, *cells]
            says = ""

    def _unseen(self, name: str, arm: str) -> Iterator[list[str]]:
        """Rows of the fields that an arm was never asked in training."""
        if not any("hide" in self.table["data"].get(data, {}) for data in self.table["experiments"][name]["data"]):
            return
        measured = self.stored(name)["answers"].get(arm)
        if measured is None:
            yield [name, arm, *["–"] * 5, "not run"]
            return
        for row in measured["rows"]:
            if row["what"].startswith("unseen"):
                auroc = "–" if row["auroc"] is None else f"{row['auroc']:.3f}"
                against = row["what"].partition(" against ")[2] or "chance"
                seeds, patients = f"{measured['seeds']}", f"{measured['patients']:,}"
                yield [name, arm, row["field"], auroc, against, _signed(row), f"{seeds} / {patients}", row["verdict"]]

    def _controls(self, name: str, arm: str) -> Iterator[list[str]]:
        """Rows of what an arm's own answers are worth, and those that are to be at chance."""
        measured = self.stored(name)["answers"].get(arm)
        if measured is None:
            yield [name, arm, *["–"] * 4, "not run"]
            return
        nll = {of: sum(values) / len(values) for of, values in measured["nll"].items()}
        for row, of in zip(measured["rows"], ("own", "other patients"), strict=False):
            auroc = "–" if row["auroc"] is None else f"{row['auroc']:.3f}"
            chance = "undecided" if row["low"] is None else "no" if row["low"] > 0 or row["high"] < 0 else "yes"
            yield [name, arm, "its own" if of == "own" else of, auroc, _signed(row), f"{nll[of]:.3f}", chance]
        yield [name, arm, "an even grey", "0.500", "one answer for all images", f"{nll['grey']:.3f}", "yes"]

    def _arms(self, name: str) -> dict[str, Any]:
        """Data and encoders of an experiment."""
        stored = self.stored(name)
        rows = []
        for arm, one in (stored["report"]["arms"] if stored["report"] else {}).items():
            runs = [value for value in one["per_seed"] if value is not None]
            spread = f"{min(runs):.3f}–{max(runs):.3f}" if len(runs) > 1 else "–"
            macro = "–" if one["macro_auroc"] is None else f"{one['macro_auroc']:.3f}"
            rows.append([arm, macro, spread, one["says"], f"{one['images']:,}" if one["images"] else "–"])
        data = ", ".join(f"{data}: {said}" for data, said in stored["data"].items())
        failed = stored["report"]["failed"] if stored["report"] else {}
        return {"rows": rows, "told": data, "failed": [f"{run}: {why}" for run, why in failed.items()]}


def read_table(path: Path) -> dict[str, Any]:
    """The table of a file.

    Raises:
        VividError: it is none, or names data or arms that it does not have.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        for name, one in table["data"].items():
            if "config" not in one and one.get("of") is None:
                raise VividError(f"{path}: data {name!r} needs 'config', or 'of' and conditions")
        for name, one in table["experiments"].items():
            if missing := {"says", "data", "arms", "seeds"} - one.keys():
                raise VividError(f"{path}: experiment {name!r} has no {', '.join(sorted(missing))}")
        for name, one in table["arms"].items():
            if odd := one.keys() - {"says", "configs", "knobs", "encoder", "data"}:
                raise VividError(f"{path}: arm {name!r} has {', '.join(sorted(odd))}; it takes knobs")
        known = {arm for one in table["experiments"].values() for arm in one["arms"]} | {"untrained"}
        for claim in table["claims"]:
            if odd := {claim["arm"], claim["against"]} - known:
                raise VividError(f"{path}: {claim['says']!r}: no experiment has the arm {', '.join(sorted(odd))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise (
            error if isinstance(error, VividError) else VividError(f"{path}: no table of evidence: {error}")
        ) from error
    return table


def _described(folder: Path) -> str:
    """What a data set is, in words, from its manifest."""
    manifest = Manifest.load(folder / "manifest.parquet")
    parts = {split: manifest.select(split).patients() for split in ("train", "test")}
    counts = [f"{len(one):,} {split} images of {len(set(one)):,} patients" for split, one in parts.items()]
    return ", ".join([*filter(None, [told_of(manifest)]), *counts])


def _pairs(knobs: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in knobs.items()]


def _rounded(value: Any) -> Any:
    """Numbers to six significant digits: more would be noise in the history of a file."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _signed(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "–"
    interval = "" if one["low"] is None else f" ({one['low']:+.3f} to {one['high']:+.3f})"
    return f"{one['value']:+.3f}{interval}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="NAME", help="of experiments")
    add("--seeds", type=int, metavar="N", help="the first N of each experiment's")
    add("--processes", type=int, default=1, metavar="N", help="runs at a time")
    add("--gpus", type=int, default=0, metavar="N", help="runs at a time, each on a GPU of its own")
    add("--page", action="store_true", help="run nothing")
    add("--quick", action="store_true", help="small, all in runs/evidence-quick: does it run?")
    add("--table", type=Path, default=TABLE, metavar="FILE", help="of experiments and claims")
    args = parser.parse_args(argv)
    small = Path("runs/evidence-quick")
    folders = {"data": small / "data", "runs": small, "store": small / "stored", "quick": True} if args.quick else {}
    evidence = Evidence(read_table(args.table), **folders)
    page = small / "evidence.md" if args.quick else PAGE
    names = list(evidence.table["experiments"])
    for name in args.only:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise VividError(
                f"--only {name}: {f'did you mean {near[0]}?' if near else ''} There are {', '.join(names)}"
            )
    chosen = [] if args.page else [name for name in names if name in (args.only or names)]
    missing = []
    for number, name in enumerate(chosen, 1):
        print(f"\n== {name} ({number} of {len(chosen)}): {evidence.table['experiments'][name]['says']}", flush=True)
        try:
            status = evidence.run(name, seeds=args.seeds, processes=args.processes, gpus=args.gpus)
            missing += [name] if status else []
        except VividError as error:
            print(f"{name}: {error}")
            missing.append(name)
        finally:
            evidence.write_page(page)
    evidence.write_page(page)
    print(f"\nwritten: {page}" + (f"; not complete: {', '.join(missing)}" if missing else ""))
    return 1 if missing else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except VividError as error:
        raise SystemExit(f"write_evidence: {error}") from None
