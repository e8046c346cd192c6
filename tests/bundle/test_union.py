"""Several data sets in one run: asked in the union of their fields, drawn by weight, judged each by itself."""

import csv
import json
from pathlib import Path

import pytest
import torch

from tests.bundle.conftest import bundle_command
from tests.bundle.test_training import last_words
from tests.evaluation.small import data_set
from tests.processes import kill_once, run_module, start_module
from vivid_monai.deploy.calibration import load_calibrated
from vivid_monai.errors import VividError
from vivid_monai.evaluation.results import Results
from vivid_monai.networks.classifier import BACKBONES
from vivid_monai.networks.modules import load_module


@pytest.fixture(scope="module")
def folders(phantoms, tmp_path_factory) -> list[str]:
    splits = ("train", "val", "test", "val")  # a detector of other images needs 20 patients for its limit
    where = tmp_path_factory.mktemp("nih") / "nih"
    nih = data_set(where, space="nih-14", dataset="nih", n=150, seed=1, splits=splits)
    return [str(phantoms), str(nih.image_root)]


def command(folders: list[str], root: Path, **knobs) -> list[str]:
    given = {
        "dataset_dir": f"[{','.join(folders)}]",
        "dataset_weights": "{'nih': 3, 'phantom': 1}",
        "min_positives": 5,
        "patch_size": 8,
        "bundle_root": root,
    }
    return bundle_command("data/union.json", "objective/findings_bce.json", **given | knobs)


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    root = tmp_path_factory.mktemp("union")
    words = command(folders, root, output_dir=root / "run")
    done = run_module(words[1], words[2:], cwd=root)
    assert done.returncode == 0, last_words(done)
    assert "macro AUROC, each data set alone" in done.stdout
    return root / "run"


def test_a_run_on_two_data_sets_tells_of_each(run, folders):
    results = Results.load(run / "results.json")
    assert {"Hernia", "Lung Opacity", "Pleural Effusion"} <= set(results.fields)
    assert "Effusion" not in results.fields
    assert results.run["data"]["manifest"] == [f"{folder}/manifest.parquet" for folder in folders]
    alone = {path.parent.name: Results.load(path) for path in run.glob("datasets/*/results.json")}
    assert set(alone) == {"phantom", "nih"}
    assert sum(one.test["n_images"] for one in alone.values()) == results.test["n_images"]
    assert "Hernia" in alone["nih"].fields
    assert "Hernia" not in alone["phantom"].fields
    with (run / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(0 <= float(row[f"val/macro_auroc/{name}"]) <= 1 for row in rows for name in alone)
    assert json.loads((run / "config.json").read_text())["dataset_weights"] == {"nih": 3, "phantom": 1}


def test_a_bundle_is_made_of_such_a_run(run, folders):
    model = load_calibrated(run)
    assert "Hernia" in model.fields
    assert {one.split("/")[0] for one in model.test.ids} == {"phantom", "nih"}
    again = load_calibrated(run, manifest=[Path(folder) / "manifest.parquet" for folder in folders])
    assert again.test.ids.tolist() == model.test.ids.tolist()
    with pytest.raises(VividError, match="not those of the run"):
        load_calibrated(run, manifest=[Path(folder) / "manifest.parquet" for folder in folders[::-1]])


def test_killed_and_resumed_equals_uninterrupted(run, folders, tmp_path):
    words = command(folders, tmp_path, output_dir=tmp_path / "cut")
    process = start_module(words[1], words[2:], cwd=tmp_path)
    kill_once(process, lambda: any((tmp_path / "cut" / "checkpoints").glob("step_[2-7].pt")))
    done = run_module(words[1], [*words[2:], "--dataset_weights", "[1, 3]", "--resume", "True"], cwd=tmp_path)
    assert "dataset_weights was {'nih': 3, 'phantom': 1}, is [1, 3]" in done.stderr
    done = run_module(words[1], [*words[2:], "--resume", "True"], cwd=tmp_path)
    assert done.returncode == 0, last_words(done)
    whole, cut = (load_module(f / "pretrained_vit.safetensors", BACKBONES).module for f in (run, tmp_path / "cut"))
    assert all(torch.equal(tensor, cut.state_dict()[name]) for name, tensor in whole.state_dict().items())
    assert (run / "curves.csv").read_text() == (tmp_path / "cut" / "curves.csv").read_text()


def test_several_folders_without_the_overlay_are_refused_in_a_line(bundle, folders):
    done = bundle(dataset_dir=str(folders))
    assert done.returncode == 1
    assert "add configs/data/union.json to --config_file" in done.stderr
    assert not Path(str(folders)).exists()
