"""Runs held against each other: paired on the same images as if they were one run, side by side on others."""

import csv
import json
from pathlib import Path

import pytest

from tests.evaluation.made_run import FIELDS, make_run
from vivid_monai.cli import main
from vivid_monai.errors import VividError
from vivid_monai.evaluation.report import write_comparison
from vivid_monai.evaluation.results import Results

SKILLS = {"better": 1.6, "worse": 0.7}


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs that hold one encoder each of a third, which has both."""
    make_run(tmp_path / "both", encoders=SKILLS, seeds=(0, 1))
    for name, skill in SKILLS.items():
        make_run(tmp_path / name, encoders={name: skill}, seeds=(0, 1))
    return [tmp_path / name for name in SKILLS]


def test_differences_are_those_of_one_run_with_both(runs: list[Path], tmp_path: Path) -> None:
    page = write_comparison(runs, tmp_path / "out" / "page.html").read_text()
    compared = json.loads((tmp_path / "out" / "page.json").read_text())
    together = Results.load(tmp_path / "both" / "results.json")
    assert [d["metric"] for d in compared["differences"]] == [d.metric for d in together.differences]
    for found, expected in zip(compared["differences"], together.differences, strict=True):
        assert (found["encoder"], found["minus"]) == ("better: better", "worse: worse")
        for end in ("value", "low", "high"):
            assert found[end] == pytest.approx(getattr(expected, end), abs=1e-6)
    assert compared["side_by_side"] is None
    assert f"{together.differences[0].value:+.3f}" in page
    assert page.count('class="panel"') == 2 * len(FIELDS)


def test_accuracy_is_compared_where_classes_exclude_each_other(tmp_path: Path) -> None:
    organs = ["liver", "heart", "spleen"]
    make_run(tmp_path / "both", fields=organs, exclusive=True, encoders=SKILLS, n=150)
    for name, skill in SKILLS.items():
        make_run(tmp_path / name, fields=organs, exclusive=True, encoders={name: skill}, n=150)
    write_comparison([tmp_path / name for name in SKILLS], tmp_path / "page.html")
    found = json.loads((tmp_path / "page.json").read_text())["differences"][-1]
    expected = Results.load(tmp_path / "both" / "results.json").differences[-1]
    assert found["metric"] == expected.metric == "accuracy"
    assert found["low"] == pytest.approx(expected.low, abs=1e-6)


def test_macro_averages_are_over_the_fields_that_all_runs_have(runs: list[Path], tmp_path: Path) -> None:
    """One run left a field out of its own average: the other's is taken again, over the fields of both."""
    stored = json.loads((runs[0] / "results.json").read_text())
    stored["macro_fields"].remove("Edema")
    stored["excluded"]["Edema"] = "no head"
    (runs[0] / "results.json").write_text(json.dumps(stored))
    write_comparison(runs, tmp_path / "page.html")
    compared = json.loads((tmp_path / "page.json").read_text())
    assert compared["macro_fields"] == ["Cardiomegaly", "Fracture", "Support Devices"]
    worse = Results.load(runs[1] / "results.json")
    mean = sum(worse.get("auroc", name, "worse").value for name in compared["macro_fields"]) / 3
    (taken,) = (r for r in compared["macro"] if (r["encoder"], r["metric"]) == ("worse: worse", "auroc"))
    assert taken["value"] == pytest.approx(mean, abs=1e-6)
    assert taken["low"] < mean < taken["high"]
    better = Results.load(runs[0] / "results.json")
    difference = sum(better.get("auroc", name, "better").value for name in compared["macro_fields"]) / 3 - mean
    assert compared["differences"][0]["value"] == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize("other", ["images", "labels", "patients"])
def test_other_images_labels_or_patients_are_never_subtracted(runs: list[Path], tmp_path: Path, other: str) -> None:
    if other == "images":
        make_run(runs[1], encoders={"worse": 0.7}, prefix="elsewhere/")  # the same labels and patients
    else:
        change(runs[1] / "predictions.csv", "patient_id" if other == "patients" else "state:Support Devices")
    page = write_comparison(runs, tmp_path / "page.html").read_text()
    compared = json.loads((tmp_path / "page.json").read_text())
    assert compared["differences"] == []
    told = {"images": "tested on other images", "labels": "but with other labels", "patients": "but of other patients"}
    assert told[other] in compared["side_by_side"]
    assert "they stand side by side: no difference is computed" in page
    assert "Paired difference in" not in page
    assert 'class="panel"' not in page


def test_the_table_names_the_run(runs: list[Path], tmp_path: Path) -> None:
    write_comparison(runs, tmp_path / "page.html")
    with (tmp_path / "page.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    value = {(row["run"], row["encoder"], row["field"]): row["value"] for row in rows if row["metric"] == "auroc"}
    stored = Results.load(runs[1] / "results.json").get("auroc", "Edema", "worse")
    assert value["worse", "worse", "Edema"] == str(stored.value)
    assert ("", "better: better - worse: worse", "(macro)") in value


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for parent in "ab":
        make_run(tmp_path / parent / "eval", encoders={"x": 1.0}, seed=ord(parent))
    write_comparison([tmp_path / parent / "eval" for parent in "ab"], tmp_path / "page.html")
    assert list(json.loads((tmp_path / "page.json").read_text())["runs"]) == ["a/eval", "b/eval"]


def test_what_cannot_be_compared(runs: list[Path], tmp_path: Path) -> None:
    make_run(tmp_path / "classes", fields=["liver", "heart"], exclusive=True, n=100)
    make_run(tmp_path / "others", fields=["Mass", "Nodule"], rare=[])
    for folders, out, message in (
        (runs, "page.pdf", "ends in .html"),
        (runs[:1], "page.html", "at least two runs"),
        ([runs[0], runs[0] / "." / "..", runs[0]], "page.html", "each named once"),
        ([runs[0], tmp_path / "classes"], "page.html", "cannot be compared"),
        ([runs[0], tmp_path / "others"], "page.html", "no field in common"),
    ):
        with pytest.raises(VividError, match=message):
            write_comparison(folders, tmp_path / out)
    assert not list(tmp_path.glob("page*"))


def test_the_command_compares_several(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "comparison.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.is_file()


def change(path: Path, column: str) -> None:
    """Another label that counts for no metric, or another patient, in one row."""
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    where = header.index(column)
    row = next(row for row in rows if row[where] == "" or column == "patient_id")
    row[where] = "patient-x" if column == "patient_id" else "uncertain"
    path.write_text("\n".join(map(",".join, [header, *rows])) + "\n")
