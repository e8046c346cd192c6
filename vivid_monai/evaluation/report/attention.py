"""Example images, and over them what each group of SPD's queries attends to."""

import base64
import io
from dataclasses import dataclass

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vivid_monai.evaluation.examples import Examples

SIDE = 224  # pixels of the longer side on the page
_STRONGEST = 0.75  # opacity of the map where it is highest


@dataclass(frozen=True)
class Overlay:
    """A group's map over the image. ``share``: of the attention that lies on patches, the rest is on CLS; ``peak``:
    how many times an even share the patch with the most attention gets."""

    group: int
    uri: str
    share: float
    peak: float


@dataclass(frozen=True)
class Example:
    """One image with its overlays and the cosines between groups, as (group, group, cosine), groups from 1."""

    id: str
    uri: str
    width: int
    height: int
    overlays: list[Overlay]
    cosines: list[tuple[int, int, float]]


def draw_examples(examples: Examples) -> list[Example]:
    """Everything the page shows of each example image."""
    drawn = []
    cosines = None if examples.maps is None else examples.cosines()
    for k, (key, pixels) in enumerate(zip(examples.ids, examples.images, strict=True)):
        image = Image.fromarray(pixels).convert("RGB")
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        overlays, pairs = [], []
        if examples.maps is not None and cosines is not None:
            maps = examples.maps[k]
            overlays = [_overlay(g, one, image) for g, one in enumerate(maps, start=1)]
            pairs = [(i + 1, j + 1, float(cosines[k, i, j])) for i in range(len(maps)) for j in range(i + 1, len(maps))]
        drawn.append(Example(str(key), _uri(image), image.width, image.height, overlays, pairs))
    return drawn


def _overlay(group: int, attention: NDArray[np.float32], image: Image.Image) -> Overlay:
    peak = float(attention.max()) * attention.size
    return Overlay(group, _uri(blend(image, attention)), float(attention.sum()), peak)


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
