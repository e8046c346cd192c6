"""A stored probe: the same when read, refused for another encoder."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.evaluation.made_features import classes, findings
from vivid_monai.errors import VividError
from vivid_monai.evaluation.probes import fit_probe, load_probe, save_probe

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
    assert read.describe() == probe.describe()


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
    with pytest.raises(VividError, match="KNNProbe is as large"):
        save_probe(fit_probe(findings(seed=1), findings(seed=2), kind="knn"), tmp_path / "p", fields=NAMES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a probe", None])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "p.safetensors"
    if content is None:
        save_file({"weight": np.zeros((1, 2))}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(VividError, match=r"p\.safetensors: (is no|cannot be read as a) probe"):
        load_probe(path, encoder="abc")
    with pytest.raises(VividError, match="cannot be read"):
        load_probe(tmp_path / "absent.safetensors", encoder="abc")
