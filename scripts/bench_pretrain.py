"""Images per second of a pretraining step, way by way, with what it computes, holds and spends its time on.

    python scripts/bench_pretrain.py --vit tiny --lm 100m --tokenizer DIR
    python scripts/bench_pretrain.py --vit base --lm qwen2.5-0.5b --tokenizer DIR --batch 4
    python scripts/bench_pretrain.py --vit base --lm qwen2.5-1.5b --tokenizer DIR --device cuda --dtype bfloat16

The architectures are the real ones, their weights random; DIR holds the tokenizer of Qwen2.5. All ways share one LM and
take turns, round after round, so that what else the machine does falls on all of them. A speed-up is the median over
the rounds of the first way's time by the way's own; the first is the layout of the paper, its steps batched.
"""

import argparse
import ctypes
import json
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pretrain_ways import DTYPES, LMS, Way, build_lm, some_fields, ways
from torch.nn.attention import SDPBackend, sdpa_kernel

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.targets import FieldSampler, StatesTarget
from vivid_monai.engines.optimizer import build_optimizer
from vivid_monai.engines.speed import operations, product_rate
from vivid_monai.engines.step import PrepareBatch, PretrainStep, autocast
from vivid_monai.images.augment import RandomAugmentation
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.objectives import StateObjective
from vivid_monai.networks.pretrainer import Pretrainer
from vivid_monai.networks.projector import Projector
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT
from vivid_monai.prepare.phantoms import prepare
from vivid_monai.ums.states import NULL


def main() -> None:
    args = parser().parse_args()
    result = bench(args)
    print(table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The options of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vit", choices=["micro", "tiny", "small", "base"], default="tiny")
    parser.add_argument("--lm", choices=list(LMS), default="100m")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="tokenizer of Qwen2.5")
    parser.add_argument("--ways", nargs="+", help="some of the ways, the first of them the baseline (default: all)")
    parser.add_argument("--batch", type=int, default=8, help="images of a step (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--fields", type=int, default=12, help="fields of the schema (default: %(default)s)")
    parser.add_argument("--asked", nargs=2, type=int, default=[4, 6], help="fields that are asked of an image")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the LM; bfloat16: autocast too")
    parser.add_argument("--compile", action="store_true", help="torch.compile ViT and SPD")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every way (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="steps of a turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def bench(args: argparse.Namespace) -> dict[str, Any]:
    fields = some_fields(args.fields)
    lm = build_lm(args)
    batch, input_ms = make_batch(args, fields)
    possible = ways(lm, fields)
    chosen = {name: possible[name] for name in args.ways or possible}
    jobs = {name: Job(way, batch, args) for name, way in chosen.items()}
    for job in jobs.values():
        job.step()  # the first reads the schema, which later ones share
    rows = {name: {"way": name, **job.count()} for name, job in jobs.items()}
    times: dict[str, list[float]] = {name: [] for name in jobs}
    rates = []
    for _ in range(args.rounds):
        rates.append(matmul_rate(args))
        for name, job in jobs.items():
            times[name].append(job.timed(args.steps))
    baseline = next(iter(times.values()))
    rate = statistics.median(rates)
    for name, job in jobs.items():
        seconds = statistics.median(times[name])
        rows[name] |= {
            "images_per_s": args.batch / seconds,
            "speedup": statistics.median(a / b for a, b in zip(baseline, times[name], strict=True)),
            "mfu": rows[name]["tflop"] * args.batch / seconds / rate,
            "peak_mb": job.peak(),
            "ms": {"input": input_ms, **job.split()},
        }
    return {"args": {k: str(v) for k, v in vars(args).items()}, "matmul_tflops": rate, "ways": list(rows.values())}


class Job:
    """The real optimisation step of one way."""

    def __init__(
        self, way: Way, batch: dict[str, Any], args: argparse.Namespace, *, micro_batch_size: int | None = None
    ) -> None:
        torch.manual_seed(0)
        teacher = way.teacher()
        vit = ViT(preset=args.vit, img_size=args.size, in_channels=3)
        spd = SPD(vit.embed_dim, groups=args.groups, queries=args.queries)
        projector = Projector(vit.embed_dim, teacher.embed_dim, scale=teacher.embed_scale)
        self.states = StateObjective(spd, projector, teacher, pass_patches=way.patches)
        network = Pretrainer(vit, {"states": self.states}).to(args.device)
        optimizer = build_optimizer(network, lr_vit=2e-5, lr_projector=1e-4, weight_decay=0.01)
        if args.compile:
            network.compile()
        self.device, self.amp = torch.device(args.device), args.dtype == "bfloat16"
        self.batch = PrepareBatch()(every_field(batch) if way.every_field else batch, self.device)
        self.engine = SimpleNamespace(
            network=network,
            optimizer=optimizer,
            loss_function=network.loss,
            prepare_batch=PrepareBatch(),
            non_blocking=True,
            amp=self.amp,
            amp_kwargs={},
            state=SimpleNamespace(device=self.device, iteration=0),
        )
        self.run = PretrainStep(micro_batch_size=micro_batch_size)

    def step(self) -> None:
        self.run(self.engine, self.batch)
        self.wait()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, steps: int) -> float:
        """Seconds of a step."""
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        return (time.perf_counter() - started) / steps

    def count(self) -> dict[str, float]:
        """Positions that the LM computes, TFLOP, and supervised tokens, of one image."""
        lm, seen = getattr(self.states.teacher, "lm", None), [0]
        hook = lm and lm.model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
        )
        with sdpa_kernel(SDPBackend.MATH), operations() as counter:
            self.step()
        if hook:
            hook.remove()
        n = len(self.batch["image"])
        supervised = self.states.counts(self.batch)["nll"]
        return {
            "positions": sum(seen) / n,
            "tflop": counter.get_total_flops() / n / 1e12,
            "supervised": float(supervised) / n,
        }

    def split(self) -> dict[str, float]:
        """Milliseconds of each part of a step: the gradient is taken in two goes, first of the teacher."""
        network, clock = self.engine.network, {}

        @contextmanager
        def lap(name: str) -> Any:
            started = time.perf_counter()
            yield
            self.wait()
            clock[name] = 1e3 * (time.perf_counter() - started)

        batch, states = self.batch, self.states
        self.engine.optimizer.zero_grad()
        with autocast(self.engine):
            with lap("ViT"):
                tokens = network.encoder(batch["image"])
            with lap("SPD"):
                spd = states.spd(tokens)
                given = torch.cat((spd.embeddings, tokens), 1) if states.pass_patches else spd.embeddings
                projected = states.projector(given)
            cut_here = projected.detach().requires_grad_()
            with lap("teacher"):
                output = states.teacher(cut_here, batch["states"], batch["asked"])
        with lap("teacher backward"):
            (output.nll.sum() / output.count.sum()).backward()
        with lap("ViT and SPD backward"):
            ends = [(projected, cut_here.grad), (spd.penalty.mean(), None)]
            ends = [(end, gradient) for end, gradient in ends if end.requires_grad]  # one group has no penalty
            torch.autograd.backward(*zip(*ends, strict=True))
        with lap("optimiser"):
            self.engine.optimizer.step()
        return clock

    def peak(self) -> float:
        """MB that a step takes at its highest, above what was there before it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # or what earlier steps freed would serve this one
        ended, highest, before = threading.Event(), [0.0], resident()

        def watch() -> None:
            while not ended.wait(0.002):
                highest.append(resident())

        thread = threading.Thread(target=watch)
        thread.start()
        self.step()
        ended.set()
        thread.join()
        return max(highest) - before


def resident() -> float:
    """MB of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def make_batch(args: argparse.Namespace, fields: tuple[str, ...]) -> tuple[dict[str, Any], float]:
    """A batch of augmented phantoms with random states, and the milliseconds that reading it took."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(-1, 3, (args.batch, len(fields)), generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        table = Manifest.load(prepare(folder, n=max(40, 3 * args.batch), size=args.size))
        items = [dict(one, states=states[i].tolist()) for i, one in enumerate(table.items()[: args.batch])]
        preprocess = Preprocess(size=args.size, channels=3)
        asked = FieldSampler(fields, rare=(), n=tuple(args.asked), p_rare=0.0)
        augmentation = RandomAugmentation(preprocess)
        data = ImageDataset(items, preprocess, targets=[StatesTarget(asked)], augmentation=augmentation, cache=True)
        data[0]
        started = time.perf_counter()
        batch = torch.utils.data.default_collate([data[i] for i in range(args.batch)])
        batch["image"] = augmentation(batch["image"], batch.pop("drawn"))
        return batch, 1e3 * (time.perf_counter() - started)


def every_field(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with all fields asked, those that were not before without an answer."""
    states = batch["states"].masked_fill(~batch["asked"], NULL)
    return {**batch, "states": states, "asked": torch.ones_like(batch["asked"])}


def matmul_rate(args: argparse.Namespace) -> float:
    """TFLOP per second of a square matrix product in the LM's dtype."""
    side = 2048 if args.device == "cpu" else None
    return product_rate(args.device, DTYPES[args.dtype], side=side) / 1e12


def table(result: dict[str, Any]) -> str:
    parts = list(result["ways"][0]["ms"])
    lines = [
        f"\nViT-{result['args']['vit']}, {result['args']['lm']}, {result['args']['size']} px, batch "
        f"{result['args']['batch']}, {result['args']['dtype']}, {result['args']['device']}, {torch.get_num_threads()} "
        f"threads; a matrix product gives {result['matmul_tflops']:.3g} TFLOP/s\n",
        "| way | images/s | speed-up | positions | supervised | TFLOP | MFU | peak MB | "
        + " | ".join(parts)
        + " (ms) |",
        "|" + "---|" * (8 + len(parts)),
    ]
    for one in result["ways"]:
        spent = " | ".join(f"{one['ms'][part]:.0f}" for part in parts)
        lines.append(
            f"| {one['way']} | {one['images_per_s']:.3g} | {one['speedup']:.1f} | {one['positions']:.0f} | "
            f"{one['supervised']:.0f} | {one['tflop']:.3g} | {one['mfu']:.0%} | {one['peak_mb']:.0f} | {spent} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
