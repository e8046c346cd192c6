"""Our own ViT as an encoder, trained or not."""

import torch
from torch import Tensor

from vivid_monai.data.preprocess import Preprocess
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import Encoder
from vivid_monai.evaluation.encoders.pooling import choose_pool, pool_tokens
from vivid_monai.networks.vit import ViT
from vivid_monai.networks.weights import load_vit


class VividEncoder(Encoder):
    """A ViT of this package.

    Args:
        vit: the network; it is frozen and set to evaluation mode.
        preprocess: what its images go through.
        pool: "cls", "mean" or "cls+mean".
        source: what results call it by.

    Raises:
        VividError: another pooling, or a preprocessing that makes other images than the network was built for.
    """

    kind = "vivid"

    def __init__(self, vit: ViT, preprocess: Preprocess, *, pool: str = "cls", source: str = "") -> None:
        if choose_pool(pool, cls=True, patches=True) == "pooled":
            raise VividError("pool='pooled': a ViT of ours has no pooled output; use cls, mean or cls+mean")
        self.architecture = f"vit-{vit.config['preset']}/{vit.config['patch_size']}"
        settings = {name: value for name, value in vit.config.items() if name != "drop_path"}
        super().__init__(vit, preprocess, pool=pool, source=source, settings=settings)

    @property
    def vit(self) -> ViT:
        """The network."""
        return self.network

    def forward(self, images: Tensor) -> Tensor:
        return pool_tokens(self.network(images), self.pool, prefix=1)


def load_vivid(path: str, *, pool: str = "cls") -> VividEncoder:
    """The encoder of a file of :func:`~vivid_monai.networks.weights.save_vit`.

    Raises:
        VividError: the file cannot be read, or its preprocessing is not complete.
    """
    vit, metadata = load_vit(path)
    return VividEncoder(vit, _preprocess(path, metadata["preprocess"]), pool=pool, source=path)


def untrained(path: str, *, pool: str = "cls", seed: int = 0) -> VividEncoder:
    """The network of such a file as it was before any training: same architecture and preprocessing, fresh weights.

    The weights depend on `seed` alone.

    Raises:
        VividError: as :func:`load_vivid`.
    """
    trained, metadata = load_vit(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit = ViT(**trained.config)
    preprocess = _preprocess(path, metadata["preprocess"])
    return VividEncoder(vit, preprocess, pool=pool, source=f"untrained:{path} (seed {seed})")


def _preprocess(path: str, stored: object) -> Preprocess:
    if not isinstance(stored, dict):
        raise VividError(f"{path}: its preprocessing is a {type(stored).__name__}, not a set of named values")
    try:
        return Preprocess.from_dict(stored)
    except VividError as error:
        raise VividError(f"{path}: {error}") from error
