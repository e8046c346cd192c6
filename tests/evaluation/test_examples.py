"""Example images: which ones are chosen, what is kept of them, and that the maps lie where the attention is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import TokenEncoder, VividEncoder, load_encoder
from vivid_monai.evaluation.examples import Examples, Heats, collect_examples, cosines
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.heatmaps import heat_maps
from vivid_monai.evaluation.probes import LinearProbe, fit_probe
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT


@pytest.fixture(scope="module")
def encoder() -> VividEncoder:
    torch.manual_seed(0)
    vit = ViT(img_size=(32, 32), patch_size=8, preset="micro")
    return VividEncoder(vit, Preprocess(size=32))


@pytest.fixture
def spd() -> SPD:
    torch.manual_seed(1)
    return SPD(128, groups=3, queries=2, heads=4, dropout=0.5)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Twenty images: six with a finding, eight without, six of which nothing is known."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    made = []
    for i in range(20):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (32, 32)).astype(np.uint8)).save(path)
        states = [1, 0] if i < 6 else [0, 2] if i < 14 else [-1, -1]
        made.append({"image": str(path), "id": f"id{i}", "patient_id": f"p{i}", "states": np.array(states)})
    return made


def number(key: str) -> int:
    return int(key.removeprefix("id"))


def test_by_turns_with_and_without_a_finding(encoder: VividEncoder, items: list[dict]) -> None:
    ids = collect_examples(encoder, items, n=6).ids.tolist()
    assert [number(key) < 6 for key in ids] == [True, False] * 3
    all_of_them = collect_examples(encoder, items, n=100).ids.tolist()
    assert sorted(map(number, all_of_them)) == list(range(14))
    assert all_of_them[:6] == ids


def test_the_choice_hangs_on_the_ids_alone(encoder: VividEncoder, items: list[dict]) -> None:
    first = collect_examples(encoder, items, n=4)
    assert np.array_equal(first.ids, collect_examples(encoder, items[::-1], n=4).ids)
    renamed = [{**item, "id": f"other{i}"} for i, item in enumerate(items)]
    chosen = [int(key.removeprefix("other")) for key in collect_examples(encoder, renamed, n=4).ids]
    assert chosen != [number(key) for key in first.ids]


def test_images_are_what_the_encoder_sees(encoder: VividEncoder, items: list[dict]) -> None:
    got = collect_examples(encoder, items, n=3)
    assert (got.images.dtype, got.images.shape, got.maps) == (np.uint8, (3, 32, 32), None)
    for key, image in zip(got.ids, got.images, strict=True):
        assert np.array_equal(image, np.asarray(Image.open(items[number(key)]["image"])))


def test_maps_are_the_attention_over_the_patches(encoder: VividEncoder, items: list[dict], spd: SPD) -> None:
    got = collect_examples(encoder, items, spd=spd, n=3)
    assert got.maps is not None
    assert (got.maps.dtype, got.maps.shape) == (np.float32, (3, 3, 4, 4))
    images = [encoder.preprocess.transform()({"image": items[number(key)]["image"]})["image"] for key in got.ids]
    with torch.no_grad():
        output = spd(encoder.network(torch.stack([image.as_tensor() for image in images])))
    np.testing.assert_allclose(got.maps[:, :, 2, 1], output.attention[:, :, 1 + 2 * 4 + 1], rtol=1e-4)
    np.testing.assert_allclose(1 - got.maps.sum((2, 3)), output.attention[:, :, 0], atol=1e-5)
    pairs = np.abs(cosines(got.maps)[:, *np.triu_indices(3, 1)])
    np.testing.assert_allclose(pairs.mean(1), output.penalty, rtol=1e-4)


def test_an_image_that_cannot_be_read_is_passed_over(encoder: VividEncoder, items: list[dict], tmp_path: Path) -> None:
    first = collect_examples(encoder, items, n=1).ids[0]
    broken = [{**item, "image": str(tmp_path / "no.png")} if item["id"] == first else item for item in items]
    ids = collect_examples(encoder, broken, n=3).ids.tolist()
    assert len(ids) == 3
    assert first not in ids
    with pytest.raises(VividError, match="no example to show"):
        collect_examples(encoder, [{**item, "image": str(tmp_path / "no.png")} for item in items[:2]])
    with pytest.raises(VividError, match="nothing is known"):
        collect_examples(encoder, items[14:])


def test_findings_are_asked_of_the_probe(encoder: VividEncoder, items: list[dict]) -> None:
    """Of four findings one is none, and the probe was not fitted to another; the maps are those of the rest."""
    weight = np.zeros((4, encoder.dim))
    weight[1:] = np.random.default_rng(1).normal(size=(3, encoder.dim))
    probe = LinearProbe(weight=weight, bias=np.array([9.0, 1.0, 0.0, 5.0]), untrained=(0,))
    fields = ["untrained", "a", "b", "No Finding"]
    got = collect_examples(encoder, items, n=3, probe=probe, fields=fields, no_finding="No Finding").heats
    assert got is not None
    assert got.values.shape == (3, 2, 7, 7)
    assert {*got.fields.ravel()} == {"a", "b"}
    assert (got.probabilities[:, 0] >= got.probabilities[:, 1]).all()
    ids = collect_examples(encoder, items, n=3).ids
    image = encoder.preprocess.transform()({"image": items[number(ids[0])]["image"]})["image"].as_tensor()
    with torch.no_grad():
        own = probe.probabilities(encoder(image[None]).numpy())[0]
        maps = heat_maps(lambda x: probe.probabilities(encoder(x).numpy()), image, [1, 2])
    order = [fields.index(name) for name in got.fields[0]]
    np.testing.assert_allclose(got.probabilities[0], own[order], rtol=1e-5)
    np.testing.assert_allclose(got.values[0], maps[[i - 1 for i in order]], rtol=1e-3, atol=1e-4)
    nothing = LinearProbe(weight=weight, bias=np.zeros(4), untrained=(0, 1, 2))
    assert collect_examples(encoder, items, n=1, probe=nothing, fields=fields, no_finding="No Finding").heats is None


def test_an_spd_of_another_encoder_is_refused(encoder: VividEncoder, items: list[dict]) -> None:
    with pytest.raises(VividError, match="width 64, the ViT gives 128"):
        collect_examples(encoder, items, spd=SPD(64))


@pytest.mark.parametrize("maps", [np.ones((2, 3, 4, 4), np.float32) / 20, None])
def test_round_trip(tmp_path: Path, maps: np.ndarray | None) -> None:
    examples = Examples(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.array(["a", "bc"]), maps)
    examples.save(tmp_path / "examples.npz")
    again = Examples.load(tmp_path / "examples.npz")
    assert np.array_equal(again.images, examples.images)
    assert again.ids.tolist() == ["a", "bc"]
    assert again.maps is None if maps is None else np.array_equal(again.maps, maps)
    assert again.heats is None
    heats = Heats(np.ones((2, 1, 7, 7), np.float32), np.array([["a"], ["Ödem"]]), np.array([[0.5], [0.25]]))
    replace(examples, heats=heats).save(tmp_path / "examples.npz")
    found = Examples.load(tmp_path / "examples.npz").heats
    assert found is not None
    assert all(np.array_equal(one, other) for one, other in zip(found, heats, strict=True))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.npz"
    images, ids = np.zeros((2, 4, 4), np.uint8), np.array(["a", "b"])
    for arrays in (
        {"images": images},
        {"images": images, "ids": ids[:1]},
        {"images": images.astype(float), "ids": ids},
        {"images": images, "ids": ids, "maps": np.zeros((1, 2, 3, 3))},
        {"images": images, "ids": ids, "heat_values": np.zeros((2, 1, 7, 7))},
        {"images": images, "ids": ids, "heat_values": np.zeros((2, 1, 7, 7)), "heat_fields": np.array([["a"]])}
        | {"heat_probabilities": np.zeros((2, 1))},
        {"images": images, "ids": np.array([{"a": 1}, None], dtype=object)},
    ):
        np.savez(path, **arrays)
        with pytest.raises(VividError, match=str(path)):
            Examples.load(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(VividError, match="no examples"):
        Examples.load(path)
    with pytest.raises(VividError, match="no examples"):
        Examples.load(tmp_path / "other.npz")


@pytest.mark.parametrize("probe", ["attentive", "knn"])
def test_other_probes_and_encoders_have_maps_of_findings(items: list[dict], probe: str) -> None:
    seen = (
        load_encoder("thumbnails:8")
        if probe == "knn"
        else VividEncoder(ViT(img_size=32, patch_size=8, preset="micro"), Preprocess(size=32))
    )
    read = TokenEncoder(seen) if probe == "attentive" else seen
    rng = np.random.default_rng(0)
    x, states = rng.normal(size=(40, *read.shape)).astype(np.float32), rng.integers(0, 2, (40, 2))
    known = Features(x, states, np.arange(40).astype(str), np.arange(40).astype(str))
    options = {"epochs": 1, "lrs": [1e-3], "weight_decays": [0.0]} if probe == "attentive" else {}
    fitted = fit_probe(known, known, kind=probe, exclusive=False, seed=0, **options)
    heats = collect_examples(seen, items, n=2, probe=fitted, fields=["a", "b"]).heats
    assert heats is not None
    assert heats.values.shape == (2, 2, 7, 7)
    assert np.isfinite(heats.values).all()
    assert np.abs(heats.values).max() > 0
