"""One pass of a frozen encoder over images, on MONAI's evaluator: images in, features out, batch by batch."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys
from torch import nn
from tqdm import tqdm

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import ordered_loader
from vivid_monai.errors import VividError
from vivid_monai.evaluation.sinks import Sink

# Ignite logs an error before it raises it; a user reads it once, and of one pass over images no start and end.
_SILENT = logging.getLogger(__name__)
_SILENT.setLevel(logging.CRITICAL)


class FeatureWriter:
    """Evaluator handler: hands every finished batch to a sink.

    Args:
        sink: where features go.
        ids: of all images, in order; an image's place among them is its position.
        dim: length D of a feature.

    Raises:
        VividError: while running: features of another shape, or one that is not a finite number.
    """

    def __init__(self, sink: Sink, ids: Sequence[str], dim: int) -> None:
        self.sink, self.dim = sink, dim
        self._position = {key: position for position, key in enumerate(ids)}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.EXCEPTION_RAISED, _raise)

    def _write(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        x = output[CommonKeys.PRED].float().cpu().numpy()
        ids, skipped = batch["id"], batch["skipped"]
        if x.shape != (len(ids), self.dim):
            raise VividError(f"the encoder gave features {x.shape} for {len(ids)} images; it promised {self.dim} each")
        if not np.isfinite(x).all():
            bad = int(np.flatnonzero(~np.isfinite(x).all(1))[0])
            raise VividError(f"the encoder's features of image {ids[bad]} are not finite; its weights are broken")
        # The loader tells a batch without any image together with its neighbour, so done is what was told of.
        done = self.sink.images + len(ids) + len(skipped)
        there = {self._position[key] for key in ids}
        missing = [position for position in range(self.sink.images, done) if position not in there]
        self.sink.add(x, missing, skipped, done)


class ExtractionBar:
    """Evaluator handler: moves a bar over the images. Attach it after the :class:`FeatureWriter`, which counts."""

    def __init__(self, sink: Sink, bar: tqdm) -> None:
        self.sink, self.bar = sink, bar

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self.bar.update(self.sink.images - self.bar.n))


def extract(
    encoder: nn.Module,
    dataset: ImageDataset,
    sink: Sink,
    *,
    dim: int,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    title: str = "features",
) -> None:
    """Send every image that the sink does not have yet once through the encoder, in order, in evaluation mode.

    Args:
        encoder: (B, C, H, W) → (B, dim); moved to the device.
        dataset: with the encoder's own preprocessing.
        sink: begins at ``sink.images``, a multiple of the batch size: batches are cut as in an uninterrupted pass.
        batch_size, num_workers: as of :func:`~vivid_monai.data.loader.ordered_loader`.

    Raises:
        VividError: as :class:`FeatureWriter`; no image can be read.
    """
    if sink.images >= len(dataset):
        return
    rest: Any = dataset if sink.images == 0 else dataset[sink.images :]
    loader = ordered_loader(rest, batch_size, num_workers=num_workers)
    with tqdm(total=len(dataset), initial=sink.images, desc=title, unit="image", leave=False) as bar:
        evaluator = SupervisedEvaluator(
            device=torch.device(device),
            # A plain iterator: Ignite would start a loader over when it ends before its length, as one with batches
            # that cannot be read does.
            val_data_loader=iter(loader),
            network=encoder.to(device),
            decollate=False,
            val_handlers=[
                FeatureWriter(sink, [row["id"] for row in dataset.data], dim),
                ExtractionBar(sink, bar),
            ],
        )
        evaluator.logger = _SILENT
        evaluator.run()
    if sink.images != len(dataset):
        raise VividError(f"{title}: the pass ended after {sink.images} of {len(dataset)} images")


def _raise(engine: Engine, error: Exception) -> None:
    raise error
