"""TorchScript: one file that PyTorch loads in Python and C++ without this package."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from monai.data.torchscript_utils import load_net_with_metadata, save_net_with_metadata

from vivid_monai.deploy.formats.description import check_same, describe, for_export
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import Classifier
from vivid_monai.storage.files import whole_file


def export_torchscript(
    classifier: Classifier, path: str | PathLike, *, preprocess: Preprocess, fields: Sequence[str]
) -> Path:
    """Write a classifier as TorchScript: images float32 (B, C, H, W), any B → logits (B, F).

    ``torch.jit.load`` reads it; MONAI's ``load_net_with_metadata`` gives its preprocessing, fields and versions too.
    The file was read back and held against PyTorch before it took its place.

    Raises:
        VividError: preprocessing or fields of another classifier, a file that cannot be written, logits that differ by
            over 1e-4.
    """
    path, metadata = Path(path), describe(classifier, preprocess, fields)
    network = for_export(classifier)
    with whole_file(path) as part:
        save_net_with_metadata(torch.jit.script(network), str(part), include_config_vals=False, meta_values=metadata)
        loaded, _, _ = load_net_with_metadata(str(part))
        check_same(path, network, lambda images: (loaded(images),), expected=lambda images: (network(images),))
    return path
