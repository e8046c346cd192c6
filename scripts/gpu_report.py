"""What pretraining costs on this GPU, in one run of at most eight minutes and one JSON file.

    python scripts/gpu_report.py --tokenizer DIR --out docs/measured/gpu_report.json
    python scripts/gpu_report.py --show docs/measured/gpu_report.json     # the table of docs/performance.md
    python scripts/gpu_report.py --tiny --out tiny.json                   # small shapes, on a CPU

ViT-B/16 at 224 px with a Qwen2 of the shapes of Qwen2.5-1.5B: its weights are random and made on the GPU, so nothing is
downloaded. DIR holds the tokenizer of Qwen2.5 (a few MB); without it that of the tiny teacher cuts texts into other
tokens. A case that fails or does not fit into memory is one line in its place, and the others go on; one that falls
out of memory is tried with half the images first. Cases for which no time is left are named as skipped. The file is
written whole after every case.

On a machine without a network that has torch, transformers and peft, carry the other packages along as wheels. Where
there is a network (with the Python version of that machine), and then there:

    pip download --dest wheels --no-deps --only-binary :all: --python-version 3.12 monai pytorch-ignite nibabel \\
        pydicom jsonschema jsonschema-specifications referencing rpds-py fire termcolor bitsandbytes
    pip install --no-index --find-links wheels --no-deps wheels/*.whl
    PYTHONPATH=. python scripts/gpu_report.py --tokenizer DIR --out gpu_report.json

What is counted: TFLOP by torch's FlopCounterMode over a whole step (forward, and backward as far as gradients are
needed: a frozen LM has none for its weights), attention in full squares. MFU: that, by the seconds of a step and by the
TFLOP/s of a matrix product of the same type in the same run.
"""

import argparse
import gc
import importlib.util
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from bench_job import job
from bench_pretrain import Job, make_batch, matmul_rate
from bench_pretrain import parser as bench_parser
from pretrain_ways import LMS, Way, build_lm, some_fields, ways
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import is_flash_attn_2_available

from vivid_monai.assets import tiny_teacher_path
from vivid_monai.errors import VividError, first_line
from vivid_monai.networks.language import LanguageModel, load_language_model
from vivid_monai.networks.teacher import ShortSlotTeacher
from vivid_monai.storage.files import whole_file

RECIPE_STEPS = 10_000
"""Optimiser steps of the paper."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--show", type=Path, metavar="JSON", help="print a report as Markdown, and measure nothing")
    parser.add_argument("--minutes", type=float, help="most that it may take (default: 8, of --tiny 1)")
    parser.add_argument("--tokenizer", type=Path, default=tiny_teacher_path(), metavar="DIR", help="of Qwen2.5")
    parser.add_argument("--sections", nargs="+", metavar="NAME", help="some of the sections (default: all)")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on a GPU or a CPU: does the script run?")
    args = parser.parse_args()
    if args.show:
        print(table(json.loads(args.show.read_text(encoding="utf-8"))))
    elif not args.out:
        parser.error("--out FILE or --show FILE is needed")
    elif not args.tiny and not torch.cuda.is_available():
        sys.exit("gpu_report.py: there is no GPU here; --tiny runs on a CPU")
    else:
        bench = Bench(args.tokenizer, tiny=args.tiny)
        cases = [case for case in bench.cases() if not args.sections or case.section in args.sections]
        report = measure(cases, bench.about(), args.out, minutes=args.minutes or (1 if args.tiny else 8))
        print(table(report), f"\n{args.out}: show it again by --show {args.out}")


class Case(NamedTuple):
    """One thing that is measured.

    Attributes:
        section: what it is a part of.
        name: what it is called there.
        needs: seconds that must be left for it.
        run: what measures it: numbers by their names.
    """

    section: str
    name: str
    needs: float
    run: Callable[[], dict[str, Any]]


def measure(cases: Sequence[Case], about: dict[str, Any], out: Path, *, minutes: float) -> dict[str, Any]:
    """Run the cases one by one, as long as there is time, and write `out` after each of them.

    Returns what is written: ``about``, ``minutes``, ``seconds`` spent, and ``sections``: by its name a list of rows
    {"case", "seconds", …}, each with the numbers of the case, or with "error" or "skipped", a line that says why.
    """
    started = time.monotonic()
    report: dict[str, Any] = {"about": about, "minutes": minutes, "seconds": 0.0, "sections": {}}
    for case in cases:
        began = time.monotonic()
        left = 60 * minutes - (began - started)
        print(f"{case.section}: {case.name} ({left:.0f} s left)", file=sys.stderr, flush=True)
        row: dict[str, Any]
        if left < case.needs:
            row = {"skipped": f"{left:.0f} s are left, it needs about {case.needs:.0f}"}
        else:
            try:
                with alarm(left):
                    row = case.run()
            except Exception as error:  # whatever it is, it is the result of this case
                row = {"error": first_line(error) or type(error).__name__}
                print(f"    {row['error']}", file=sys.stderr, flush=True)
            free()
        ended = time.monotonic()
        row = {"case": case.name, "seconds": round(ended - began, 1), **row}
        report["sections"].setdefault(case.section, []).append(row)
        report["seconds"] = round(ended - started, 1)
        with whole_file(out) as part:
            part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside, once it has taken so long."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"ended after {seconds:.0f} s: the time of the report was over")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def free() -> None:
    """Give back the memory of what is used no more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Bench:
    """The cases, and what they share: the LM, the batch, the speed of a matrix product.

    Args:
        tokenizer: folder of the LM's tokenizer.
        tiny: small shapes, in float32 on a CPU.
    """

    def __init__(self, tokenizer: Path, *, tiny: bool = False) -> None:
        self.tiny = tiny
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "bfloat16" if self.device == "cuda" else "float32"
        vit, lm, size, batch = ("micro", "tiny", 32, 4) if tiny else ("base", "qwen2.5-1.5b", 224, 32)
        self.args = bench_parser().parse_args(["--tokenizer", str(tokenizer), "--device", self.device])
        vars(self.args).update(vit=vit, lm=lm, size=size, batch=batch, dtype=dtype)
        self.fields = some_fields(self.args.fields)
        self.rate: float | None = None
        self.image_s: dict[str, float] = {}
        self._folder = tempfile.TemporaryDirectory()

    def about(self) -> dict[str, Any]:
        """The machine, the versions and the shapes."""
        gpu = torch.cuda.get_device_properties(0) if self.device == "cuda" else None
        return {
            "gpu": gpu and gpu.name,
            "memory_gb": gpu and round(gpu.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "shapes": {name: getattr(self.args, name) for name in ("vit", "lm", "size", "fields", "asked", "dtype")},
            "tokenizer": "tiny teacher" if self.args.tokenizer == tiny_teacher_path() else "Qwen2.5",
        }

    def cases(self) -> list[Case]:
        """In the order of their worth, as time may end."""
        half = LMS[self.args.lm][2] // 2
        layouts = ["published", "slots", "slots, three words", "short slots", f"short slots, {half} layers"]
        layouts += ["phrases", "no LM", "published, head where supervised"]
        attention = ["sdpa", "eager"] if self.tiny else ["sdpa", "eager", "flash_attention_2", "flex_attention"]
        kernels = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
        kernels |= {"cuDNN": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}
        return [
            Case("matrix product", self.args.dtype, 2, self.product),
            *(Case("layouts", name, 10, partial(self.step, name)) for name in layouts),
            Case("layouts", "published, 4 images at a time", 10, partial(self.step, "published", micro_batch_size=4)),
            *(
                Case("short slots by images of a step", f"{n}", 10, partial(self.step, "short slots", images=n))
                for n in (self.args.batch * times for times in (2, 4, 8))
            ),
            Case("recipe of the paper", "published", 10 if self.tiny else 120, partial(self.recipe, "published")),
            Case("recipe of the paper", "short_slots", 10 if self.tiny else 60, partial(self.recipe, "short_slots")),
            Case("torch.compile", "short slots", 60, partial(self.step, "short slots", compiled=True)),
            Case("torch.compile", "phrases", 60, partial(self.step, "phrases", compiled=True)),
            *(
                Case("attention of the LM", f"{way}: {kind}", 10, partial(self.attention, way, kind))
                for way in ("published, head where supervised", "short slots")
                for kind in attention
            ),
            *(
                Case("sdpa kernel of the ViT", name, 5, partial(self.step, "no LM", kernel=kernel))
                for name, kernel in kernels.items()
            ),
            *(Case("teacher in bits", f"{bits}", 20, partial(self.quantised, bits)) for bits in (8, 4)),
        ]

    @cached_property
    def lm(self) -> LanguageModel:
        return build_lm(self.args)

    @cached_property
    def ways(self) -> dict[str, Way]:
        return ways(self.lm, self.fields)

    @cached_property
    def batch(self) -> dict[str, Any]:
        return make_batch(self.args, self.fields)[0]

    @cached_property
    def teacher_folder(self) -> Path:
        """The LM in files, as the bundle reads one."""
        folder = Path(self._folder.name, "teacher")
        self.lm.model.save_pretrained(folder)
        self.lm.tokenizer.save_pretrained(folder)
        return folder

    def images(self, n: int) -> dict[str, Any]:
        """The batch, cut or repeated."""

        def take(values: Any) -> Any:
            times = -(-n // len(values))
            if isinstance(values, torch.Tensor):
                return values.repeat(times, *[1] * (values.ndim - 1))[:n]
            return (values * times)[:n]

        return {name: take(values) for name, values in self.batch.items()}

    def product(self) -> dict[str, Any]:
        self.rate = matmul_rate(self.args)
        return {"tflop_per_s": round(self.rate, 3)}

    def step(self, name: str, *, images: int | None = None, **how: Any) -> dict[str, Any]:
        """A way of pretraining by its name; see `one_step`."""
        row = self.one_step(self.ways[name], images or self.args.batch, **how)
        self.image_s.setdefault(name, 1 / row["images_per_s"])
        return row

    def one_step(self, way: Way, images: int, **how: Any) -> dict[str, Any]:
        """What `timed` measures, with half the images as often as they do not fit."""
        while True:
            try:
                return self.timed(way, images, **how)
            except torch.cuda.OutOfMemoryError:
                if images == 1:
                    raise
            free()
            images //= 2

    def timed(
        self,
        way: Way,
        images: int,
        *,
        micro_batch_size: int | None = None,
        compiled: bool = False,
        kernel: SDPBackend | None = None,
        counted: bool = True,
    ) -> dict[str, Any]:
        """Images per second of an optimiser step, its counted work, and the memory at its highest.

        Args:
            way: how the teacher is asked.
            images: of a step.
            micro_batch_size: images of a forward pass.
            compiled: by torch.compile, all but the LM.
            kernel: the only one of scaled-dot-product attention that may run.
            counted: whether the counter knows all operations.
        """
        batch = self.images(images)
        args = argparse.Namespace(**{**vars(self.args), "compile": False})
        counts = Job(way, self.images(min(images, 4)), args).count() if counted else {}
        args.compile = compiled
        free()
        job = Job(way, batch, args, micro_batch_size=micro_batch_size)
        with sdpa_kernel(kernel) if kernel else nullcontext():
            first_s = job.timed(1)
            job.timed(2)
            seconds = [job.timed(1)]
            while len(seconds) < 3 or (len(seconds) < 20 and sum(seconds) < (0.1 if self.tiny else 3)):
                seconds.append(job.timed(1))
            step_mb = job.peak()
        row: dict[str, Any] = {"images": images, "images_per_s": round(images / statistics.median(seconds), 2)}
        if counts:
            row |= {"positions": counts["positions"], "tflop_per_image": round(counts["tflop"], 5)}
        if counts and self.rate:
            row["mfu"] = round(counts["tflop"] * row["images_per_s"] / self.rate, 4)
        row |= {"steps": len(seconds), "first_step_s": round(first_s, 2), "step_gb": round(step_mb / 1e3, 3)}
        if self.device == "cuda":
            row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        return row

    def attention(self, way: str, kind: str) -> dict[str, Any]:
        """A step with one of transformers' attention functions in the LM, whether teachers may use it or not."""
        if kind == "flash_attention_2" and not is_flash_attn_2_available():
            raise VividError("flash_attn is not installed")
        model = self.lm.model
        model.set_attn_implementation(kind)
        try:
            return self.step(way, counted=False)
        finally:
            model.set_attn_implementation("sdpa")

    def quantised(self, bits: int) -> dict[str, Any]:
        """Short slots with an LM whose linear layers have so many bits, and the memory that it holds."""
        if not importlib.util.find_spec("bitsandbytes"):
            raise VividError("bitsandbytes is not installed")
        held = {"dtype": self.args.dtype, "device": self.args.device}
        lm = load_language_model(self.teacher_folder, bits=bits, **held)
        row = self.one_step(Way(lambda: ShortSlotTeacher(lm, self.fields)), self.args.batch, counted=False)
        return row | {"lm_gb": round(lm.model.get_memory_footprint() / 1e9, 3)}

    def recipe(self, layout: str) -> dict[str, Any]:
        """The bundle's own job with configs/recipe/paper.json on phantoms: 500 steps, fewer where they are too slow.

        It reads images from files, augments, clips, schedules and writes its curves as always; nothing is validated.
        """
        # About 150 s; the first steps warm up and fill the cache.
        images, skip = (4, 2) if self.tiny else (32, 20)
        image_s = 1.5 * self.image_s.get(layout.replace("_", " "), 0.01)
        steps = 8 if self.tiny else max(3 * skip, min(500, int(150 / images / image_s)))
        more: dict[str, Any] = {
            "layout": layout,
            "pass_patches": layout == "published",
            "teacher_path": self.teacher_folder,
            "teacher#dtype": self.args.dtype,
            "amp": self.args.dtype == "bfloat16",
            "save_every": steps + 1,
            "phantom_images": 150 if self.tiny else 600,
        }
        if layout == "short_slots":
            more["micro_batch_size"] = None
        if self.tiny:
            more |= {"vit": "micro", "image_size": 32, "batch_size": images, "num_workers": 0}
        folder = Path(self._folder.name, "job")
        folder.mkdir(exist_ok=True)
        overlays = ("recipe/paper.json", "teacher/qwen2.5-1.5b.json")
        _, ended, _ = job(folder, steps, overlays=overlays, more=more)
        seconds = (ended[-1] - ended[skip - 1]) / (len(ended) - skip)
        return {
            "images": images,
            "images_per_s": round(images / seconds, 2),
            "steps": len(ended),
            "hours_of_10000_steps": round(RECIPE_STEPS * seconds / 3600, 3),
        }


COLUMNS = {
    "images": "images",
    "images_per_s": "images/s",
    "positions": "positions",
    "tflop_per_image": "TFLOP/image",
    "mfu": "MFU",
    "step_gb": "step GB",
    "peak_gb": "peak GB",
    "lm_gb": "LM GB",
    "first_step_s": "first step s",
    "hours_of_10000_steps": "10,000 steps h",
    "tflop_per_s": "TFLOP/s",
}


def table(report: dict[str, Any]) -> str:
    """The report as Markdown: a table for each section, and what failed or was skipped."""
    about = report["about"]
    shapes = about["shapes"]
    lines = [
        f"{about['gpu'] or 'CPU'}, torch {about['torch']}, transformers {about['transformers']}; ViT-{shapes['vit']}, "
        f"{shapes['size']} px, {shapes['lm']}, {shapes['dtype']}, tokenizer of {about['tokenizer']}; "
        f"{report['seconds']:.0f} s."
    ]
    layouts = report["sections"].get("layouts", [])
    baseline = next((row["images_per_s"] for row in layouts if row["case"] == "published" and "images" in row), None)
    for section, rows in report["sections"].items():
        measured = [row for row in rows if not {"error", "skipped"} & row.keys()]
        columns = [column for column in COLUMNS if any(column in row for row in measured)]
        if measured:
            faster = ["× published"] if baseline and section == "layouts" else []
            heads = [section, *(COLUMNS[column] for column in columns), *faster]
            lines += ["", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for row in measured:
            cells = [shown(column, row.get(column)) for column in columns]
            cells += [f"{row['images_per_s'] / baseline:.1f}"] if baseline and section == "layouts" else []
            lines.append(f"| {' | '.join([row['case'], *cells])} |")
        told = [(row["case"], row.get("error") or f"skipped, {row['skipped']}") for row in rows if row not in measured]
        lines += [f"\n{section}, {case}: {why}" for case, why in told]
    return "\n".join(lines)


def shown(column: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if column == "mfu" else f"{value:.4g}"


if __name__ == "__main__":
    main()
