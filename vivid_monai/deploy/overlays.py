"""Pictures of what speaks for a finding, over the image as it lies in its file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vivid_monai.evaluation.heatmaps import blend, colour_bar, is_faint
from vivid_monai.images.geometry import resample
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.images.read import read_image
from vivid_monai.storage.files import whole_file

NOTE = "log odds lost when a cell is covered; no outline of a disease"
_BACK, _INK, _QUIET = (0, 0, 0), (255, 255, 255), (170, 170, 170)


class Heat(NamedTuple):
    """A finding with its probability and its map (h, w) of log odds."""

    finding: str
    probability: float
    values: NDArray[np.float32]


def save_overlay(source: str | Path, heats: Sequence[Heat], preprocess: Preprocess, path: Path) -> None:
    """Write a PNG with a panel for each finding: the file's image at its own resolution under the map, and a legend.

    What the network did not see of the image has no map.

    Raises:
        ImageError: the file cannot be read any more.
        VividError: the picture cannot be written.
    """
    pixels = read_image(source, slices=preprocess.slices, window=preprocess.window)[preprocess.slices // 2]
    grey = Image.fromarray((pixels * 255).round().astype(np.uint8)).convert("RGB")
    panels = [_panel(grey, heat, to_original(heat.values, preprocess, pixels.shape)) for heat in heats]
    gap = panels[0].height // 50
    sheet = Image.new("RGB", (sum(one.width + gap for one in panels) - gap, panels[0].height), _BACK)
    left = 0
    for one in panels:
        sheet.paste(one, (left, 0))
        left += one.width + gap
    with whole_file(path) as part:
        sheet.save(part, "PNG", compress_level=3)


def to_original(values: NDArray[np.float32], preprocess: Preprocess, spatial: Sequence[int]) -> NDArray[np.float32]:
    """A map (h, w) of the network's input on the pixels of an image of height and width ``spatial``; 0 where the
    network saw nothing of it."""
    side = (preprocess.size, preprocess.size)
    seen = np.asarray(Image.fromarray(values).resize(side[::-1], Image.Resampling.BILINEAR))
    back = np.linalg.inv(preprocess.matrix(spatial))
    return resample(torch.from_numpy(seen.copy())[None], back, spatial, mode="bilinear")[0].numpy()


def _panel(grey: Image.Image, heat: Heat, values: NDArray[np.float32]) -> Image.Image:
    """One finding: its name and probability, the image under the map, the range of the colours."""
    size = min(64, max(13, grey.height // 40))
    font, small = _font(size), _font(max(11, size * 3 // 4))
    faint = is_faint(heat.values)
    head = f"{heat.finding}  {heat.probability:.2f}"
    low, high = "0", f"+{heat.values.max():.2f}"
    told = "no part of the image speaks for it" if faint else NOTE
    edge = size // 2
    width = max(grey.width, *(round(f.getlength(text)) + 2 * edge for f, text in ((font, head), (small, told))))
    line = round(1.5 * size)
    panel = Image.new("RGB", (width, grey.height + 3 * line), _BACK)
    draw = ImageDraw.Draw(panel)
    draw.text((edge, line // 2), head, _INK, font, anchor="lm")
    panel.paste(grey if faint else blend(grey, values, highest=float(heat.values.max())), (0, line))
    below = line + grey.height
    if not faint:
        ends = [round(small.getlength(text)) for text in (low, high)]
        bar = colour_bar(max(20, min(width - 4 * edge - sum(ends), 12 * size)), size // 2)
        left = edge + ends[0] + edge
        draw.text((edge, below + line // 2), low, _INK, small, anchor="lm")
        panel.paste(bar, (left, below + line // 2 - bar.height // 2))
        draw.text((left + bar.width + edge, below + line // 2), high, _INK, small, anchor="lm")
    draw.text((edge, below + line // 2 + (0 if faint else line)), told, _QUIET, small, anchor="lm")
    return panel


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
