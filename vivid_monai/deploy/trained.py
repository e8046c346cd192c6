"""What a bundle is made of: the classifier of a training run, or an encoder and a probe of an evaluation."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivid_monai.deploy.model import ENCODER, SHIPPED, load_run
from vivid_monai.errors import VividError, did_you_mean
from vivid_monai.evaluation.encoders import TokenEncoder, VividEncoder, for_task, load_encoder
from vivid_monai.evaluation.finetuning import pooled_head
from vivid_monai.evaluation.probes import AttentiveProbe, LinearProbe, load_probe
from vivid_monai.evaluation.results import Results

BASELINES = ("untrained", "baseline")
"""What an evaluation calls the encoders that it adds."""
FITTED = "fitted on its frozen features"


@dataclass(frozen=True)
class Trained:
    """A classifier and how it did on its test images.

    Attributes:
        encoder, probe: the probe is of the encoder's pooled features.
        fields: of the probe's columns.
        results: of the test images; `name` is the encoder's name in them.
        made: how the classifier was made, in words that stand before "by VIVID-Med".
        beside: the name of another classifier in the results, which the bundle's docs compare it with; "" for none.
    """

    encoder: VividEncoder
    probe: LinearProbe
    fields: tuple[str, ...]
    results: Results
    name: str
    made: str
    beside: str = ""


def load_trained(run: Path, encoder: str | None = None) -> Trained:
    """The classifier of a finished run: what a training run ships, or an encoder of an evaluation with its probe.

    Args:
        encoder: a name in the results of an evaluation; None: the first that is no baseline.

    Raises:
        VividError: no finished run, or one whose classifier cannot be in a bundle: classes that exclude each other,
            volumes or several slices, a transfer task, nearest neighbours, thumbnails; an encoder that is not there any
            more, or another one now.
    """
    if not (run / ENCODER).is_file() and (run / "results.json").is_file():
        return _of_evaluation(run, encoder)
    network, probe, fields = load_run(run)
    results = Results.load(run / "results.json")
    name = next((name for name in SHIPPED if name in results.encoders), None)
    if results.kind != "findings" or name is None:
        raise VividError(f"{run}: is not a training run with findings; give the folder of a run of configs/train.json")
    if encoder not in (None, name):
        raise VividError(f"{run}: a training run ships its own encoder, {name!r}; leave out --encoder {encoder}")
    return Trained(network, probe, fields, results, name, made=name)


def _of_evaluation(run: Path, asked: str | None) -> Trained:
    results = Results.load(run / "results.json")
    if asked is not None and asked not in results.encoders:
        raise VividError(
            f"{run}: no encoder {asked!r} in this evaluation{did_you_mean(asked, results.encoders)} It has "
            f"{', '.join(results.encoders)} (--encoder)"
        )
    name = asked or next((name for name in results.encoders if name not in BASELINES), next(iter(results.encoders)))
    stored, probe = results.encoders[name]["encoder"], results.encoders[name]["probes"][0]
    _refuse(run, name, results, stored, probe.get("kind"))
    source, fingerprint = (one[0] if isinstance(one := stored[key], list) else one for key in ("source", "fingerprint"))
    attentive = probe.get("kind") == "attentive"
    encoder = _again(source, pool=_asked_pool(run) if attentive else stored["pool"])
    seen: Any = for_task(TokenEncoder(encoder) if attentive else encoder, window=_window(stored))
    if seen.fingerprint() != fingerprint:
        raise VividError(
            f"{source}: is not the encoder that {run} evaluated as {name!r} (fingerprint {seen.fingerprint()[:12]}…, "
            f"not {fingerprint[:12]}…): bring the same weights back, or evaluate again"
        )
    fitted, fields = load_probe(run / "probes" / f"{name}-{results.seeds[0]}.safetensors", encoder=fingerprint)
    if isinstance(fitted, LinearProbe):
        assert isinstance(seen, VividEncoder)
        return Trained(seen, fitted, fields, results, name, made=FITTED)
    assert isinstance(fitted, AttentiveProbe)
    if encoder.pool == "pooled":  # the same network, built to give its tokens
        encoder = _again(source, pool="mean")
    head = pooled_head(for_task(encoder, window=_window(stored)), fitted, source=f"{source}, read as in {run}")
    assert isinstance(head.encoder, VividEncoder)
    return Trained(head.encoder, head.probe, fields, results, name, made=FITTED)


def _refuse(run: Path, name: str, results: Results, stored: dict[str, Any], probe: str | None) -> None:
    """Tell what no bundle can be made of."""
    preprocess, source = stored["preprocess"], results.run.get("data", {}).get("source")
    for wrong, why in (
        (results.kind != "findings", "its classes exclude each other, and a bundle answers findings"),
        (stored["kind"] == "thumbnails", "thumbnails are no network; name another encoder (--encoder)"),
        (preprocess.get("kind", "image") != "image", "it reads volumes, and a bundle reads images"),
        (preprocess.get("slices", 1) != 1, "it reads several slices at a time, and a bundle reads one image"),
        (source is not None, f"its probe learned on another data set ({source}): evaluate on that one, and bundle it"),
        (probe == "knn", "a probe of nearest neighbours is its training images; evaluate with --probe linear"),
    ):
        if wrong:
            raise VividError(f"{run}: {name!r} cannot be in a bundle: {why}")


def _again(source: str, *, pool: str | None) -> VividEncoder:
    """The encoder of a source as results have it."""
    fresh = re.fullmatch(r"(untrained:.*) \(seed (\d+)\)", source)
    encoder = load_encoder(fresh[1], pool=pool, seed=int(fresh[2])) if fresh else load_encoder(source, pool=pool)
    assert isinstance(encoder, VividEncoder), "all but thumbnails"
    return encoder


def _asked_pool(run: Path) -> str | None:
    """The pool of an evaluation by attentive probes, which say only that they read tokens."""
    try:
        return json.loads((run / "config.json").read_text(encoding="utf-8")).get("pool")
    except (OSError, ValueError) as error:
        raise VividError(f"{run / 'config.json'}: cannot be read: {error}; give the folder of an evaluation") from error


def _window(stored: dict[str, Any]) -> tuple[float, float] | None:
    window = stored["preprocess"].get("window")
    return None if window is None else (window[0], window[1])
