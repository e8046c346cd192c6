"""Pretrain with several teachers and seeds, then hold the encoders against each other on the same test images.

    vivid prepare nih ROOT --out data/nih --val 0.15 --test 0.3
    python scripts/compare_teachers.py phantom nih --seeds 0 1 2
    python scripts/compare_teachers.py phantom --runs runs/recipes --seeds 0 1 2 3 4 --teachers slots "short slots" …

Every data set is the name of a folder under data/: "phantom" is generated, any other is what `vivid prepare nih` wrote.
Each training run and each evaluation is the bundle's own job in a process of its own; what is there is not repeated.
The results lie in RUNS/NAME/evaluation; scripts/write_results.py makes docs/results.md of them.
"""

import argparse
import subprocess
import sys
from pathlib import Path

TEACHERS = {
    "LM teacher": ("tiny", {}),
    "random LM": ("random", {}),
    "no LM": ("none", {}),
    "short slots": ("tiny", {"layout": "short_slots"}),
    "short slots, 3 of 5 layers": ("tiny", {"layout": "short_slots", "teacher_layers": 3}),
    "short slots, 1 of 5 layers": ("tiny", {"layout": "short_slots", "teacher_layers": 1}),
    "slots": ("tiny", {"layout": "slots"}),
    "slots, three words": ("tiny", {"layout": "slots", "choose_from": "states"}),
    "slots and patches": ("tiny", {"layout": "slots", "pass_patches": True}),
    "phrases": ("tiny", {"layout": "phrases"}),
    "published": ("tiny", {"layout": "published", "pass_patches": True}),
}
"""Name in the results → overlay of configs/teacher, and knobs of configs/train.json."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="NAME", help="phantom, or a folder of `vivid prepare nih` in data/")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--teachers", nargs="+", choices=list(TEACHERS), default=["LM teacher", "no LM"])
    parser.add_argument("--runs", default="runs/compare", help="where the runs go (default: %(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="knobs of configs/train.json")
    parser.add_argument(
        "--evaluate",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="knobs of configs/evaluate.json, e.g. pool=mean",
    )
    args = parser.parse_args()
    for name in args.data:
        encoders = {teacher: [train(name, teacher, seed, args) for seed in args.seeds] for teacher in args.teachers}
        evaluate(name, encoders, args)


def train(name: str, teacher: str, seed: int, args: argparse.Namespace) -> str:
    """One pretraining run; returns its encoder."""
    teacher_config, teacher_knobs = TEACHERS[teacher]
    output = Path(args.runs, name, f"{teacher.replace(',', '').replace(' ', '-')}-{seed}")
    encoder = output / "pretrained_vit.safetensors"
    if not (output / "results.json").exists():
        overlay = "phantom" if name == "phantom" else "nih"
        configs = ["configs/train.json", f"configs/data/{overlay}.json", f"configs/teacher/{teacher_config}.json"]
        knobs = {"dataset_dir": f"data/{name}", "name": name, "seed": seed, "output_dir": output, **teacher_knobs}
        bundle("training", configs, knobs, args.set)
    return str(encoder)


def evaluate(name: str, encoders: dict[str, list[str]], args: argparse.Namespace) -> None:
    """One evaluation of all encoders on the same images."""
    output = Path(args.runs, name, "evaluation")
    if not (output / "results.json").exists():
        task = "phantom" if name == "phantom" else "nih_probe"
        configs = ["configs/evaluate.json", f"configs/eval/{task}.json"]
        knobs = {"dataset_dir": f"data/{name}", "encoder": encoders, "seeds": args.seeds, "output_dir": output}
        bundle("evaluating", configs, knobs, args.evaluate)
    print(f"{name}: {output / 'report.html'}")


def bundle(job: str, configs: list[str], knobs: dict, more: list[str]) -> None:
    """Run a workflow of the bundle in a process of its own."""
    settings = {**knobs, **dict(pair.split("=", 1) for pair in more)}
    options = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "monai.bundle", "run", job, "--config_file", str(configs), *options]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
