"""The interface of image encoders: images → features, with the preprocessing that their weights need."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vivid_monai.errors import VividError, first_line
from vivid_monai.images.preprocess import BasePreprocess, Preprocess
from vivid_monai.networks.library import LibraryBackbone, offers
from vivid_monai.networks.modules import fingerprint
from vivid_monai.networks.pooling import choose_pool, pool_tokens
from vivid_monai.networks.spd import SPD


class Encoder(nn.Module):
    """A frozen network with its preprocessing. Made by :func:`~vivid_monai.evaluation.encoders.load_encoder`.

    Attributes:
        kind: the library the network comes from.
        architecture: the network's name in that library.
        network: any module; frozen and set to evaluation mode.
        preprocess: how images become its input, a :class:`BasePreprocess`; belongs to the weights.
        pool: what the features are: "spd" (the embeddings of the SPD that was trained with it), "cls", "mean",
            "cls+mean" or "pooled" (the network's own pooled output).
        prefix: tokens before those of the grid.
        spd: what the pool "spd" reads the tokens through; None for other pools.
        shape: of an image's features: (D,), or (T, D) for tokens. dim: their width D.
        source: where the weights came from, as the user said it.
        settings: what the tensors do not show of the network (heads, epsilons, activations), as JSON.

    Raises:
        VividError: the network cannot be run on an image of the preprocessing's size.
    """

    kind: str
    architecture: str
    network: Any
    preprocess: Any  # of any kind

    def __init__(
        self,
        network: nn.Module,
        preprocess: BasePreprocess,
        *,
        pool: str,
        source: str,
        settings: Mapping[str, Any],
        architecture: str = "",
        prefix: int = 0,
        spd: SPD | None = None,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.spd = spd.requires_grad_(False) if spd and pool == "spd" else None
        self.preprocess, self.pool, self.source, self.prefix = preprocess, pool, source, prefix
        self.architecture = architecture or self.architecture
        self.settings = json.loads(json.dumps(settings, sort_keys=True, default=str))
        self.eval()
        self.shape = self._measure()
        self.dim = self.shape[-1]

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens (B, prefix + grid, D) of images."""
        return self.network(images)

    def pooled(self, images: Tensor) -> Tensor:
        """The network's own pooled output (B, D)."""
        return self.network(images)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) float32 of images (B, C, *spatial) float32, as :attr:`preprocess` makes them."""
        if self.pool == "pooled":
            return self.pooled(images).float()
        tokens = self.tokens(images).float()
        return self.spd.pool(tokens) if self.spd else pool_tokens(tokens, self.pool, prefix=self.prefix)

    def describe(self) -> dict[str, Any]:
        """What a result must say of its encoder, as JSON."""
        return {
            "kind": self.kind,
            "source": self.source,
            "architecture": self.architecture,
            "pool": self.pool,
            "dim": self.dim,
            "n_parameters": sum(parameter.numel() for parameter in self.parameters()),
            "preprocess": self.preprocess.to_dict(),
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """SHA-256 of all that decides the features: kind, settings, pooling, preprocessing, every tensor; no source."""
        said = {name: getattr(self, name) for name in ("kind", "architecture", "settings", "pool")}
        return fingerprint(self, {**said, "preprocess": self.preprocess.to_dict()})

    def _measure(self) -> tuple[int, ...]:
        shape = self.preprocess.shape
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, *shape, device=device))
        except Exception as error:  # the networks of other libraries raise whatever they like on a size they lack
            raise VividError(
                f"{self.source}: the network ({self.architecture}) does not take the images that its preprocessing "
                f"makes, {' x '.join(map(str, shape))}: {first_line(error)}"
            ) from error
        return tuple(features.shape[1:])


class VividEncoder(Encoder):
    """A backbone of :data:`~vivid_monai.networks.classifier.BACKBONES`, ours or another library's, its tokens pooled or
    read through SPD; ``kind`` is "vivid" or the library."""

    def __init__(
        self,
        backbone: Any,
        preprocess: BasePreprocess,
        *,
        spd: SPD | None = None,
        pool: str | None = None,
        source: str = "",
    ) -> None:
        self.kind, own = getattr(backbone, "library", "vivid"), getattr(backbone, "output", "tokens") == "pooled"
        super().__init__(
            backbone,
            preprocess,
            pool=choose_pool(pool, cls=backbone.prefix > 0, patches=not own, pooled=own, spd=spd is not None),
            prefix=backbone.prefix,
            spd=spd,
            source=source,
            settings={name: value for name, value in backbone.config.items() if name != "drop_path"},
            architecture=backbone.architecture,
        )

    def tokens(self, images: Tensor) -> Tensor:
        return getattr(self.network, "tokens", self.network)(images)

    def pooled(self, images: Tensor) -> Tensor:
        return self.network(images)[:, 0]


def library_encoder(
    library: str,
    model: Mapping[str, Any],
    preprocess: Preprocess,
    *,
    pool: str | None,
    source: str,
    tensors: Mapping[str, Tensor] | None,
    misfit: str = "",
) -> VividEncoder:
    """The encoder of a network of another library.

    Args:
        library, model: as of :class:`~vivid_monai.networks.library.LibraryBackbone`.
        pool: None: "cls" or, without such a token, the network's own pooled output.
        tensors: the state dict of the library's network; None leaves the weights as they are drawn.
        misfit: what to say where they are not those of the network.

    Raises:
        VividError: the network cannot be built, lacks the pool or does not take the images; tensors that do not fit.
    """
    try:
        cls, patches = offers(library, model)
        pool = choose_pool(pool, cls=cls, patches=patches)
        output = "pooled" if pool == "pooled" else "tokens"
        backbone = LibraryBackbone(library=library, model=model, image_shape=preprocess.shape, output=output)
    except VividError as error:
        raise VividError(f"{source}: {error}") from error
    if tensors is not None:
        load_strictly(backbone.network, tensors, misfit or source)
    return VividEncoder(backbone, preprocess, pool=pool, source=source)


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Give a network its tensors, as float32; a VividError where one is missing, left over or of another shape."""
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        problem = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise VividError(f"{where}: {problem[:300]}") from error


def square_preprocess(
    where: str, size: int | Sequence[int], resize: tuple[str, str, Mapping[str, str]], interpolation: str, **rest: Any
) -> Preprocess:
    """A library's preprocessing as ours; a VividError that names the key where :class:`Preprocess` cannot express it.

    ``resize``: the library's key for it, what it says, and our word for each thing it may say.
    """
    height, width = (size, size) if isinstance(size, int) else size
    resize_key, said, ours = resize
    for key, value, ok in (
        ("size", size, height == width),
        ("interpolation", interpolation, interpolation in ("bilinear", "bicubic")),
        (resize_key, said, said in ours),
    ):
        if not ok:
            raise VividError(f"{where}: {key} = {value!r} cannot be expressed (square, bilinear or bicubic)")
    return Preprocess(size=height, resize=ours[said], interpolation=interpolation, **rest)  # type: ignore[arg-type]


def for_task(encoder: Encoder, *, window: tuple[float, float] | None = None, slices: int = 1) -> Encoder:
    """The encoder with the window and the slices of a task in its preprocessing, and so in its fingerprint.

    Args:
        encoder: stays as it is; the weights are shared.
        window: (centre, width) in HU; None leaves the encoder's own.
        slices: 1; or 3 for a slice with its two neighbours. An encoder of three channels sees them as its channels; one
            of one channel encodes each, and the features lie side by side (3 D).

    Raises:
        VividError: a window or number of slices that cannot be meant.
    """
    own = encoder.preprocess
    if own.kind != "image" and slices != 1:
        raise VividError(f"slices={slices}: {encoder.source} encodes whole volumes; slices are of encoders of images")
    changes: dict[str, Any] = {} if window is None else {"window": window}
    if own.kind == "image":
        changes["slices"] = slices
    preprocess = replace(own, **changes)
    if preprocess == own:
        return encoder
    seen = copy.copy(encoder)
    seen.preprocess = preprocess
    return SliceEncoder(seen) if slices > 1 and slices > own.channels else seen


class SliceEncoder(Encoder):
    """A one-channel encoder that encodes each of several slices; features or tokens lie side by side, lowest first."""

    def __init__(self, encoder: Encoder) -> None:
        self.kind, self.architecture = encoder.kind, encoder.architecture
        super().__init__(
            encoder, encoder.preprocess, pool=encoder.pool, source=encoder.source, settings=encoder.settings
        )

    def forward(self, images: Tensor) -> Tensor:
        batch, slices = images.shape[:2]
        features = self.network(images.flatten(0, 1).unsqueeze(1))
        return torch.unflatten(features, 0, (batch, slices)).flatten(1, 2)


class TokenEncoder(Encoder):
    """The tokens (B, T, D) of an encoder as its features, those before the grid's included.

    Raises:
        VividError: it gives no tokens.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.kind, self.architecture = encoder.kind, encoder.architecture
        super().__init__(encoder, encoder.preprocess, pool="tokens", source=encoder.source, settings=encoder.settings)
        if len(self.shape) != 2:
            raise VividError(f"{self.source}: {self.architecture} gives no tokens to attend to; take --probe linear")

    def forward(self, images: Tensor) -> Tensor:
        return self.network.tokens(images).float()
