"""Example images for the report, chosen by a hash of their ids, with the attention maps of SPD's groups."""

import base64
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, combinations, zip_longest
from os import PathLike
from pathlib import Path
from typing import Any, Self

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import VividEncoder
from vivid_monai.images.preprocess import plain_tensors
from vivid_monai.networks.spd import SPD
from vivid_monai.storage.files import whole_file
from vivid_monai.storage.skipped import Skipped
from vivid_monai.ums.states import NULL, PRESENT


@dataclass(frozen=True)
class Examples:
    """K images as the encoder sees them, before normalisation.

    Attributes:
        images: uint8 (K, H, W); of three slices, the middle one.
        ids: str (K,).
        maps: float32 (K, G, h, w), each group's attention over the patches; what is missing to a sum of 1 lies on the
            CLS token. None where there was no SPD.
    """

    images: np.ndarray
    ids: np.ndarray
    maps: np.ndarray | None = None

    def save(self, path: str | PathLike[str]) -> None:
        """Write an .npz, whole or not at all. Raises VividError where the file cannot be written."""
        arrays = {"images": self.images, "ids": self.ids.astype(str)}
        if self.maps is not None:
            arrays["maps"] = self.maps
        with whole_file(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a file of :meth:`save`, unpickling nothing. Raises VividError where it cannot be read or is none."""
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                images, ids, maps = file["images"], file["ids"], file.get("maps")
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise VividError(f"{path}: no examples: {error}; run the evaluation again") from error
        shapes = [images.ndim == 3, ids.shape == images.shape[:1], images.dtype == np.uint8]
        if maps is not None:
            shapes += [maps.ndim == 4, len(maps) == len(images)]
        if not all(shapes):
            raise VividError(f"{path}: its arrays do not belong together; run the evaluation again")
        return cls(images, ids, maps)


@torch.no_grad()
def collect_examples(
    encoder: VividEncoder, items: Sequence[dict[str, Any]], *, spd: SPD | None = None, n: int = 6
) -> Examples:
    """Run our ViT, and SPD on its tokens, on a few images.

    The images come in the order of a hash of their ids, by turns one with a field that is present and one without any,
    until there are n; where one kind is used up, the other goes on. Images that nothing is known of are not shown, and
    those that cannot be read are passed over.

    Args:
        encoder: its preprocessing makes the images.
        items: of :meth:`~vivid_monai.data.manifest.Manifest.items`.
        spd: as wide as the ViT; without it there are no maps.
        n: number of images.

    Raises:
        VividError: no image to show, or an SPD of another width.
    """
    if spd is not None and spd.dim != encoder.network.embed_dim:
        raise VividError(
            f"the SPD reads tokens of width {spd.dim}, the ViT gives {encoder.network.embed_dim}: "
            "give the file that was written with this encoder"
        )
    preprocess = encoder.preprocess
    to_input = preprocess.transform(stages=["unit", "normal"])
    images: list[np.ndarray] = []
    inputs: list[torch.Tensor] = []
    ids: list[str] = []
    for item in _in_order(items):
        if len(ids) == n:
            break
        pixels = ImageDataset([item], preprocess).pixels(0)
        if isinstance(pixels, Skipped):
            continue
        with plain_tensors():
            inputs.append(to_input({"image": pixels})["image"])
        images.append(pixels[preprocess.slices // 2].numpy())
        ids.append(str(item["id"]))
    if not ids:
        raise VividError("there is no example to show: no test image can be read, or nothing is known of any of them")
    maps = None
    if spd is not None:
        tokens = encoder.network(torch.stack(inputs).to(next(encoder.parameters()).device))
        attention = spd(tokens.to(spd.queries.device)).attention.float().cpu()
        maps = attention[:, :, encoder.network.prefix :].unflatten(2, tuple(encoder.network.grid)).numpy()
    return Examples(np.stack(images), np.array(ids, dtype=str), maps)


def _in_order(items: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    hashed = sorted(items, key=lambda item: blake2b(str(item["id"]).encode()).digest())
    known = [item for item in hashed if (np.asarray(item["states"]) != NULL).any()]
    with_finding = [item for item in known if PRESENT in item["states"]]
    without = [item for item in known if PRESENT not in item["states"]]
    return (item for item in chain.from_iterable(zip_longest(with_finding, without)) if item is not None)


SIDE = 224  # pixels of the longer side on the page
_STRONGEST = 0.75  # opacity of the map where it is highest


def draw_examples(examples: Examples) -> list[dict[str, Any]]:
    """What the page shows of each example image.

    Returns:
        id, uri, width and height of each; "overlays" of the groups, each with its uri, the "share" of the attention
        that lies on patches (the rest is on CLS) and its "peak": how many times an even share the patch with the most
        attention gets; "cosines" between groups, as (group, group, cosine), groups from 1.
    """
    drawn = []
    maps = np.empty((len(examples.ids), 0, 1, 1)) if examples.maps is None else examples.maps
    for key, pixels, groups, cosine in zip(examples.ids, examples.images, maps, cosines(maps), strict=True):
        image = Image.fromarray(pixels).convert("RGB")
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        overlays = [
            {"uri": _uri(blend(image, a)), "share": float(a.sum()), "peak": float(a.max()) * a.size} for a in groups
        ]
        pairs = [(i + 1, j + 1, float(cosine[i, j])) for i, j in combinations(range(len(groups)), 2)]
        shown = {"id": str(key), "uri": _uri(image), "width": image.width, "height": image.height}
        drawn.append({**shown, "overlays": overlays, "cosines": pairs})
    return drawn


def cosines(maps: np.ndarray) -> np.ndarray:
    """Cosines between the groups of maps (K, G, h, w), as (K, G, G), the CLS token included as in SPD's penalty."""
    n_images, groups, height, width = maps.shape
    flat = maps.reshape(n_images, groups, height * width).astype(np.float64)
    tokens = np.concatenate([1 - flat.sum(-1, keepdims=True), flat], axis=-1)
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    return unit @ unit.swapaxes(1, 2)


def blend(image: Image.Image, attention: NDArray[np.float32]) -> Image.Image:
    """An RGB image with a map (h, w) of its patches over it, the clearer the higher, up to the map's maximum."""
    highest = float(attention.max())
    relative = attention / highest if highest > 0 else attention
    smooth = Image.fromarray(relative.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    values = np.asarray(smooth)
    colour = matplotlib.colormaps["inferno"](values, bytes=True)[..., :3]
    opacity = _STRONGEST * np.sqrt(values)[..., None]
    mixed = (1 - opacity) * np.asarray(image) + opacity * colour
    return Image.fromarray(mixed.round().astype(np.uint8))


def _uri(image: Image.Image) -> str:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()
