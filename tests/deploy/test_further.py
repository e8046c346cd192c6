"""A bundle whose weights were trained further is served again: calibrated, tested beside the ones before."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.deploy.alone import check_every_way, datalist, run_bundle
from tests.deploy.conftest import NAME
from tests.deploy.small import make_classifier
from tests.evaluation.small import data_set
from tests.processes import run_module
from vivid_monai.checks import check_labels
from vivid_monai.cli import main
from vivid_monai.data.manifest import Manifest
from vivid_monai.deploy.further import load_further
from vivid_monai.deploy.model import BundleModel
from vivid_monai.errors import VividError
from vivid_monai.metrics.masked import masked_auroc
from vivid_monai.networks.classifier import load_weights

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


def test_own_findings_get_a_head_of_their_own(bundle_folder, finished, tmp_path, capsys):
    folder, names = shutil.copytree(bundle_folder, tmp_path / NAME), ["Support Devices", "Edema", "Fracture"]
    datalist(finished, tmp_path / "datalist.json")
    lists = json.loads((tmp_path / "datalist.json").read_text())
    columns = [finished.fields.index(name) for name in names]
    for row in (*lists["training"], *lists["validation"]):
        row["label"] = [row["label"][column] for column in columns]
    (tmp_path / "datalist.json").write_text(json.dumps(lists))
    knobs = {"dataset_dir": tmp_path, "output_dir": tmp_path / "out", "batch_size": 32, "fields": names}
    run_bundle(folder, "train.json", **knobs, epochs=4, learning_rate=0.001)
    path = tmp_path / "out" / "model.pt"
    before, after = (torch.load(one, weights_only=True) for one in (folder / "models" / "model.pt", path))
    assert after["head.weight"].shape == (3, 128)
    name = "encoder.blocks.0.attn.qkv.weight"
    assert torch.corrcoef(torch.stack([before[name].ravel(), after[name].ravel()]))[0, 1] > 0.9
    assert not torch.equal(before[name], after[name])
    told = run_bundle(folder, "train.json", "evaluate.json", **knobs, ckpt_path=str(path))

    model = load_further(folder, path, [finished.manifest.path], fields=names, n_resamples=50)
    assert model.fields == tuple(names)
    assert model.beside == "frozen"
    auroc = model.results.get("auroc", "(macro)", "trained further").value
    assert float(re.search(r"macro_auroc: ([\d.]+)", told)[1]) == pytest.approx(auroc, abs=1e-4)
    words = ["--weights", str(path), "--manifest", str(finished.manifest.path), "--out", str(tmp_path / MINE)]
    assert main(["bundle", str(folder), *words]) == 2
    assert "its head has 3 outputs, and the bundle has 12 findings" in capsys.readouterr().err
    assert main(["bundle", str(folder), *words, "--fields", *names]) == 0
    assert BundleModel(tmp_path / MINE).fields == tuple(names)
    text = (tmp_path / MINE / "docs" / "README.md").read_text()
    assert "a linear probe on the encoder that training began from reaches a macro AUROC of 0." in text


def test_labels_that_are_not_as_long_as_the_head_are_one_line(bundle_folder, finished, tmp_path):
    datalist(finished, tmp_path / "datalist.json")
    command = [
        "run",
        "--config_file",
        "configs/train.json",
        "--dataset_dir",
        tmp_path,
        "--output_dir",
        tmp_path / "out",
    ]
    done = run_module("monai.bundle", [*command, "--fields", "['A','B']"], cwd=bundle_folder)
    assert done.returncode == 1
    (told,) = [one for one in done.stderr.splitlines() if one.startswith("vivid: ")]
    assert "datalist.json: the label of training image 0 has 12 values, and the head 2 outputs" in told
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("lists", "fields", "line"),
    [
        ({"training": [{"label": [1, 0]}], "validation": []}, None, "training image 0 has 2 values, and the head 3"),
        ({"training": [], "validation": [{"label": 1}]}, ["A", "B", "C"], "validation image 0 has 1, and the head 3"),
        ({"training": []}, None, "is no datalist (KeyError: 'validation')"),
        ({}, "ABC", "fields is 'ABC'; it takes a list of different names"),
        ({}, ["A", "B", "A"], "it takes a list of different names"),
    ],
)
def test_labels_are_checked(tmp_path, lists, fields, line):
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(lists))
    with pytest.raises(VividError) as told:
        check_labels(path, fields, 3)
    assert line in str(told.value)


def test_weights_of_another_network_are_refused_and_a_head_is_kept_where_it_may_be(tmp_path):
    network, path = make_classifier(), tmp_path / "model.pt"
    state = make_classifier(seed=1).state_dict()
    torch.save(state | {"head.weight": torch.zeros(2, 128), "head.bias": torch.zeros(2)}, path)
    with pytest.raises(VividError, match=r"head.bias is \(2,\), that of the network is \(5,\): name the findings"):
        load_weights(network, path)
    head = network.head.weight.clone()
    load_weights(network, path, new_head=True)
    assert torch.equal(network.head.weight, head)
    assert torch.equal(network.encoder.norm.weight, state["encoder.norm.weight"])
    del state["encoder.norm.weight"]
    torch.save(state, path)
    with pytest.raises(VividError, match=r"encoder.norm.weight is missing, .*: take the bundle's own"):
        load_weights(network, path, new_head=True)
    path.write_text("")
    with pytest.raises(VividError, match="holds no plain tensors"):
        load_weights(network, path)
