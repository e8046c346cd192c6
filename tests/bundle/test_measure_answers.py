"""What networks answer about fields they were taught, and about those they were not: made answers, and a real run."""

import csv
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.bundle.conftest import ROOT, bundle_command

sys.path.insert(0, str(ROOT / "scripts"))

from measure_answers import Answers, Part, ask, measure

from tests.processes import run_module
from vivid_monai.errors import VividError
from vivid_monai.metrics.masked import masked_auroc
from vivid_monai.prepare.conditions import Conditions, prepare
from vivid_monai.ums.states import NULL

FIELDS = ["Edema", "Effusion", "Fracture", "Pneumonia"]


def states(n: int) -> np.ndarray:
    """Of n images; Fracture's are those of Edema."""
    drawn = np.random.default_rng(n).integers(0, 2, (n, 4))
    drawn[:, 2] = drawn[:, 0]
    return drawn


def part(n: int, strength: list[float], rng: np.random.Generator) -> Part:
    """Answers that know the state of each field as well as its strength, about two images of each patient."""
    true = states(n)
    p = 1 / (1 + np.exp(rng.normal(size=true.shape) - (2 * true - 1) * strength))
    log_probs = np.log(np.stack([1 - p, p, np.full_like(p, 1e-9)], axis=-1))
    return Part(log_probs, true, np.repeat([f"p{i}" for i in range(n // 2)], 2))


def runs(strength: list[float], seeds: int = 3) -> list[Answers]:
    """Runs that were never asked about Fracture and Pneumonia."""
    seen, rng, grey = np.array([True, True, False, False]), np.random.default_rng(1), np.log(np.full((4, 3), 1 / 3))
    return [
        Answers(FIELDS, seen, (10, 10), part(200, strength, rng), part(600, strength, rng), grey) for _ in range(seeds)
    ]


def rows(measured: dict) -> dict[tuple[str, str], dict]:
    return {(one["what"], one["field"]): one for one in measured["rows"]}


def test_an_unseen_field_is_held_against_chance_and_the_best_seen_field():
    strength = [0.5, 1.0, 2.0, 0.0]
    made = runs(strength)
    found = rows(measure(made, n_resamples=200))
    fracture, pneumonia = found["unseen field", "Fracture"], found["unseen field", "Pneumonia"]
    assert fracture["auroc"] == pytest.approx(np.mean([masked_auroc(r.test.scores, r.test.states)[2] for r in made]))
    assert fracture["value"] == pytest.approx(fracture["auroc"] - 0.5)
    assert fracture["verdict"] == "supported"
    assert pneumonia["low"] < 0 < pneumonia["high"]
    against = found["unseen field against Edema", "Fracture"]
    lent = np.mean([masked_auroc(r.test.scores[:, :1], r.test.states[:, 2:3])[0] for r in made])
    assert against["value"] == pytest.approx(fracture["auroc"] - lent)
    assert against["verdict"] == "supported"
    assert found["unseen fields", "(macro)"]["auroc"] == pytest.approx((fracture["auroc"] + pneumonia["auroc"]) / 2)
    weaker = rows(measure(runs([2.0, 1.0, 0.5, 0.0]), n_resamples=200))
    assert weaker["unseen field against Edema", "Fracture"]["verdict"] == "refuted"


def test_the_stand_in_is_chosen_on_validation_images():
    made = runs([0.5, 1.0, 2.0, 0.0])
    swapped = [replace(one, val=one.val._replace(log_probs=one.val.log_probs[:, [1, 0, 2, 3]])) for one in made]
    assert ("unseen field against Effusion", "Fracture") in rows(measure(swapped, n_resamples=50))


def test_images_of_other_patients_are_at_chance_and_grey_tells_nothing():
    measured = measure(runs([2.0, 2.0, 2.0, 2.0]), n_resamples=200)
    found = rows(measured)
    assert found["seen fields", "(macro)"]["auroc"] > 0.95
    other = found["seen fields, images of other patients", "(macro)"]
    assert other["low"] < 0 < other["high"]
    assert np.mean(measured["nll"]["own"]) < np.log(3) / 4
    assert measured["nll"]["grey"] == pytest.approx([np.log(3)] * 3)
    assert np.mean(measured["nll"]["other patients"]) > np.log(3)


def test_one_run_decides_nothing_and_other_images_are_refused():
    assert {row["verdict"] for row in measure(runs([2.0] * 4, 1), n_resamples=50)["rows"]} == {"undecided"}
    first, second = runs([2.0] * 4, 2)
    other = replace(second, test=second.test._replace(patients=second.test.patients[::-1]))
    with pytest.raises(VividError, match="not of one recipe"):
        measure([first, other])
    one = replace(first, test=first.test._replace(patients=np.repeat("p", 600)))
    with pytest.raises(VividError, match="a patient has over half"):
        measure([one])


def test_a_run_is_asked_as_its_own_validation_did(tmp_path, phantoms):
    prepare(phantoms, tmp_path / "hidden", Conditions(hide=("Edema",)))
    knobs = {"dataset_dir": tmp_path / "hidden", "output_dir": tmp_path / "run", "bundle_root": tmp_path}
    command = bundle_command("teacher/random.json", **knobs)
    done = run_module(command[1], command[2:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = ask(tmp_path / "run")
    assert [field for field, seen in zip(answers.fields, answers.seen, strict=True) if not seen] == ["Edema"]
    assert (answers.val.states[:, answers.fields.index("Edema")] != NULL).any()
    with (tmp_path / "run" / "curves.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    val = answers.val
    known = val.states != NULL
    assert -val.log_probs[known, val.states[known]].mean() == pytest.approx(float(last["val/nll_own"]), abs=1e-4)
    grey = np.broadcast_to(answers.blank, val.log_probs.shape)
    assert -grey[known, val.states[known]].mean() == pytest.approx(float(last["val/nll_blank"]), abs=1e-4)
    with pytest.raises(VividError, match="not a run of the training bundle"):
        ask(tmp_path)
