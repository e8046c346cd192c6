"""Images → features of a frozen encoder."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm


@dataclass(frozen=True)
class Features:
    """Features of a data set with what belongs to them, row by row.

    Attributes:
        x: float32 (N, D).
        states: int64 (N, F), codes of :mod:`vivid_monai.ums.states`.
        patients: str (N,).
        ids: str (N,).
        skipped: images that could not be read, ``(path, reason)``; they have no row.
    """

    x: np.ndarray
    states: np.ndarray
    patients: np.ndarray
    ids: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()


@torch.no_grad()
def extract_features(
    features: Callable[[torch.Tensor], torch.Tensor],
    loader: Iterable[Mapping[str, Any]],
    *,
    device: torch.device | str = "cpu",
    title: str = "features",
) -> Features:
    """Run every image of ``loader`` once through ``features``, in evaluation mode.

    Args:
        features: module or method of one, image float32 (B, C, H, W) → (B, D).
        loader: ordered batches of :mod:`vivid_monai.data.dataset`.
        device: where the images are sent.
        title: words of the progress bar.
    """
    module = features if isinstance(features, nn.Module) else getattr(features, "__self__", None)
    was_training = bool(module is not None and module.training)
    if module is not None:
        module.eval()
    rows: dict[str, list] = {"x": [], "states": [], "patients": [], "ids": []}
    skipped: list[tuple[str, str]] = []
    for batch in tqdm(loader, desc=title, unit="batch", leave=False):
        skipped += [(item.path, item.reason) for item in batch.get("skipped", ())]
        rows["x"].append(features(batch["image"].to(device)).float().cpu().numpy())
        rows["states"].append(batch["states"].numpy())
        rows["patients"] += list(batch["patient_id"])
        rows["ids"] += list(batch["id"])
    if module is not None:
        module.train(was_training)
    return Features(
        np.concatenate(rows["x"]),
        np.concatenate(rows["states"]),
        np.array(rows["patients"]),
        np.array(rows["ids"]),
        tuple(skipped),
    )
