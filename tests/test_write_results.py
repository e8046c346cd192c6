"""docs/results.md is generated from the stored results."""

import json

import pytest

from scripts import write_results
from tests.evaluation.scored import findings, measured
from vivid_monai.errors import VividError


def test_the_page_in_the_repository_is_the_one_that_is_written(tmp_path):
    write_results.write_page(tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text() == write_results.PAGE.read_text()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(write_results, "STORE", tmp_path / "store")
    scored, test = findings()
    for one in scored.values():
        one.encoder.update(architecture="vit", dim=1, pool="cls")
        one.probes[0]["tried"] = {"1": [0.5]}
    results = measured(scored, test)
    results.run.update(command="python -m x", data={"dataset": "made", "source": None, "image_root": "/somewhere"})
    results.save(tmp_path / "results.json")
    return results


def test_numbers_of_a_run_reach_the_page(tmp_path, run):
    write_results.store("made", tmp_path)
    write_results.write_page(tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text()
    auroc = run.get("auroc", "(macro)", "good")
    assert f"| good | {auroc.value:.3f} ({auroc.low:.3f}–{auroc.high:.3f}) |" in page
    assert "| AUROC: first − it |" in page
    assert f"`python -m x`: {run.test['n_images']} test images of {run.test['n_patients']} patients" in page


def test_a_command_is_shown_by_its_overlay_and_data():
    configs = "['a.json','configs/eval/nih.json']"
    command = f"python -m x --config_file \"{configs}\" --encoder \"{{'a': 'b c'}}\" --dataset_dir d --min_present 3"
    assert write_results.shortened(command) == "configs/eval/nih.json --dataset_dir d --min_present 3"
    assert write_results.shortened("python -m x") == "python -m x"


def test_nothing_of_one_machine_and_no_image_is_stored(tmp_path, run):
    write_results.store("made", tmp_path)
    stored = json.loads((tmp_path / "store" / "made.json").read_text())
    assert stored["skipped"] == 0
    assert "somewhere" not in json.dumps(stored)
    run.run["command"] = "python x --encoder /home/me/vit.safetensors"
    run.save(tmp_path / "results.json")
    with pytest.raises(VividError, match="/home/me/vit"):
        write_results.store("made", tmp_path)


def test_an_empty_store_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(write_results, "STORE", tmp_path)
    with pytest.raises(VividError, match="nothing is stored"):
        write_results.write_page(tmp_path / "results.md")
