"""A whole comparison, as a user runs it: runs in processes of their own, an evaluation, verdicts and their page."""

import json

from tests.bundle.conftest import ROOT, SMALL
from vivid_monai.cli import main
from vivid_monai.evaluation.results import Results


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
