"""Fine-tuning: the encoder it starts from, the probe its head starts from, and the test at its end."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder, TokenEncoder, VividEncoder, load_encoder
from vivid_monai.evaluation.evaluate import evaluate
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.probes import AttentiveProbe, LinearProbe, fit_probe, load_probe, save_probe
from vivid_monai.evaluation.results import Results
from vivid_monai.evaluation.start import load_start
from vivid_monai.evaluation.task import Task
from vivid_monai.evaluation.workflows import (
    FILES,
    INITIAL,
    PRETRAINED,
    print_output,
    save_encoder,
    ship,
    write_evaluation,
)
from vivid_monai.networks.classifier import Classifier
from vivid_monai.networks.objectives import FindingsBCE
from vivid_monai.networks.spd import SPD
from vivid_monai.storage.files import made_by_one
from vivid_monai.storage.run_config import write_config

logger = logging.getLogger(__name__)
START_PROBE = "start_probe.safetensors"
FINE_TUNED, FROZEN = "fine-tuned", "frozen"
FINETUNING_FILES = {
    PRETRAINED: "the fine-tuned encoder with its read-out and preprocessing",
    "model.pt": "encoder, read-out and head",
    INITIAL: "the encoder it started from",
    START_PROBE: "the probe that its head started from",
    "features/": "features of all images, which vivid bundle reads",
    "skipped_in_training.csv": "images that could not be read while the encoder was fine-tuned",
    "curves.csv, progress.png": "loss and validation AUROC over the steps",
}


def start_encoder(
    spec: str | None,
    output_dir: str | Path,
    *,
    head: str = "linear",
    pool: str | None = None,
    seed: int = 0,
    **knobs: Any,
) -> Encoder:
    """The frozen encoder that a fine-tuning starts from, read from the file that the run keeps of it.

    Args:
        spec, pool, seed, knobs: as of :func:`~vivid_monai.evaluation.start.load_start`.
        output_dir: the run's folder; gets its resolved config, too.
        head: as of :func:`fit_head`; an attentive one reads tokens, not the network's own pooled output.

    Raises:
        VividError: as `load_start`; the encoder is none that can be trained.
    """
    path = Path(output_dir) / INITIAL
    if idist.get_rank() == 0 and not path.exists():
        given = load_start(spec, output_dir, tokens=head == "attentive", pool=pool, seed=seed, **knobs)
        save_encoder(given.network, path, given.preprocess, pool=given.pool, spd=given.spd)
        write_config(path.parent)
    idist.barrier()
    return load_encoder(str(path))


@dataclass(frozen=True)
class Head:
    """What the head of a fine-tuning starts from: a probe on the frozen encoder.

    Attributes:
        name: of `encoder` in results: "frozen" or "attentive".
        encoder: the frozen encoder, read as the probe reads it: its pool says how tokens become features.
        probe: a linear one on these features.
    """

    name: str
    encoder: Encoder
    probe: LinearProbe

    def spd(self) -> SPD | None:
        """A copy to train of what the tokens are read through; None for other pools."""
        return None if self.encoder.spd is None else copy.deepcopy(self.encoder.spd).requires_grad_(True)

    def linear(self) -> nn.Linear:
        """The probe as a module, float32."""
        head = nn.Linear(self.probe.weight.shape[1], len(self.probe.bias), device="meta")
        tensors = {name: torch.tensor(getattr(self.probe, name)).float() for name in ("weight", "bias")}
        head.load_state_dict(tensors, assign=True)
        return head


def fit_head(
    encoder: Encoder, task: Task, store: FeatureStore, output_dir: str | Path, *, head: str = "linear", seed: int = 0
) -> Head:
    """Fit a probe on the frozen encoder, or read the one that the run's folder has; one process of several fits it.

    Args:
        head: "linear", on pooled features; "attentive", SPD's pooling of the tokens and a linear map, whose
            standardisation of the tokens goes into the SPD.
        seed: of an attentive probe.

    Raises:
        VividError: another head; classes that exclude each other; as
            :func:`~vivid_monai.evaluation.probes.fit_probe`.
    """
    if head not in ("linear", "attentive"):
        raise VividError(f"head={head!r} must be linear or attentive")
    if task.exclusive:
        raise VividError(f"{task.name}: its classes exclude each other; fine-tuning is for findings: give --fields")
    read = TokenEncoder(encoder) if head == "attentive" else encoder
    path = Path(output_dir) / START_PROBE
    root = store.root or path.parent
    with made_by_one(root / "probe", "another process fits the probe; waiting", option="--output_dir"):
        if not path.is_file():
            parts = (store.features(read, task.manifest, part, task.fields, title=part) for part in ("train", "val"))
            save_probe(fit_probe(*parts, kind=head, seed=seed), path, fields=task.fields)  # type: ignore[arg-type]
    probe, _ = load_probe(path, encoder=read.fingerprint())
    if isinstance(probe, LinearProbe):
        return Head(FROZEN, encoder, probe)
    assert isinstance(probe, AttentiveProbe)
    return pooled_head(encoder, probe, source=f"{encoder.source}, read as {START_PROBE}")


def pooled_head(encoder: Encoder, probe: AttentiveProbe, *, source: str) -> Head:
    """An attentive probe as two parts: the SPD that reads the encoder's raw tokens, and a linear probe of its features.

    Args:
        encoder: whose tokens the probe was fitted on; its network gives tokens, not its own pooled output.
        source: what the encoder with its SPD is called.
    """
    pooled = VividEncoder(encoder.network, encoder.preprocess, spd=probe.module.folded_spd(), pool="spd", source=source)
    read_by, head = pooled.fingerprint(), probe.module.head
    linear = LinearProbe.of_head(head, read_by, untrained=probe.untrained, description=probe.description)
    return Head("attentive", pooled, linear)


def finish_finetuning(
    network: Classifier,
    *,
    objective: FindingsBCE,
    start: Encoder,
    head: Head,
    spec: str,
    kept: str,
    task: Task,
    output_dir: str | Path,
    store: FeatureStore,
    seed: int = 0,
    n_examples: int = 6,
    **options: Any,
) -> Results | None:
    """After fine-tuning: ship the classifier and test it beside the probes of the frozen encoder; write and print.

    On the main process only. Beside it are, on the same images: "frozen", the start encoder with its linear probe;
    "attentive", that with the attentive probe, where the head started from it; and "untrained", the linear probe of the
    same network with fresh weights, where these can be drawn.

    Args:
        network: classifier whose encoder, and SPD where it pools by it, is fine-tuned; gets the head.
        objective: has the head.
        start, head: what it started from.
        spec: what the user called the start encoder.
        kept: which weights these are, in words.
        task, store, n_examples, options: as of :func:`~vivid_monai.evaluation.workflows.finish_training`.
        output_dir: the run's folder.
        seed: of the fresh weights.
    """
    if idist.get_rank() != 0:
        return None
    folder, preprocess, untaught = Path(output_dir), start.preprocess, list(head.probe.untrained)
    with torch.no_grad():
        for own, given in zip(network.head.parameters(), objective.present(), strict=True):
            own.copy_(given)
            own[untaught] = 0
    source = str(folder / PRETRAINED)
    tuned = VividEncoder(network.encoder, preprocess, spd=network.spd, pool=network.pool, source=source)
    about = {"kind": "fine-tuned", "start": spec, "weights": kept, "warnings": []}
    untrained = head.probe.untrained
    probe = LinearProbe.of_head(network.head, tuned.fingerprint(), untrained=untrained, description=about)
    ship(network, network.spd, folder, preprocess, task.fields)
    encoders: dict[str, Sequence[Encoder]] = {FINE_TUNED: [tuned], head.name: [head.encoder], FROZEN: [start]}
    if not spec.startswith("untrained:"):
        try:
            encoders["untrained"] = [load_encoder(f"untrained:{folder / INITIAL}", seed=seed)]
        except VividError as error:
            logger.info("no untrained twin: %s", error)
    fitted = {FINE_TUNED: [probe], head.name: [head.probe]}
    evaluated = evaluate(encoders, task, store, fitted=fitted, keep=[FINE_TUNED, FROZEN], **options)
    results = write_evaluation(evaluated, task, folder, shown=tuned, spd=network.spd, n_examples=n_examples)
    print_output(results, folder, FILES | FINETUNING_FILES)
    return results
