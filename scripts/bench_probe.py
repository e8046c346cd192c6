"""Three tuned probes on cached features against the published protocol, on the same images and machine, in one run.

python scripts/bench_probe.py                                                # phantoms, an untrained ViT
python scripts/bench_probe.py --encoder pretrained_vit.safetensors --manifest data/nih/manifest.parquet

The published protocol runs the frozen network on each of its 3,000 x 32 images. It is timed on a stated part of its
steps, on images that are already decoded and in memory, without its passes over the validation images, and scaled; its
AUROC is that of all its steps, computed on features, which is the same computation.
"""

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from tqdm import tqdm

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import image_loader
from vivid_monai.data.manifest import Manifest
from vivid_monai.evaluation.encoders import Encoder, VividEncoder, load_encoder
from vivid_monai.evaluation.features import Features, FeatureStore
from vivid_monai.evaluation.measure import Scored, measure
from vivid_monai.evaluation.probes import fit_probe
from vivid_monai.evaluation.task import check_leakage
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.vit import ViT
from vivid_monai.prepare.phantoms import prepare

STEPS, BATCH = 3000, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", help="spec of load_encoder (default: an untrained micro ViT)")
    parser.add_argument("--manifest", help="images and states (default: phantoms made on the fly)")
    parser.add_argument("--images", type=int, default=3000, help="phantoms to make (default: %(default)s)")
    parser.add_argument("--size", type=int, default=112, help="pixels of phantoms and ViT (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="probes of each kind (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=0.05, help="of the steps to time (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the network runs (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.manifest or prepare(Path(folder) / "phantoms", n=args.images, size=args.size)
        bench(args, Manifest.load(path), encoder_of(args), Path(folder) / "features")


def encoder_of(args: argparse.Namespace) -> Encoder:
    if args.encoder:
        return load_encoder(args.encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = ViT(img_size=args.size, preset="micro")
    return VividEncoder(vit, Preprocess(size=args.size), source="untrained micro ViT")


def bench(args: argparse.Namespace, manifest: Manifest, encoder: Encoder, cache: Path) -> None:
    exclusive = manifest.label_space.exclusive
    fields = list(manifest.fields) if exclusive else manifest.fields_with(10, "test", min_absent=10)
    seeds = range(args.seeds)
    store = FeatureStore(cache, device=args.device)
    extraction = time.perf_counter()
    train, validation, test = (store.features(encoder, manifest, split, fields) for split in ("train", "val", "test"))
    extraction = time.perf_counter() - extraction
    check_leakage(train, validation, test)

    tuned = time.perf_counter()
    scored = {"tuned": score("linear", seeds, exclusive, encoder, train, validation, test)}
    tuned = time.perf_counter() - tuned
    scored["published"] = score("published", seeds, exclusive, encoder, train, validation, test)
    steps = max(1, round(STEPS * args.fraction))
    published = args.seeds * STEPS / steps * timed_steps(encoder, manifest, fields, steps, args.device)

    results = measure(
        scored,
        task="bench",
        fields=fields,
        exclusive=exclusive,
        validation_states=validation.states,
        test=test,
        seeds=list(seeds),
    )
    told = {name: results.get("auroc", "(macro)", name) for name in scored}
    (difference,) = (one for one in results.differences if one.metric == "auroc")
    parts = f"{len(train.ids)} + {len(validation.ids)} + {len(test.ids)} images"
    print(f"{encoder.source}, {parts} (train, val, test), {len(fields)} fields, {torch.get_num_threads()} threads")
    print(f"extraction of all features, once            {extraction:9.2f} s")
    print(f"{args.seeds} tuned probes, fitted and applied         {tuned:9.2f} s")
    print(
        f"{args.seeds} published, each {STEPS} x {BATCH} forward passes {published:9.0f} s, scaled from {steps} steps"
    )
    print(f"published / tuned                           {published / tuned:9.0f} x, features cached")
    print(f"published / (extraction + tuned)            {published / (extraction + tuned):9.1f} x, nothing cached yet")
    for name, one in told.items():
        print(f"{name:10s} test macro AUROC {one.value:.4f} ({one.low:.4f} to {one.high:.4f})")
    print(
        f"tuned - published {difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}), 95 % over "
        f"{results.test['n_patients']} patients, paired"
    )


def score(
    kind: str, seeds: range, exclusive: bool, encoder: Encoder, train: Features, validation: Features, test: Features
) -> Scored:
    probes = [fit_probe(train, validation, kind=kind, exclusive=exclusive, seed=seed) for seed in seeds]
    return Scored(
        validation=np.stack([probe.probabilities(validation.x) for probe in probes]),
        test=np.stack([probe.probabilities(test.x) for probe in probes]),
        encoder=encoder.describe(),
        probes=[probe.description for probe in probes],
        untrained=tuple(sorted({column for probe in probes for column in probe.untrained})),
    )


def timed_steps(encoder: Encoder, manifest: Manifest, fields: list[str], steps: int, device: str) -> float:
    """Seconds of that many steps of the published protocol on images: frozen network, head, AdamW."""
    some = manifest.select("train").items(fields)[: steps * BATCH]  # no more than the steps can show need to be decoded
    images = ImageDataset(some, encoder.preprocess, cache=True)
    head = torch.nn.Linear(encoder.dim, len(fields)).to(device)
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    batches = iter(image_loader(images, BATCH, seed=0))
    next(batches)
    started = time.perf_counter()
    for batch in tqdm(islice(batches, steps), "published protocol", steps, leave=False):
        with torch.no_grad():
            features = encoder(batch["image"].to(device))
        states = batch["states"].to(device)
        if manifest.label_space.exclusive:
            loss = cross_entropy(head(features), states.argmax(1))
        else:
            counted = (states == 0) | (states == 1)
            loss = binary_cross_entropy_with_logits(head(features)[counted], states[counted].float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
