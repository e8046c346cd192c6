"""Maps of findings: the cells that matter and no others, whatever the model; nothing where there is nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import adaptive_max_pool2d

from tests.deploy.small import SIZE, make_classifier
from tests.evaluation.small import encoder
from vivid_monai.deploy.model import BundleModel
from vivid_monai.evaluation.heatmaps import FAINT, GRID, blend, heat_maps, is_faint, most_probable
from vivid_monai.evaluation.probes import LinearProbe
from vivid_monai.phantom import generate

CELL = 4


def one_cell(row: int, column: int, weight: float = 3.0):
    """A model whose second finding asks how bright one cell is, and whose first asks nothing."""

    def probabilities(images: torch.Tensor) -> np.ndarray:
        part = images[:, 0, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        odds = weight * part.mean((1, 2)).double()
        return torch.stack([torch.full_like(odds, 0.3), odds.sigmoid()], 1).numpy()

    return probabilities


def picture(seed: int = 0, side: int = GRID * CELL) -> torch.Tensor:
    return torch.rand(1, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch_size", [1, 16, 100])
def test_the_cell_that_matters_has_all_of_the_map(batch_size):
    image = picture()
    image[0, 2 * CELL : 3 * CELL, 5 * CELL : 6 * CELL] = 2.0
    nothing, heat = heat_maps(one_cell(2, 5), image, [0, 1], batch_size=batch_size)
    assert is_faint(nothing)
    assert np.count_nonzero(nothing) == 0
    assert np.unravel_index(heat.argmax(), heat.shape) == (2, 5)
    assert np.count_nonzero(heat) == 1
    assert heat.max() == pytest.approx(3 * (2 - float(image.mean())), rel=1e-5)
    assert not is_faint(heat)
    against = heat_maps(one_cell(2, 5, weight=-3.0), image, [1])[0]
    assert is_faint(against), "what speaks against a finding is no evidence for it"
    assert against.min() == pytest.approx(-heat.max(), rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"pool": "cls"}, {"pool": "mean"}, {"pool": "spd"}, {"stem": "conv", "pool": "cls+mean"}]
)
def test_every_read_out_has_maps_and_an_even_image_has_none(options):
    one = make_classifier(**options)

    @torch.no_grad()
    def probabilities(images):
        return one(images).sigmoid().numpy()

    assert not is_faint(heat_maps(probabilities, torch.randn(1, SIZE, SIZE), [0, 3]))
    for grey in (-1.0, 0.0, 0.7):
        flat = heat_maps(probabilities, torch.full((1, SIZE, SIZE), grey), [0, 3])
        assert np.abs(flat).max() < FAINT / 100


def test_a_finding_that_the_head_was_not_fitted_to_has_none():
    made = encoder()
    rng = np.random.default_rng(0)
    weight = np.stack([rng.normal(size=made.dim), np.zeros(made.dim)])
    probe = LinearProbe(weight=weight, bias=np.zeros(2))

    def probabilities(images):
        with torch.no_grad():
            return probe.probabilities(made(images).numpy())

    fitted, untrained = heat_maps(probabilities, torch.randn(1, 16, 16), [0, 1])
    assert np.abs(fitted).max() > FAINT
    assert np.abs(untrained).max() == 0


def test_sides_that_are_no_multiple_are_covered_whole():
    image = torch.rand(3, 30, 17)
    seen = []

    def probabilities(images):
        seen.extend(images != image)
        return np.full((len(images), 1), 0.5)

    assert heat_maps(probabilities, image, [0]).shape == (1, GRID, GRID)
    changed = torch.stack(seen).any(1)
    assert len(changed) == GRID**2 + 1
    assert not changed[0].any()
    assert torch.equal(changed.sum(0), torch.ones(30, 17, dtype=torch.long))


def test_the_most_probable_are_shown():
    assert most_probable(np.array([0.1, 0.9, 0.5, 0.7]), [0, 2, 3]) == [3, 2]
    assert most_probable(np.array([0.1, 0.9]), [0]) == [0]


def test_a_map_is_bright_where_it_is_high_and_clear_where_it_is_not_positive():
    values = np.full((7, 7), -1.0, np.float32)
    values[0, 6] = 0.4
    pixels = np.asarray(blend(Image.new("RGB", (70, 70), (80, 80, 80)), values)).astype(int)
    assert pixels[:5, -5:, 0].mean() > 170
    assert (pixels[30:, :40] == 80).all()


def test_the_committed_bundle_is_led_by_what_is_there():
    """On phantoms it never saw, the strongest cell lies on the finding far more often than a cell drawn at random."""
    model = BundleModel(Path(__file__).parents[2] / "bundle" / "chest_phantom_vit_classification")
    hits, chances = [], []
    for index in range(30):
        phantom = generate(123, index, size=model.preprocess.size)
        image = (torch.from_numpy(phantom.image)[None] / 255 - model.preprocess.mean[0]) / model.preprocess.std[0]
        seen = [name for name in model.fields if name in phantom.masks and phantom.masks[name].any()]
        maps = heat_maps(model.probabilities, image, [model.fields.index(name) for name in seen])
        for name, heat in zip(seen, maps, strict=True):
            cells = adaptive_max_pool2d(torch.from_numpy(phantom.masks[name])[None].float(), GRID)[0].numpy() > 0
            hits.append(cells.flat[heat.argmax()])
            chances.append(cells.mean())
    assert len(hits) > 30
    assert np.mean(hits) > 2 * np.mean(chances), (np.mean(hits), np.mean(chances), len(hits))
