"""A bundle whose weights were trained further is served again: calibrated, tested beside the ones before."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.deploy.alone import check_every_way, datalist, run_bundle
from tests.deploy.conftest import NAME
from tests.evaluation.small import data_set
from vivid_monai.cli import main
from vivid_monai.data.manifest import Manifest
from vivid_monai.deploy.further import load_further
from vivid_monai.errors import VividError
from vivid_monai.metrics.masked import masked_auroc

MINE = "mine_classification"
SPLITS = ("train", "train", "val", "test")


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Manifest:
    """Another hospital's data set."""
    return data_set(tmp_path_factory.mktemp("mine") / "data", n=480, seed=7, dataset="mine", splits=SPLITS)


@pytest.fixture(scope="module")
def further(bundle_folder, tmp_path_factory) -> Path:
    """The bundle's weights, changed in their encoder and their head as by training."""
    state = torch.load(bundle_folder / "models" / "model.pt", weights_only=True)
    torch.manual_seed(0)
    state["encoder.norm.weight"] *= 1.3
    state["head.weight"] *= torch.rand(12, 1) + 0.5
    path = tmp_path_factory.mktemp("eval") / "model.pt"
    torch.save(state, path)
    return path


def test_it_is_served_with_new_thresholds_beside_the_weights_before(
    bundle_folder, further, mine, finished, tmp_path, capsys
):
    model = load_further(bundle_folder, further, [mine.path], n_resamples=50)
    assert model.fields == finished.fields
    for name, other in (("trained further", model), ("original", finished)):
        images = [mine.image_root / one for one in mine.select("test").table["image"].to_pylist()]
        x = torch.stack([torch.as_tensor(model.preprocess.transform()({"image": str(one)})["image"]) for one in images])
        with torch.no_grad():
            logits = other.classifier(x).numpy()
        auroc = masked_auroc(logits, mine.select("test").states(model.fields))
        assert model.results.get("auroc", "(macro)", name).value == pytest.approx(np.mean(auroc), abs=1e-4)
    head = torch.load(further, weights_only=True)["head.weight"]
    slopes = torch.tensor([[one.slope] for one in model.calibrations])
    torch.testing.assert_close(model.classifier.head.weight.data, (head * slopes).float())
    assert model.ood.n_patients == len({*mine.select("train").patients(), *mine.select("val").patients()})

    out = tmp_path / MINE
    words = ["--weights", str(further), "--manifest", str(mine.path.parent), "--out", str(out)]
    assert main(["bundle", str(bundle_folder), *words]) == 0
    assert "trained further              original" in capsys.readouterr().out
    text = (out / "docs" / "README.md").read_text()
    assert "the weights that training began from reach a macro AUROC of 0." in text
    assert "linear head, trained further by VIVID-Med on mine" in (out / "configs" / "metadata.json").read_text()
    check_every_way(model, out, tmp_path)


def test_what_the_bundle_itself_trains_is_taken(bundle_folder, finished, tmp_path):
    folder = shutil.copytree(bundle_folder, tmp_path / NAME)
    datalist(finished, tmp_path / "datalist.json")
    knobs = {"dataset_dir": tmp_path, "output_dir": tmp_path / "out", "batch_size": 64, "epochs": 1}
    run_bundle(folder, "train.json", **knobs, learning_rate=0.001)
    model = load_further(folder, tmp_path / "out" / "model.pt", [finished.manifest.path], n_resamples=50)
    (row,) = [one for one in model.results.differences if (one.metric, one.field) == ("auroc", "(macro)")]
    assert (row.encoder, row.minus) == ("trained further", "original")
    assert row.value != 0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda state: state.pop("head.bias"), "there is no head in it, but encoder."),
        (lambda state: state.pop("encoder.norm.bias"), 'Missing key(s) in state_dict: "encoder.norm.bias"'),
        (lambda state: state.update({"head.bias": torch.zeros(3)}), "size mismatch for head.weight"),
        (lambda state: state.update({"epoch": 3}), "'epoch' is no tensor; save the state dict alone"),
        (
            lambda state: state.update({"head.bias": torch.zeros(3), "head.weight": torch.zeros(3, 128)}),
            "its head has 3 outputs, and the bundle has 12 findings; name those",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_line(bundle_folder, further, mine, tmp_path, change, line):
    state = torch.load(further, weights_only=True)
    change(state)
    path = tmp_path / "model.pt"
    torch.save(state, path)
    with pytest.raises(VividError) as told:
        load_further(bundle_folder, path, [mine.path])
    assert line in str(told.value)
    assert str(path) in str(told.value)


def test_what_is_missing_is_told(bundle_folder, further, tmp_path, capsys):
    out = ["--out", str(tmp_path / MINE)]
    assert main(["bundle", str(bundle_folder), *out]) == 2
    assert "give --weights FILE and --manifest DATA" in capsys.readouterr().err
    nowhere = ["--weights", str(further), "--manifest", str(tmp_path / "nowhere")]
    assert main(["bundle", str(bundle_folder), *nowhere, *out]) == 2
    assert "nowhere: the run's data set is not there" in capsys.readouterr().err
    assert main(["bundle", str(tmp_path), *nowhere, *out]) == 2
    assert "give the folder of a bundle" in capsys.readouterr().err
    assert not (tmp_path / MINE).exists()


def test_a_test_image_among_the_learned_ones_is_refused(bundle_folder, further, mine, tmp_path):
    shutil.copytree(mine.path.parent, tmp_path / "data")
    table, splits = mine.table, mine.table["split"].to_pylist()
    images = table["image"].to_pylist()
    images[splits.index("test")] = images[splits.index("val")]
    changed = table.set_column(table.column_names.index("image"), "image", [images])
    path = tmp_path / "data" / "manifest.parquet"
    Manifest(changed, label_space=mine.stored_space, image_root=tmp_path / "data").save(path)
    with pytest.raises(VividError, match="1 test images are also val images of the probe"):
        load_further(bundle_folder, further, [path])


def test_findings_that_the_data_lack_are_told(bundle_folder, further, tmp_path):
    other = data_set(tmp_path / "data", n=12, space="nih-14", splits=SPLITS)
    with pytest.raises(VividError) as told:
        load_further(bundle_folder, further, [other.path])
    assert "has no finding" in str(told.value)
    assert "(--fields A B C)" in str(told.value)
    with pytest.raises(VividError, match="--fields names 2 findings"):
        load_further(bundle_folder, further, [other.path], fields=["a", "b"])
