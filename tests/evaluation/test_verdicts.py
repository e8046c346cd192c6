"""Verdicts on claims, and the page that shows them."""

import json

import pytest

from tests.evaluation.made_run import make_run
from vivid_monai.evaluation.report import load_run
from vivid_monai.evaluation.verdicts import judge, rule, verdicts, write_verdicts
from vivid_monai.metrics.intervals import Patients, auroc_resamples, difference_over_runs

ENCODERS = {"good": 2.0, "alike": 2.0, "poor": 0.3}
CLAIMS = [("good", "poor"), ("poor", "good"), ("good", "alike")]


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ((0.03, 0.01, 0.05), "supported"),
        ((0.03, 0.0, 0.06), "undecided"),
        ((0.03, -0.01, 0.07), "undecided"),
        ((0.009, 0.001, 0.017), "undecided"),
        ((0.004, 0.001, 0.007), "refuted"),
        ((0.0, -0.009, 0.009), "refuted"),
        ((0.0, -0.01, 0.01), "undecided"),
        ((-0.05, -0.08, -0.02), "refuted"),
        ((0.05, None, None), "undecided"),
        ((None, None, None), "undecided"),
    ],
)
def test_the_rule(numbers, verdict):
    assert judge(*numbers, margin=0.01) == verdict


def test_a_wider_margin_asks_for_more():
    assert judge(0.03, 0.01, 0.05, margin=0.04) == "undecided"
    assert judge(0.03, 0.01, 0.05, margin=0.06) == "refuted"


def test_claims_are_judged_over_seeds_and_patients(tmp_path):
    results = make_run(tmp_path, encoders=ENCODERS, seeds=(0, 1, 2), examples=0)
    better, worse, alike = verdicts(*load_run(tmp_path), CLAIMS)
    assert (better.verdict, worse.verdict) == ("supported", "refuted")
    assert worse[2:5] == (-better.value, -better.high, -better.low)
    assert alike.verdict != "supported"
    assert (better.seeds, better.patients) == (3, 100)
    predictions = load_run(tmp_path)[1].select(results.macro_fields)
    patients, kept = Patients(predictions.patients, n_resamples=100), range(len(results.macro_fields))
    runs = [
        [auroc_resamples(patients, scores, predictions.states).macro(kept) for scores in predictions.scores[name]]
        for name in ("good", "poor")
    ]
    assert better[2:5] == pytest.approx(difference_over_runs(*runs), abs=1e-12)
    assert better.value == pytest.approx(
        results.get("auroc", "(macro)", "good").value - results.get("auroc", "(macro)", "poor").value
    )


def test_a_single_seed_decides_nothing(tmp_path):
    make_run(tmp_path, encoders=ENCODERS, examples=0)
    found = verdicts(*load_run(tmp_path), CLAIMS)
    assert [(one.low, one.high, one.verdict) for one in found] == [(None, None, "undecided")] * 3
    assert found[0].value > 0.1


def test_the_page_says_the_rule_first_and_the_file_holds_the_same(tmp_path):
    results = make_run(tmp_path, encoders=ENCODERS, seeds=(0, 1, 2), examples=0)
    told = {"says": "made & so", "images": 6400, "minutes": 1.25, "settings": "layout=slots"}
    arms = {name: {**told, "minutes": None} if name == "poor" else told for name in results.encoders}
    failed = {"lost, seed 1": "the <disk> is full"}
    out = tmp_path / "report.html"
    options = {"title": "made: 3 arms", "equal": "All saw as many images.", "failed": failed}
    judged = write_verdicts(tmp_path, out, CLAIMS, arms, **options)
    page = out.read_text()
    assert page.index("made &amp; so") > page.index(">supported<") > page.index(rule()[:60]) > 0
    assert "lost, seed 1: the &lt;disk&gt; is full" in page
    assert "All saw as many images." in page
    assert "6,400" in page
    assert "://" not in page.replace("http://www.w3.org", "")
    content = json.loads(out.with_suffix(".json").read_text())
    assert [tuple(one.values()) for one in content["verdicts"]] == [tuple(one) for one in judged]
    assert (content["failed"], content["rule"], content["margin"]) == (failed, rule(), 0.01)
    assert content["arms"]["good"]["per_seed"] == results.per_seed("auroc", "(macro)", "good")
