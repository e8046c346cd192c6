"""An evaluation on several data sets: one head for all, and its numbers on each alone."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.evaluation.small import data_set, encoder
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.union import load_manifest
from vivid_monai.evaluation.evaluate import Evaluated, evaluate, of_datasets
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.report import read_datasets
from vivid_monai.evaluation.results import MACRO, Results, read_predictions
from vivid_monai.evaluation.task import Task
from vivid_monai.evaluation.workflows import print_output, write_evaluation
from vivid_monai.metrics.masked import masked_auroc

SMALL = {"min_present": 3, "min_absent": 3, "n_resamples": 20}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    data_set(root / "phantom", dataset="phantom")
    data_set(root / "nih", space="nih-14", dataset="nih", seed=1)
    return [root / name / "manifest.parquet" for name in ("phantom", "nih")]


@pytest.fixture(scope="module")
def union(files) -> Manifest:
    return load_manifest(files)


@pytest.fixture(scope="module")
def evaluated(union) -> Evaluated:
    encoders = {"ours": [encoder(0)], "other": [encoder(1)]}
    return evaluate(encoders, Task(name="t", manifest=union, fields=union.fields), FeatureStore(None), **SMALL)


def test_each_data_set_is_measured_on_its_own_images_and_fields(evaluated, files):
    alone = of_datasets(evaluated)
    assert list(alone) == ["phantom", "nih"]
    whole = evaluated.results
    for (name, one), file in zip(alone.items(), files, strict=True):
        own = Manifest.load(file)
        names = own.label_space.mapping_to(load_manifest(files).label_space)
        assert set(one.results.fields) == set(names.values())
        assert one.results.test["n_images"] == len(own.select("test"))
        assert one.results.task == f"t, {name}"
        ids = [f"{name}/{key}" for key in own.select("test").table["id"].to_pylist()]
        assert one.test.ids.tolist() == ids
        rows = np.isin(evaluated.test.ids, ids)
        for encoder_name in ("ours", "other"):
            aurocs = masked_auroc(evaluated.scored[encoder_name].test[0][rows], evaluated.test.states[rows])
            for field, value in zip(whole.fields, aurocs, strict=True):
                if field in one.results.fields:
                    assert one.results.get("auroc", field, encoder_name).value == pytest.approx(value)
                else:
                    assert np.isnan(value), "what the data set cannot answer"
        assert [row.minus for row in one.results.differences] == ["other", "other"]


def test_thresholds_are_of_the_data_sets_own_validation_images(evaluated):
    for name, one in of_datasets(evaluated).items():
        assert set(one.validation.datasets) == {name}
        assert len(one.validation.ids) == 18


def test_a_page_for_each_and_a_table_of_all(evaluated, union, files, tmp_path, capsys):
    task = Task(name="t", manifest=union, fields=union.fields)
    stale = tmp_path / "datasets" / "gone" / "results.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    results = write_evaluation(evaluated, task, tmp_path, shown=encoder(0), n_examples=1)
    assert results.run["data"]["manifest"] == [str(file) for file in files]
    assert set(results.run["data"]["splits"]) == {"phantom", "nih"}
    found = {path.name: one for path, one in read_datasets(tmp_path).items()}
    assert set(found) == {"phantom", "nih"}
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r'href="(datasets/[^"]+)"', page) == ["datasets/nih/report.html", "datasets/phantom/report.html"]
    for name, one in found.items():
        value = f"{one.get('auroc', MACRO, 'ours').value:.3f}"
        assert value in page
        assert value in (tmp_path / "datasets" / name / "report.html").read_text()
        assert len(read_predictions(tmp_path / "datasets" / name / "predictions.csv").ids) == one.test["n_images"]
        assert one.run["data"]["dataset"] == name
    print_output(results, tmp_path, {})
    told = capsys.readouterr().out
    for name, one in found.items():
        line = next(line for line in told.splitlines() if line.startswith(name))
        assert f"{one.get('auroc', MACRO, 'other').value:.3f}" in line


def test_a_single_data_set_has_nothing_beside_it(files, tmp_path):
    nih = Manifest.load(files[1])
    task = Task(name="t", manifest=nih, fields=nih.fields[:2])
    evaluated = evaluate({"ours": [encoder()]}, task, FeatureStore(None), **SMALL)
    assert of_datasets(evaluated) == {}
    write_evaluation(evaluated, task, tmp_path, shown=encoder(), n_examples=0)
    assert not (tmp_path / "datasets").exists()
    assert "each data set" not in (tmp_path / "report.html").read_text().lower()
    assert isinstance(Results.load(tmp_path / "results.json").run["data"]["manifest"], str)


def test_a_data_set_too_small_to_be_measured_is_told(evaluated, caplog):
    strict = replace(evaluated.results, intervals=evaluated.results.intervals | {"min_present": 100})
    assert of_datasets(replace(evaluated, results=strict)) == {}
    assert "no numbers for 'nih' alone: t, nih: no field can be measured" in caplog.text


def test_a_union_learns_for_a_data_set_of_its_own_without_leaking_its_test_images(union, files):
    nih = Manifest.load(files[1])
    task = Task(name="t", manifest=nih, fields=["Edema", "Effusion"], source=union, label_space="nih-shared")
    train, _, test = task.parts(encoder(), FeatureStore(None))
    assert {key.split("/")[0] for key in train.ids} == {"phantom", "nih"}
    assert all(key.count("/") == 1 for key in (*train.ids, *test.ids)), "named after the data set once"
    assert not set(train.patients) & set(test.patients)
