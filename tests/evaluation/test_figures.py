"""What the figures draw: the metrics' own bins and curves, in one name space, and maps where the attention is."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from vivid_monai.evaluation.examples import Examples, draw_examples
from vivid_monai.evaluation.figures import INK, SIDE, Line, figure_of, forest, in_style, reliability_bins, roc, to_svg
from vivid_monai.evaluation.results import Row
from vivid_monai.metrics import statistics as sums
from vivid_monai.metrics.masked import masked_auroc

RNG = np.random.default_rng(0)
STATES = RNG.choice([-1, 0, 1, 2], 400, p=[0.1, 0.5, 0.3, 0.1])
SCORES = np.clip(0.3 * (STATES == 1) + RNG.random(400) * 0.7, 0, 1)


def test_bins_are_those_of_the_calibration_error() -> None:
    counts, probability, present = reliability_bins(SCORES[None], STATES)
    counted = (STATES == 0) | (STATES == 1)
    assert counts.sum() == counted.sum()
    gaps = np.abs(present - probability)[counts > 0]
    error = sums.ece(SCORES, STATES, np.arange(400))(np.ones((1, 400), int))[0]
    assert np.isclose((counts[counts > 0] * gaps).sum() / counted.sum(), error)
    twice, _, again = reliability_bins(np.stack([SCORES, SCORES]), STATES)
    assert np.array_equal(twice, 2 * counts)
    np.testing.assert_allclose(again, present)


def test_the_area_under_the_drawn_curve_is_the_auroc() -> None:
    root = ElementTree.fromstring(roc([SCORES[None]], STATES, "roc0", "title"))
    lines = [re.findall(r"[-\d.]+ [-\d.]+", one.get("d", "")) for one in root.iter() if one.tag.endswith("path")]
    points = np.array([[float(n) for n in point.split()] for point in max(lines, key=len)])
    low, high = points.min(0), points.max(0)
    x, y = (points[:, 0] - low[0]) / (high - low)[0], (high[1] - points[:, 1]) / (high - low)[1]
    assert high[0] - low[0] > 0.75 * SIDE
    assert np.isclose(np.trapezoid(y, x), masked_auroc(SCORES[:, None], STATES[:, None])[0], atol=0.01)


@in_style
def drawn(name: str) -> str:
    figure = figure_of(100, 50)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot([0, 1], [0, 1], marker="o", color=INK)
    axes.text(0, 0, 'a<b> "#c" $x$ url(#d) #010001', color=INK)
    return to_svg(figure, "panel", name, 'said "so"')


def test_a_figure_follows_the_page_and_keeps_to_itself() -> None:
    svg = drawn("name")
    root = ElementTree.fromstring(svg)
    assert (root.get("aria-label"), root.get("class")) == ('said "so"', "panel")
    assert 'a<b> "#c" $x$ url(#d) #010001' in [one.text for one in root.iter()]
    assert "var(--ink)" in svg
    assert svg.count("#0100") == 1
    assert not [one for one in root.iter() if one.tag.endswith(("style", "metadata"))]
    ids = {one.get("id") for one in root.iter() if one.get("id")}
    references = re.findall(r'(?:href="|url\()#([\w-]+)', svg.replace("url(#d)", ""))
    assert references
    assert set(references) == ids
    others = {one.get("id") for one in ElementTree.fromstring(drawn("other")).iter() if one.get("id")}
    assert len(others) == len(ids)
    assert not ids & others


def test_a_forest_draws_every_value_and_nothing_where_there_is_none() -> None:
    row = Row("auroc", "a", "encoder", None, None)
    whole = row._replace(value=0.7, low=0.6, high=0.8)
    lines = [Line("a", [whole, row]), Line("b", [row._replace(value=0.9), row._replace(value=0.4)])]
    svg = forest(lines, "f", "title")
    assert svg is not None
    assert len(re.findall(r"<use[^>]*var\(--s0\)", svg)) == 2
    assert len(re.findall(r"<use[^>]*var\(--s1\)", svg)) == 1
    assert forest([Line("a", [row])], "f", "title") is None


def test_maps_are_drawn_where_the_attention_is() -> None:
    maps = np.zeros((1, 2, 4, 4), np.float32)
    maps[0, 0, 0, 3], maps[0, 1] = 0.5, 0.05
    (example,) = draw_examples(Examples(np.full((1, 64, 64), 100, np.uint8), np.array(["x"]), maps))
    sharp, flat = example["overlays"]
    assert (sharp["share"], sharp["peak"]) == (0.5, 8)
    assert np.isclose([flat["share"], flat["peak"]], [0.8, 0.8]).all()
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(sharp["uri"].split(",")[1]))), dtype=int)
    changed = np.abs(image - 100).sum(2)
    assert changed[:16, 48:].mean() > 100
    assert changed[32:, :32].mean() < 10
    cls = np.array([0.5, 0.2])
    cosine = (cls.prod() + 0.5 * 0.05) / np.sqrt((0.5**2 + 0.5**2) * (0.2**2 + 16 * 0.05**2))
    assert example["cosines"][0][:2] == (1, 2)
    assert np.isclose(example["cosines"][0][2], cosine)
