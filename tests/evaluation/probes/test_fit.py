"""All kinds of probe: what is checked, what the seed changes, and probes on disk."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.evaluation.made_features import classes, findings
from vivid_monai.errors import VividError
from vivid_monai.evaluation.probes import fit_probe, load_probe, save_probe

KINDS = ("linear", "knn", "published")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exclusive", [False, True])
def test_every_kind_describes_itself_in_json(kind, exclusive):
    make = classes if exclusive else findings
    options = {"steps": 20} if kind == "published" else {}
    probe = fit_probe(make(seed=1), make(seed=2), kind=kind, exclusive=exclusive, seed=3, **options)
    told = json.loads(json.dumps(probe.description, allow_nan=False))
    assert (told["kind"], told["exclusive"], told["seed"], told["n_train_images"]) == (kind, exclusive, 3, 300)
    assert told["n_train_patients"] == 150
    assert told["seconds"] > 0
    assert isinstance(told["warnings"], list)
    p = probe.probabilities(make(seed=3).x)
    assert p.shape == make(seed=3).states.shape
    assert p.dtype == np.float64
    assert ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_all_patients_make_all_seeds_agree_bit_for_bit(kind):
    train, validation = findings(seed=1), findings(seed=2)
    first, second = (fit_probe(train, validation, kind=kind, seed=seed).probabilities(validation.x) for seed in (0, 7))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_patients_is_drawn_by_the_seed(kind):
    train, validation = findings(seed=1), findings(seed=2)
    options = {"steps": 20} if kind == "published" else {}

    def fit(seed):
        return fit_probe(train, validation, kind=kind, seed=seed, train_fraction=0.5, **options)

    first, again, other = fit(0), fit(0), fit(1)
    assert first.description["n_train_patients"] == 75
    assert first.description["n_train_images"] == 150, "patients are drawn whole"
    assert first.description["n_validation_images"] == 300
    assert first.probabilities(validation.x).tobytes() == again.probabilities(validation.x).tobytes()
    assert first.probabilities(validation.x).tobytes() != other.probabilities(validation.x).tobytes()


def test_only_the_drawn_rows_count():
    train, validation = findings(seed=1), findings(seed=2)
    share = fit_probe(train, validation, train_fraction=0.2, seed=5)
    drawn = np.random.default_rng(5).permutation(np.unique(train.patients))[:30]
    rows = np.isin(train.patients, drawn)
    alone = replace(train, **{name: getattr(train, name)[rows] for name in ("x", "states", "patients", "ids")})
    np.testing.assert_array_equal(share.weight, fit_probe(alone, validation).weight)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_a_share_that_is_none_is_refused(fraction):
    with pytest.raises(VividError, match="train_fraction"):
        fit_probe(findings(seed=1), findings(seed=2), train_fraction=fraction)


def test_unknown_kinds_and_options_are_named():
    train, validation = findings(seed=1), findings(seed=2)
    with pytest.raises(VividError, match="'svm' is unknown: choose one of linear, knn, published"):
        fit_probe(train, validation, kind="svm")
    with pytest.raises(VividError, match="no option 'neighbours'; it has strengths"):
        fit_probe(train, validation, neighbours=[3])


@pytest.mark.parametrize("wrong", [(1, 1, 0, 0), (0, 0, 0, 0), (1, 0, -1, 0), (1, 0, 2, 0)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_row_without_exactly_one_class_is_named(wrong, kind, side):
    parts = [classes(seed=1), classes(seed=2)]
    parts[side].states[17] = wrong
    name = ("training", "validation")[side]
    with pytest.raises(VividError, match=f"{name} image s{side + 1}-i17 has the states"):
        fit_probe(*parts, kind=kind, exclusive=True)


def test_features_that_do_not_fit_are_refused():
    train, validation = findings(seed=1), findings(seed=2)
    with pytest.raises(VividError, match="do not go together: features 8 and 5"):
        fit_probe(train, findings(seed=2, d=5))
    with pytest.raises(VividError, match="different encoders"):
        fit_probe(train, replace(validation, encoder="def"))
    with pytest.raises(VividError, match="not usable"):
        fit_probe(train, replace(validation, ids=validation.ids[1:]))
    train.x[3, 2] = np.inf
    with pytest.raises(VividError, match="image s1-i3 are not finite"):
        fit_probe(train, validation)


NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def probe():
    train = findings(seed=1)
    train.states[train.states[:, 2] == 1, 2] = 0
    return fit_probe(train, findings(seed=2))


def test_a_stored_probe_is_the_same(probe, tmp_path):
    save_probe(probe, tmp_path / "folder" / "probe.safetensors", fields=NAMES)
    read, fields = load_probe(tmp_path / "folder" / "probe.safetensors", encoder="abc")
    x = findings(seed=3).x
    assert read.probabilities(x).tobytes() == probe.probabilities(x).tobytes()
    assert fields == NAMES
    assert (read.exclusive, read.untrained, read.encoder) == (False, (2,), "abc")
    assert read.description == probe.description


def test_classes_stay_classes(tmp_path):
    probe = fit_probe(classes(seed=1), classes(seed=2), exclusive=True)
    save_probe(probe, tmp_path / "p.safetensors", fields=["a", "b", "c", "d"])
    read, _ = load_probe(tmp_path / "p.safetensors", encoder="abc")
    np.testing.assert_allclose(read.probabilities(classes(seed=3).x).sum(1), 1)


def test_another_encoder_is_refused(probe, tmp_path):
    save_probe(probe, tmp_path / "p.safetensors", fields=NAMES)
    with pytest.raises(VividError, match="takes features of the encoder abc…, not of def…"):
        load_probe(tmp_path / "p.safetensors", encoder="def")


def test_what_cannot_be_stored_is_told(probe, tmp_path):
    with pytest.raises(VividError, match="a name for each"):
        save_probe(probe, tmp_path / "p.safetensors", fields=NAMES[:2])
    with pytest.raises(VividError, match="a name for each"):
        save_probe(probe, tmp_path / "p.safetensors", fields=("a", "a", "b"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a probe", None])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "p.safetensors"
    if content is None:
        save_file({"weight": np.zeros((1, 2))}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(VividError, match=r"p\.safetensors: (is no whole safetensors|was not written by save_module)"):
        load_probe(path, encoder="abc")
    with pytest.raises(VividError, match="no such file"):
        load_probe(tmp_path / "absent.safetensors", encoder="abc")


def test_a_probe_of_an_earlier_version_is_read(probe, tmp_path):
    parts = {"fields": list(NAMES), "encoder": "abc", "exclusive": False, "untrained": [2], "description": {"seed": 3}}
    metadata = {"format": "vivid-probe", "version": "1", **{name: json.dumps(value) for name, value in parts.items()}}
    save_file({"weight": probe.weight, "bias": probe.bias}, tmp_path / "p.safetensors", metadata=metadata)
    read, fields = load_probe(tmp_path / "p.safetensors", encoder="abc")
    x = findings(seed=3).x
    assert read.probabilities(x).tobytes() == probe.probabilities(x).tobytes()
    assert (fields, read.untrained, read.description) == (NAMES, (2,), {"seed": 3})
