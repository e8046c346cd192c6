"""A whole comparison, as a user runs it: runs in processes of their own, an evaluation, verdicts and their page."""

import json

import numpy as np

from tests.bundle.conftest import ROOT, SMALL
from tests.bundle.test_finetuning import KNOBS, make_start
from vivid_monai.cli import main
from vivid_monai.evaluation.results import Results, read_predictions


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
            assert own.ids == tested.ids
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
