"""Example images for the report, chosen by a hash of their ids, with maps of their findings and of SPD's groups."""

import base64
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, combinations, zip_longest
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder, TokenEncoder
from vivid_monai.evaluation.heatmaps import blend, colour_bar, heat_maps, is_faint, most_probable
from vivid_monai.evaluation.probes import AttentiveProbe
from vivid_monai.evaluation.probes.base import Probe
from vivid_monai.images.preprocess import plain_tensors
from vivid_monai.networks.spd import SPD
from vivid_monai.storage.files import whole_file
from vivid_monai.storage.skipped import Skipped
from vivid_monai.ums.states import NULL, PRESENT


class Heats(NamedTuple):
    """Maps of J findings of each of K images, as of :func:`~vivid_monai.evaluation.heatmaps.heat_maps`.

    Attributes:
        values: float32 (K, J, h, w), log odds.
        fields: str (K, J), the most probable findings, the first before the others.
        probabilities: float64 (K, J).
    """

    values: np.ndarray
    fields: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Examples:
    """K images as the encoder sees them, before normalisation.

    Attributes:
        images: uint8 (K, H, W); of three slices, the middle one.
        ids: str (K,).
        maps: float32 (K, G, h, w), each group's attention over the patches; what is missing to a sum of 1 lies on the
            CLS token. None where there was no SPD.
        heats: what speaks for the most probable findings of each; None where there was no probe to ask.
    """

    images: np.ndarray
    ids: np.ndarray
    maps: np.ndarray | None = None
    heats: Heats | None = None

    def save(self, path: str | PathLike[str]) -> None:
        """Write an .npz, whole or not at all. Raises VividError where the file cannot be written."""
        arrays = {"images": self.images, "ids": self.ids.astype(str)}
        if self.maps is not None:
            arrays["maps"] = self.maps
        if self.heats is not None:
            arrays |= {f"heat_{name}": value for name, value in self.heats._asdict().items()}
        with whole_file(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a file of :meth:`save`, unpickling nothing. Raises VividError where it cannot be read or is none."""
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                images, ids, maps = file["images"], file["ids"], file.get("maps")
                heats = Heats(*(file[f"heat_{name}"] for name in Heats._fields)) if "heat_values" in file else None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise VividError(f"{path}: no examples: {error}; run the evaluation again") from error
        shapes = [images.ndim == 3, ids.shape == images.shape[:1], images.dtype == np.uint8]
        if maps is not None:
            shapes += [maps.ndim == 4, len(maps) == len(images)]
        if heats is not None:
            shapes += [heats.values.ndim == 4, len(heats.values) == len(images)]
            shapes += [one.shape == heats.values.shape[:2] for one in heats[1:]]
        if not all(shapes):
            raise VividError(f"{path}: its arrays do not belong together; run the evaluation again")
        return cls(images, ids, maps, heats)


@torch.no_grad()
def collect_examples(
    encoder: Encoder,
    items: Sequence[dict[str, Any]],
    *,
    spd: SPD | None = None,
    n: int = 6,
    probe: Probe | None = None,
    fields: Sequence[str] = (),
    no_finding: str | None = None,
) -> Examples:
    """Run an encoder of images, its probe, and SPD on its tokens, on a few images.

    The images come in the order of a hash of their ids, by turns one with a field that is present and one without any,
    until there are n; where one kind is used up, the other goes on. Images that nothing is known of are not shown, and
    those that cannot be read are passed over.

    Args:
        encoder: its preprocessing makes the images.
        items: of :meth:`~vivid_monai.data.manifest.Manifest.items`.
        spd: as wide as the ViT; without it there are no maps.
        n: number of images.
        probe: fitted to the encoder's features, or for a probe of tokens to its tokens; without it there are no maps of
            findings.
        fields: the findings that it answers; no_finding: the one of them that is none.

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
    heats = _heats(encoder, inputs, probe, fields, no_finding) if probe else None
    return Examples(np.stack(images), np.array(ids, dtype=str), maps, heats)


def _heats(
    encoder: Encoder, inputs: Sequence[torch.Tensor], probe: Probe, fields: Sequence[str], no_finding: str | None
) -> Heats | None:
    features = TokenEncoder(encoder) if isinstance(probe, AttentiveProbe) else encoder
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    candidates = [i for i, name in enumerate(fields) if name != no_finding and i not in probe.untrained]
    if not candidates:
        return None

    def answer(images: torch.Tensor) -> np.ndarray:
        return probe.probabilities(features(images.to(device)).float().cpu().numpy())

    values, names, probabilities = [], [], []
    for image in inputs:
        own = answer(image[None])[0]
        shown = most_probable(own, candidates)
        values.append(heat_maps(answer, image, shown))
        names.append([fields[i] for i in shown])
        probabilities.append(own[shown])
    return Heats(np.stack(values), np.array(names, dtype=str), np.stack(probabilities))


def _in_order(items: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    hashed = sorted(items, key=lambda item: blake2b(str(item["id"]).encode()).digest())
    known = [item for item in hashed if (np.asarray(item["states"]) != NULL).any()]
    with_finding = [item for item in known if PRESENT in item["states"]]
    without = [item for item in known if PRESENT not in item["states"]]
    return (item for item in chain.from_iterable(zip_longest(with_finding, without)) if item is not None)


SIDE = 224  # pixels of the longer side on the page


def draw_examples(examples: Examples) -> list[dict[str, Any]]:
    """What the page shows of each example image.

    Returns:
        id, uri, width and height of each; "overlays" of the groups, each with its uri, the "share" of the attention
        that lies on patches (the rest is on CLS) and its "peak": how many times an even share the patch with the most
        attention gets; "heats" of findings, each with its field, probability, "top" (log odds of its strongest cell)
        and uri, None where the map is too faint to be shown; "cosines" between groups, as (group, group,
        cosine), groups from 1.
    """
    drawn = []
    maps = np.empty((len(examples.ids), 0, 1, 1)) if examples.maps is None else examples.maps
    heats: list[Any] = [((), (), ())] * len(maps) if examples.heats is None else list(zip(*examples.heats, strict=True))
    together = zip(examples.ids, examples.images, maps, cosines(maps), heats, strict=True)
    for key, pixels, groups, cosine, own in together:
        image = Image.fromarray(pixels).convert("RGB")
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        overlays = [
            {"uri": _uri(blend(image, a)), "share": float(a.sum()), "peak": float(a.max()) * a.size} for a in groups
        ]
        findings = [
            {
                "field": str(field),
                "probability": float(probability),
                "top": float(heat.max()),
                "uri": None if is_faint(heat) else _uri(blend(image, heat)),
            }
            for heat, field, probability in zip(*own, strict=True)
        ]
        pairs = [(i + 1, j + 1, float(cosine[i, j])) for i, j in combinations(range(len(groups)), 2)]
        shown = {"id": str(key), "uri": _uri(image), "width": image.width, "height": image.height}
        drawn.append({**shown, "overlays": overlays, "heats": findings, "cosines": pairs})
    return drawn


def cosines(maps: np.ndarray) -> np.ndarray:
    """Cosines between the groups of maps (K, G, h, w), as (K, G, G), the CLS token included as in SPD's penalty."""
    n_images, groups, height, width = maps.shape
    flat = maps.reshape(n_images, groups, height * width).astype(np.float64)
    tokens = np.concatenate([1 - flat.sum(-1, keepdims=True), flat], axis=-1)
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    return unit @ unit.swapaxes(1, 2)


def draw_key() -> str:
    """The colours of a map, from none to the strongest cell, as an address."""
    return _uri(colour_bar(160, 12))


def _uri(image: Image.Image) -> str:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()
