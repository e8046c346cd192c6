"""A whole comparison, as a user runs it: runs in processes of their own, an evaluation, verdicts and their page."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bundle.conftest import ROOT, SMALL
from tests.bundle.test_finetuning import KNOBS, make_start
from vivid_monai.cli import main
from vivid_monai.evaluation.results import Results, read_predictions
from vivid_monai.ums.states import ABSENT, PRESENT


def test_a_comparison_goes_on_where_it_stopped(tmp_path, phantoms, forks, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    own = {"broken": {"configs": ["objective/findings_bce.json"], "knobs": {"vit": "gigantic"}}}
    (tmp_path / "own.json").write_text(json.dumps(own))
    knobs = [f"{key}={value}" for key, value in {**SMALL, "min_positives": 5}.items() if key != "n_examples"]
    few = ["min_present=1", "min_absent=1", "n_resamples=50"]
    command = ["compare", str(phantoms), "--out", str(out), "--set", *knobs, "--evaluate", *few, "--seeds", "0", "1"]

    assert main([*command, "--arms", "bce_vit", "thumbnails", str(tmp_path / "own.json")]) == 1
    told = capsys.readouterr().out
    assert "Failed: broken, seed 0: " in told
    assert "gigantic" in told
    trained = [str(out / "images" / "bce_vit" / seed) for seed in "01"]
    assert [one for one in forks if one in trained] == trained
    results = Results.load(out / "evaluation" / "results.json")
    assert (list(results.encoders), results.seeds) == (["bce_vit", "thumbnails", "untrained"], [0, 1])
    content = json.loads((out / "report.json").read_text())
    assert [(one["arm"], one["reference"]) for one in content["verdicts"]] == [
        ("bce_vit", "untrained"),
        ("bce_vit", "thumbnails"),
    ]
    for one in content["verdicts"]:
        assert one["low"] <= one["value"] <= one["high"]
    assert content["arms"]["bce_vit"]["images"] == 2 * 4 * 8
    assert content["arms"]["bce_vit"]["minutes"] > 0
    assert content["failed"].keys() == {"broken, seed 0", "broken, seed 1"}
    assert "broken, seed 1" in (out / "report.html").read_text()

    forks.clear()
    assert main([*command, "--arms", "bce_vit", "thumbnails"]) == 0
    assert forks == []
    assert "bce_vit better than thumbnails" in capsys.readouterr().out


def test_fine_tuned_arms_are_tested_with_their_own_heads(tmp_path, phantoms, forks, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    knobs = {**SMALL, **KNOBS, "max_epochs": 1, "warmup_steps": 1}
    words = [f"{key}={value}" for key, value in knobs.items() if key != "n_examples"]
    few = ["min_present=1", "min_absent=1", "n_resamples=50"]
    arms = ["--arms", "finetuned", "from_scratch", "linear_probe", "--starts", f"ours={make_start(tmp_path)}"]
    command = ["compare", str(phantoms), "--out", str(out), "--set", *words, "--evaluate", *few, *arms]
    assert main([*command, "--seeds", "0", "1"]) == 0, capsys.readouterr()
    results, tested = (
        Results.load(out / "evaluation" / "results.json"),
        read_predictions(out / "evaluation" / "predictions.csv"),
    )
    assert list(results.encoders) == ["finetuned ours", "from_scratch ours", "linear_probe ours"]
    for name in ("finetuned ours", "from_scratch ours"):
        for seed in (0, 1):
            own = read_predictions(out / "images" / name / str(seed) / "predictions.csv")
            np.testing.assert_array_equal(own.ids, tested.ids)
            columns = [results.fields.index(field) for field in own.fields]
            np.testing.assert_allclose(tested.scores[name][seed][:, columns], own.scores["fine-tuned"][0], atol=1e-5)
    content = json.loads((out / "report.json").read_text())
    assert [(one["arm"], one["reference"]) for one in content["verdicts"]] == [
        ("finetuned ours", "from_scratch ours"),
        ("finetuned ours", "linear_probe ours"),
        ("from_scratch ours", "linear_probe ours"),
    ]
    assert content["arms"]["finetuned ours"]["images"] == 4 * 8
    assert content["arms"]["finetuned ours"]["minutes"] > 0
    assert "tested with their own heads" in (out / "report.html").read_text()
    forks.clear()
    assert main([*command, "--seeds", "0", "1"]) == 0
    assert forks == [], "all is done already"


def swap_test_states(path) -> None:
    """Make present absent and absent present in the test images of a manifest."""
    table = pq.read_table(path)
    test = np.array(table["split"].to_pylist()) == "test"
    for i, name in enumerate(table.schema.names):
        if name.startswith("finding."):
            states = table[name].to_numpy().copy()
            known = test & np.isin(states, (PRESENT, ABSENT))
            states[known] = PRESENT + ABSENT - states[known]
            table = table.set_column(i, table.schema.field(i), pa.array(states, table.schema.field(i).type))
    pq.write_table(table, path)


def test_no_test_label_chooses_what_is_tried(tmp_path, phantoms, forks, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    poisoned = tmp_path / "poisoned"
    shutil.copytree(phantoms, poisoned)
    swap_test_states(poisoned / "manifest.parquet")
    knobs = {**SMALL, **KNOBS, "max_epochs": 1, "warmup_steps": 1}
    words = [f"{key}={value}" for key, value in knobs.items() if key != "n_examples"]
    few = ["min_present=1", "min_absent=1", "n_resamples=50"]
    arms = ["--arms", "finetuned", "--starts", f"ours={make_start(tmp_path)}", "--try", "head=linear,attentive"]
    told, aurocs = [], []
    for folder in (phantoms, poisoned):
        out = tmp_path / f"out {folder.name}"
        command = ["compare", str(folder), "--out", str(out), "--set", *words, "--evaluate", *few, *arms]
        assert main([*command, "--seeds", "0"]) == 0, capsys.readouterr()
        content = json.loads((out / "report.json").read_text())
        told.append(content["tried"])
        aurocs.append(content["arms"]["finetuned ours"]["macro_auroc"])
        chosen = next(one["setting"] for one in content["tried"] if one["chosen"])
        assert f"<td>{chosen}</td>" in (out / "report.html").read_text().replace(' class="text"', "")
        assert chosen in content["arms"]["finetuned ours"]["settings"]
        assert f"finetuned ours: {chosen}" in capsys.readouterr().out
    assert told[0] == told[1]
    assert aurocs[0] != aurocs[1], "the test images are others"
