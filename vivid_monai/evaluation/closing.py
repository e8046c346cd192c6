"""The end of a pretraining run: the LLM is left behind, the encoder gets a head and is held against its start."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vivid_monai.evaluation.encoders import Encoder, VividEncoder
from vivid_monai.evaluation.evaluate import evaluate
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.output import finish, print_output, resolved_config
from vivid_monai.evaluation.probes import LinearProbe
from vivid_monai.evaluation.results import Results
from vivid_monai.evaluation.task import Task
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import BACKBONES, Classifier
from vivid_monai.networks.modules import fingerprint, load_module, save_module
from vivid_monai.networks.spd import SPD
from vivid_monai.storage.files import whole_file

INITIAL = "initial_vit.safetensors"
PRETRAINED = "pretrained_vit.safetensors"
SPD_FILE = "spd.safetensors"
SKIPPED = "skipped_in_training.csv"


class Closing:
    """Fits and tests a linear head on the frozen encoder, before and after pretraining, and writes what ships.

    Args:
        network: the LLM-free classifier; its encoder is the one that is pretrained.
        spd: what its tokens are read through while it is taught; kept for the attention maps that the page shows.
        task: images and fields. The head learns on train, its regularisation is chosen on val, numbers come from test.
        preprocess: belongs to the weights.
        output_dir: the run's folder.
        model_dir: where what ships goes as well: ``model.pt`` of the bundle and the encoder.
        store: where features come from.
        n_examples: test images that the page shows with attention maps.
        options: min_present, min_absent, n_resamples of :func:`~vivid_monai.evaluation.evaluate.evaluate`.
    """

    def __init__(
        self,
        network: Classifier,
        *,
        spd: SPD,
        task: Task,
        preprocess: Preprocess,
        output_dir: str | Path,
        model_dir: str | Path,
        store: FeatureStore,
        n_examples: int = 6,
        **options: Any,
    ) -> None:
        self.network, self.spd, self.task, self.preprocess = network, spd, task, preprocess
        self.output_dir, self.model_dir = Path(output_dir), Path(model_dir)
        self.store, self.n_examples, self.options = store, n_examples, options

    def keep_initial(self) -> None:
        """Before training: write the resolved config and the encoder's first weights, unless a resumed run has them."""
        if not _is_main():
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if not (self.output_dir / INITIAL).exists():
            save_module(
                self.network.encoder, self.output_dir / INITIAL, kind="vit", preprocess=self.preprocess.to_dict()
            )
            with whole_file(self.output_dir / "config.json") as part:
                part.write_text(json.dumps(resolved_config(), indent=2, default=str) + "\n")

    def finish(self) -> Results | None:
        """After training: fit, test, write and print; on the main process only."""
        if not _is_main():
            return None
        initial = load_module(self.output_dir / INITIAL, BACKBONES).module
        encoders: Mapping[str, list[Encoder]] = {
            "pretrained": [self._encoder(self.network.encoder, PRETRAINED)],
            "untrained": [self._encoder(initial, INITIAL)],
        }
        evaluated = evaluate(encoders, self.task, self.store, **self.options)
        head = evaluated.probes["pretrained"][0]
        assert isinstance(head, LinearProbe)
        with torch.no_grad():
            self.network.head.weight.copy_(torch.from_numpy(head.weight))
            self.network.head.bias.copy_(torch.from_numpy(head.bias))
        self._ship()
        results = finish(
            evaluated,
            self.task,
            self.output_dir,
            shown=encoders["pretrained"][0],
            spd=self.output_dir / SPD_FILE,
            n_examples=self.n_examples,
        )
        print_output(
            results,
            self.output_dir,
            more={
                PRETRAINED: f"the encoder, with its preprocessing; without any LLM; also in {self.model_dir}",
                "model.pt": f"encoder and head; also in {self.model_dir}",
                SPD_FILE: "the query groups that the encoder was read through, for attention maps",
                SKIPPED: "images that could not be read while the encoder was pretrained",
                "curves.csv, curves.png": "loss, validation AUROC and NLL over the steps",
            },
        )
        return results

    def _encoder(self, vit: Any, file: str) -> VividEncoder:
        return VividEncoder(vit, self.preprocess, pool=self.network.pool, source=str(self.output_dir / file))

    def _ship(self) -> None:
        preprocess, fields = self.preprocess.to_dict(), self.task.fields
        encoder = fingerprint(self.network.encoder)
        weights = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        for folder in (self.output_dir, self.model_dir):
            save_module(self.network.encoder, folder / PRETRAINED, kind="vit", preprocess=preprocess, fields=fields)
            with whole_file(folder / "model.pt") as part:
                torch.save(weights, part)
            save_module(self.spd, folder / SPD_FILE, kind="spd", extra={"encoder": encoder})


def _is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
