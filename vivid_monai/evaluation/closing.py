"""The end of a pretraining run: the LLM is left behind, the encoder gets a head and is held against its start."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.bundle import ConfigWorkflow
from torch.utils.data import DataLoader

from vivid_monai.data.splits import SPLITS
from vivid_monai.evaluation.comparison import Comparison, compare
from vivid_monai.evaluation.features import Features, extract_features
from vivid_monai.evaluation.head import LinearHead, fit_head
from vivid_monai.evaluation.predictions import write_predictions
from vivid_monai.evaluation.summary import print_summary
from vivid_monai.files import whole_file
from vivid_monai.networks.classifier import ViTClassifier
from vivid_monai.networks.weights import load_vit, save_vit

INITIAL = "initial_vit.safetensors"


class Closing:
    """Fits and tests a linear head on the frozen encoder, before and after pretraining, and writes what ships.

    Args:
        network: the LLM-free classifier; its encoder is the one that is pretrained.
        output_dir: the run's folder.
        model_path: where the working classifier's weights go (``models/model.pt`` of the bundle).
        fields: columns of the head.
        loaders: ``train``, ``val`` and ``test`` → ordered loader with evaluation preprocessing. The head learns on
            ``train``, its regularisation is chosen on ``val``, numbers come from ``test``; the three share no patient.
        preprocess: JSON form of the preprocessing that belongs to the weights.
        device: where features are computed.
        min_present, min_absent: what a field needs of each on ``test`` to enter the macro average.
        n_resamples: bootstrap resamples of the test patients.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        network: ViTClassifier,
        *,
        output_dir: str | Path,
        model_path: str | Path,
        fields: Sequence[str],
        loaders: Mapping[str, DataLoader],
        preprocess: Mapping[str, Any],
        device: torch.device | str = "cpu",
        min_present: int = 10,
        min_absent: int = 10,
        n_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        self.network, self.fields, self.loaders = network, list(fields), dict(loaders)
        self.output_dir, self.model_path = Path(output_dir), Path(model_path)
        self.preprocess, self.device = dict(preprocess), device
        self._compare = {
            "min_present": min_present,
            "min_absent": min_absent,
            "n_resamples": n_resamples,
            "seed": seed,
        }

    def keep_initial(self) -> None:
        """Before training: write the resolved config and the encoder's first weights, unless a resumed run has them."""
        if not _is_main():
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if not (self.output_dir / INITIAL).exists():
            save_vit(self.network.encoder, self.output_dir / INITIAL, preprocess=self.preprocess)
            _write_json(self.output_dir / "config.json", resolved_config())

    def finish(self) -> Comparison | None:
        """After training: fit, test, write and print; on the main process only."""
        if not _is_main():
            return None
        initial, _ = load_vit(self.output_dir / INITIAL)
        untrained = ViTClassifier(initial, num_classes=len(self.fields), pool=self.network.pool).to(self.device)
        self.network.to(self.device)
        results: dict[str, tuple[LinearHead, Features]] = {}
        for name, network in {"pretrained": self.network, "untrained": untrained}.items():
            parts = {
                split: extract_features(
                    network.features, self.loaders[split], device=self.device, title=f"{name}, {split}"
                )
                for split in SPLITS
            }
            results[name] = fit_head(parts["train"], parts["val"]), parts["test"]

        head, _ = results["pretrained"]
        with torch.no_grad():
            self.network.head.weight.copy_(torch.from_numpy(head.weight))
            self.network.head.bias.copy_(torch.from_numpy(head.bias))
        comparison = compare(results, self.fields, **self._compare)  # type: ignore[arg-type]
        self._write(comparison)
        write_predictions(self.output_dir / "predictions.csv", results, self.fields)
        print_summary(comparison, self.output_dir, self.model_path)
        return comparison

    def _write(self, comparison: Comparison) -> None:
        encoder_path = self.output_dir / "pretrained_vit.safetensors"
        save_vit(self.network.encoder, encoder_path, preprocess=self.preprocess, fields=self.fields)
        weights = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        for path in (self.output_dir / "model.pt", self.model_path):
            with whole_file(path) as part:
                torch.save(weights, part)
        _write_json(
            self.output_dir / "metrics.json",
            {"command": command_line(), "versions": versions(), "preprocess": self.preprocess, **comparison.to_dict()},
        )


def resolved_config() -> dict[str, Any]:
    """The merged config of the bundle workflow that is running this code, overrides included; ``{}`` outside of one.

    A config cannot name itself in MONAI's language, so the workflow is found among the callers.
    """
    frame = sys._getframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            return dict(workflow.parser.get())
        frame = frame.f_back  # type: ignore[assignment]
    return {}


def command_line() -> str:
    """The command that started this process, as one can type it again."""
    program = Path(sys.argv[0])
    start = (
        ["python", "-m", "monai.bundle"] if program.parts[-3:] == ("monai", "bundle", "__main__.py") else [program.name]
    )
    return shlex.join([*start, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("vivid-monai", "monai", "torch", "transformers", "pytorch-ignite", "numpy", "scikit-learn", "scipy")
    return {"python": ".".join(map(str, sys.version_info[:3])), **{name: version(name) for name in packages}}


def _is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=2, default=str) + "\n")
