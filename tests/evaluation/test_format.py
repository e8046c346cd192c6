"""What the terminal shows."""

from dataclasses import replace

from tests.evaluation.scored import classes, findings, measured
from vivid_monai.evaluation.format import summary_table


def test_shows_every_number_with_its_interval_and_counts():
    scored, test = findings()
    results = measured(scored, test)
    text = summary_table(results)
    for field in results.fields:
        line = next(line for line in text.splitlines() if line.startswith(field))
        for name in ("good", "poor"):
            auroc = results.get("auroc", field, name)
            assert f"{auroc.value:.3f} ({auroc.low:.3f}–{auroc.high:.3f})" in line
        assert str(results.test["n_present"][field]) in line.split()
    for start, metric in (("macro AUROC", "auroc"), ("macro Brier", "brier")):
        line = next(line for line in text.splitlines() if line.startswith(start))
        for name in ("good", "poor"):
            macro = results.get(metric, "(macro)", name)
            assert f"{macro.value:.3f} ({macro.low:.3f}–{macro.high:.3f})" in line
    assert max(len(line) for line in text.splitlines()) <= 100
    difference = results.differences[0]
    assert f"good - poor, macro AUROC: {difference.value:+.3f} ({difference.low:+.3f} to" in text
    assert f"300 test images of {results.test['n_patients']} patients" in text


def test_tells_what_is_left_out_and_what_to_be_wary_of():
    scored, test = findings(seeds=(0, 1))
    scored["good"] = replace(scored["good"], untrained=(2,), test=1 - scored["good"].test)
    text = summary_table(measured(scored, test, seeds=[0, 1], skipped=[("a.png", "broken")]))
    assert "Nodule: small *" in text
    assert "* not in the macro averages: Nodule: small (no head for good" in text
    assert "WARNING: good: AUROC of Edema is under chance" in text
    assert "WARNING: 1 images could not be read" in text
    assert "macro AUROC of each seed: good 0." in text


def test_classes_have_their_accuracy():
    scored, test = classes()
    results = measured(scored, test, fields=["a", "b", "c"], exclusive=True)
    for start in ("accuracy", "balanced accuracy"):
        got = results.get(start.replace(" ", "_"), "(all)", "good")
        line = next(line for line in summary_table(results).splitlines() if line.startswith(start))
        assert f"{got.value:.3f} ({got.low:.3f}–{got.high:.3f})" in line


def test_a_number_without_an_interval_or_a_value_is_shown_as_such():
    scored, test = findings()
    results = measured(scored, test)
    known = {"Edema": 1.0, "Mass, left": None}
    rows = [
        row._replace(value={"auroc": None, "ap": 0.25}[row.metric], low=None, high=None)
        if row.minus
        else row._replace(value=known[row.field], low=None, high=None)
        if row[:4] in [("auroc", field, "good", None) for field in known]
        else row
        for row in results.rows
    ]
    lines = summary_table(replace(results, rows=rows)).splitlines()
    assert next(line for line in lines if line.startswith("Edema")).split()[3] == "1.000"
    assert next(line for line in lines if line.startswith("Mass")).split()[4] == "–"
    assert [line for line in lines if line.startswith("good - poor")] == ["good - poor, macro AP: +0.250"]
