"""Images per second, latency, memory, size and start of every way to run a classifier on the CPU, in one run.

python scripts/bench_inference.py --out inference.json                            # base, tiny and micro, random weights
python scripts/bench_inference.py --encoder pretrained_vit.safetensors --manifest data/phantom/manifest.parquet

Every way is a process of its own; the processes take turns, a few calls each, round after round, so that what else the
machine does falls on all of them. A speed-up is the median over the rounds of eager PyTorch's time by the way's own.
What 8 bits change is told as AUROC per field on test images, with a head that is fitted to training images.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

WAYS = {
    "PyTorch eager": "classifier.pt",
    "torch.compile": "classifier.pt",
    "TorchScript": "classifier.ts",
    "ONNX Runtime": "classifier.onnx",
    "ONNX Runtime, 8 bits": "classifier-int8.onnx",
    "OpenVINO": "classifier.onnx",
    "OpenVINO, 8 bits": "classifier-int8.onnx",
}
SIZES = {"micro": 112}  # pixels; 224 otherwise
BATCHES = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["base", "tiny", "micro"], help="ViTs (default: all three)")
    parser.add_argument("--encoder", type=Path, help="a saved ViT (.safetensors) instead, with its preprocessing")
    parser.add_argument("--manifest", type=Path, help="images for head and AUROC (default: phantoms made on the fly)")
    parser.add_argument("--images", type=int, default=600, help="phantoms to make (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="cores for each way (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of every way (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn, at least 1 call (default: 1)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(*args.worker)
    results = []
    for preset in ["encoder"] if args.encoder else args.presets:
        with tempfile.TemporaryDirectory() as folder:
            results.append(bench(preset, args, Path(folder)))
        print(table(results[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def bench(preset: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    shape, accuracy = make_files(preset, args, folder)
    load = [os.getloadavg()]
    workers: dict[str, Worker] = {}
    for way, file in WAYS.items():
        if way.startswith("OpenVINO") and find_spec("openvino") is None:
            continue
        try:
            workers[way] = Worker(way, folder / file, args.threads, shape)
        except RuntimeError as error:
            print(f"{preset}: {way} does not run here: {error}", file=sys.stderr)
    times = {batch: take_turns(workers, batch, args.rounds, args.seconds) for batch in BATCHES}
    load.append(os.getloadavg())
    ways = [
        {
            "way": way,
            "file_mb": (folder / WAYS[way]).stat().st_size / 1e6,
            "start_s": worker.start,
            "peak_mb": worker.finish(),
            "batches": {batch: summary(rounds[way], rounds["PyTorch eager"], batch) for batch, rounds in times.items()},
        }
        for way, worker in workers.items()
    ]
    machine = {"threads": args.threads, "load": load}
    return {"preset": preset, "shape": shape, "ways": ways, "int8": accuracy, "machine": machine}


def make_files(preset: str, args: argparse.Namespace, folder: Path) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Write the classifier in every format; tell how 8 bits change the AUROC of every field."""
    import torch

    from vivid_monai.data.manifest import Manifest
    from vivid_monai.deploy.export import export_onnx, export_torchscript
    from vivid_monai.deploy.onnx import OnnxClassifier
    from vivid_monai.deploy.quantize import quantize_onnx
    from vivid_monai.images.preprocess import Preprocess
    from vivid_monai.metrics.masked import masked_auroc
    from vivid_monai.networks.modules import load_module
    from vivid_monai.networks.vit import ViT
    from vivid_monai.prepare.phantoms import prepare

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.encoder:
        saved = load_module(args.encoder, {"vit": ViT})
        vit, preprocess = saved.module, Preprocess.from_dict(saved.preprocess)
    else:
        vit = ViT(preset=preset, img_size=SIZES.get(preset, 224))
        preprocess = Preprocess(size=vit.image_shape[1])
    path = args.manifest or prepare(folder / "phantoms", n=args.images, size=preprocess.size)
    manifest, transform = Manifest.load(path), preprocess.transform()
    train, test = manifest.select("train"), manifest.select("test")
    images = {
        split: [np.asarray(transform(item)["image"], np.float32) for item in part.items()]
        for split, part in (("train", train), ("test", test))
    }
    classifier = with_fitted_head(vit, images["train"], train.states())
    torch.save({"config": vit.config, "state": classifier.state_dict()}, folder / "classifier.pt")
    options: dict[str, Any] = {"preprocess": preprocess, "fields": manifest.fields}
    export_torchscript(classifier, folder / "classifier.ts", **options)
    whole, small = folder / "classifier.onnx", folder / "classifier-int8.onnx"
    export_onnx(classifier, whole, **options)
    started = time.perf_counter()
    quantize_onnx(whole, small, images["train"][:128])
    seconds = time.perf_counter() - started
    pair = [OnnxClassifier(path) for path in (whole, small)]
    scores = np.array([[one(image[None])[0][0] for image in images["test"]] for one in pair], np.float64)
    differences = masked_auroc(scores[1], test.states()) - masked_auroc(scores[0], test.states())
    fields = {
        field: None if np.isnan(one) else float(one) for field, one in zip(manifest.fields, differences, strict=True)
    }
    return vit.image_shape, {"auroc_differences": fields, "test_images": len(test), "quantise_s": seconds}


def with_fitted_head(vit: Any, images: list[np.ndarray], states: np.ndarray) -> Any:
    """The ViT with a logistic regression per field on its features."""
    import torch
    from sklearn.linear_model import LogisticRegression

    from vivid_monai.networks.classifier import Classifier

    classifier = Classifier(vit, states.shape[1]).eval()
    with torch.inference_mode():
        features = torch.cat([classifier.features(torch.from_numpy(image)[None]) for image in images]).numpy()
    mean, scale = features.mean(0), features.std(0) + 1e-6
    for field, column in enumerate(states.T):
        counted = (column == 0) | (column == 1)
        if len(set(column[counted])) < 2:
            continue
        model = LogisticRegression(C=0.01, max_iter=2000).fit((features[counted] - mean) / scale, column[counted])
        weight = model.coef_[0] / scale
        with torch.no_grad():
            classifier.head.weight[field] = torch.from_numpy(weight)
            classifier.head.bias[field] = float(model.intercept_[0] - weight @ mean)
    return classifier


class Worker:
    """One way in a process of its own, which waits for its turns."""

    def __init__(self, way: str, path: Path, threads: int, shape: tuple[int, ...]) -> None:
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", way, str(path), str(threads), json.dumps(shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        self.stdin: Any = self.process.stdin
        self.stdout: Any = self.process.stdout
        if not self.stdout.readline():
            raise RuntimeError(self.process.communicate()[1].strip().splitlines()[-1])
        self.start = time.perf_counter() - started

    def turn(self, batch: int, seconds: float) -> list[float]:
        return self._ask({"batch": batch, "seconds": seconds})

    def finish(self) -> float:
        """End the process; its peak memory in MB."""
        peak = float(self._ask({"end": True}))
        self.process.communicate()
        return peak

    def _ask(self, question: dict[str, Any]) -> Any:
        self.stdin.write(json.dumps(question) + "\n")
        self.stdin.flush()
        return json.loads(self.stdout.readline())


def work(way: str, path: str, threads: str, shape: str) -> None:
    """The other end: first answer, then turns."""
    call, images = runner(way, path, int(threads)), json.loads(shape)
    batches = {
        batch: np.random.default_rng(0).standard_normal((batch, *images)).astype(np.float32) for batch in BATCHES
    }
    call(batches[1])
    print("ready", flush=True)
    warm = set()
    for line in sys.stdin:
        question = json.loads(line)
        if "end" in question:
            status = Path("/proc/self/status").read_text()  # getrusage's peak is that of the parent where this is less
            peak = next(row for row in status.splitlines() if row.startswith("VmHWM"))
            print(int(peak.split()[1]) / 1024, flush=True)
            return
        batch = batches[question["batch"]]
        if len(batch) not in warm:
            warm.add(len(batch))
            call(batch)
        times: list[float] = []
        while sum(times) < question["seconds"]:
            started = time.perf_counter()
            call(batch)
            times.append(time.perf_counter() - started)
        print(json.dumps(times), flush=True)


def runner(way: str, path: str, threads: int) -> Any:
    """A function that answers a batch."""
    if way.startswith("ONNX Runtime"):
        from vivid_monai.deploy.onnx import OnnxClassifier

        return OnnxClassifier(path, threads=threads)
    if way.startswith("OpenVINO"):
        import openvino

        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        return openvino.Core().compile_model(path, "CPU", options)
    import torch

    torch.set_num_threads(threads)
    network = torch.jit.load(path) if way == "TorchScript" else eager(path)
    if way == "torch.compile":
        network = torch.compile(network)

    def call(batch: np.ndarray) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(batch))

    return call


def eager(path: str) -> Any:
    import torch

    from vivid_monai.networks.classifier import Classifier
    from vivid_monai.networks.vit import ViT

    stored = torch.load(path, weights_only=True)
    classifier = Classifier(ViT(**stored["config"]), len(stored["state"]["head.bias"]))
    classifier.load_state_dict(stored["state"])
    return classifier.eval()


def take_turns(workers: dict[str, Worker], batch: int, rounds: int, seconds: float) -> dict[str, list[list[float]]]:
    times: dict[str, list[list[float]]] = {way: [] for way in workers}
    for _ in range(rounds):
        for way, worker in workers.items():
            times[way].append(worker.turn(batch, seconds))
    return times


def summary(rounds: list[list[float]], eager_rounds: list[list[float]], batch: int) -> dict[str, float]:
    calls = np.concatenate(rounds)
    ratios = [np.median(theirs) / np.median(own) for own, theirs in zip(rounds, eager_rounds, strict=True)]
    p50, p95 = np.quantile(calls, [0.5, 0.95])
    return {
        "images_per_s": batch / p50,
        "p50_ms": 1e3 * p50,
        "p95_ms": 1e3 * p95,
        "fastest_ms": 1e3 * calls.min(),
        "speedup": float(np.median(ratios)),
        "speedup_of_fastest": min(map(min, eager_rounds)) / calls.min(),
        "calls": len(calls),
    }


def table(result: dict[str, Any]) -> str:
    shape, machine = " x ".join(map(str, result["shape"])), result["machine"]
    before, after = (one[0] for one in machine["load"])
    lines = [
        f"\n{result['preset']}, {shape}, {machine['threads']} threads, load {before:.1f} to {after:.1f}\n",
        "| way | batch | images/s | p50 ms | p95 ms | speed-up (fastest calls) | peak MB | file MB | start s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in result["ways"]:
        for batch, t in one["batches"].items():
            lines.append(
                f"| {one['way']} | {batch} | {t['images_per_s']:.1f} | {t['p50_ms']:.1f} | {t['p95_ms']:.1f} | "
                f"{t['speedup']:.2f} ({t['speedup_of_fastest']:.2f}) | {one['peak_mb']:.0f} | {one['file_mb']:.1f} | "
                f"{one['start_s']:.1f} |"
            )
    changes = [one for one in result["int8"]["auroc_differences"].values() if one is not None]
    lines.append(
        f"\n8 bits change the AUROC of {len(changes)} fields on {result['int8']['test_images']} test images by at most "
        f"{max(map(abs, changes)):.4f}, in the mean by {np.mean(changes):+.4f}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
