"""The page of one run and metrics.csv: the files' numbers, whatever they are; no page of files of two runs."""

import csv
import json
import re
from pathlib import Path

import pytest

from tests.evaluation.made_run import make_run
from vivid_monai.cli import main
from vivid_monai.errors import VividError
from vivid_monai.evaluation.examples import Examples
from vivid_monai.evaluation.report import write_report
from vivid_monai.evaluation.results import METRICS, Results


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    write_report(folder)
    return folder


def page_of(folder: Path, **made: object) -> str:
    make_run(folder, **made)  # type: ignore[arg-type]
    return write_report(folder).read_text()


def test_the_first_lines_say_what_was_found(run: Path) -> None:
    results, page = Results.load(run / "results.json"), (run / "report.html").read_text()
    lead = re.search('<div class="lead" id="headline">(.*?)</div>', page, re.DOTALL)
    assert lead is not None
    for words in (f"{results.test['n_images']} test images", f"{results.test['n_patients']} patients", "4 of 5 fields"):
        assert words in lead[1]
    for name in results.encoders:
        e = results.get("auroc", "(macro)", name)
        assert f"{e.value:.3f} ({e.low:.3f}–{e.high:.3f}) for {name}" in lead[1]
    d = results.differences[0]
    assert f"pretrained − untrained, is {d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})" in lead[1]
    assert "the interval does not hold 0; pretrained is better" in lead[1]
    assert "Lesion: 3 present of at least 10" in page
    assert results.run["command"] in page
    for name, value in {"n parameters": "1,234,567", "exclusive": "no", "strength": "0.0316228", "mean": "0.5"}.items():
        assert f"<dt>{name}</dt><dd>{value}" in re.sub(r"\s*\n\s*", "", page)


def test_a_difference_that_is_not_shown_and_one_the_other_way(tmp_path: Path) -> None:
    same = page_of(tmp_path / "same", encoders={"one": 1.0, "other": 1.0})
    assert "the interval holds 0; no difference is shown" in same
    worse = page_of(tmp_path / "worse", encoders={"one": 0.1, "other": 3.0})
    assert re.search(r"one − other, is -0\.\d+ .*; other is better", worse)


def test_the_page_asks_for_nothing_and_runs_nothing(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "<script" not in page
    assert "default-src 'none'" in page
    addresses = re.findall(r'(?:src|href|action|data)="([^"]*)"|url\(([^)]*)\)|@import', page)
    assert {a or b for a, b in addresses if not (a or b).startswith(("#", "data:"))} == set()


def test_names_are_text_wherever_they_come(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    page = page_of(
        tmp_path,
        fields=[evil, "Edema"],
        encoders={"<b>bold</b>": 1.0},
        rare=[],
        task="<i>task</i>",
        warnings=["<u>warning</u>"],
        skipped=[("<s>path</s>", "<em>reason</em>")],
        run={"command": "<q>command</q>", "data": {"dataset": "<tt>d</tt>", "card": {"<kbd>k</kbd>": "<var>v</var>"}}},
    )
    for tag in ("script", "b>bold", "i>task", "u>warn", "s>path", "em>", "q>command", "tt>", "kbd>", "var>"):
        assert f"<{tag}" not in page, tag
    assert "&lt;script&gt;" in page


def test_metrics_csv_has_every_number(run: Path) -> None:
    results = Results.load(run / "results.json")
    with (run / "metrics.csv").open(newline="") as file:
        rows = {(row["encoder"], row["field"], row["metric"]): row for row in csv.DictReader(file)}
    assert len(rows) == 2 * (5 + 1) * 5 + 2
    for name in results.encoders:
        for field in (*results.fields, "(macro)"):
            for metric in METRICS:
                e, row = results.get(metric, field, name), rows[name, field, metric]
                assert [row[key] for key in ("value", "low", "high")] == [text(v) for v in (e.value, e.low, e.high)]
                counts = [text(results.test[key].get(field)) for key in ("n_present", "n_absent")]
                assert [row["n_present"], row["n_absent"]] == counts
    d = results.differences[0]
    assert rows["pretrained - untrained", "(macro)", "auroc"]["value"] == text(d.value)


def test_classes_have_accuracy_and_a_confusion_matrix(tmp_path: Path) -> None:
    results = make_run(tmp_path, fields=["liver", "heart", "spleen"], exclusive=True, n=100)
    page = write_report(tmp_path).read_text()
    table = page[page.index('<table class="confusion">') :]
    cells = re.findall(r"<td[^>]*>([\d.]+)</td>", table[: table.index("</table>")])
    assert [float(cell) for cell in cells] == [n for row in results.confusion["pretrained"] for n in row]
    assert f"{results.get('accuracy', '(all)', 'pretrained').value:.3f}" in page
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert {row["metric"] for row in csv.DictReader(file) if row["field"] == "(all)"} == {
            "accuracy",
            "balanced_accuracy",
        }


def test_nothing_that_is_missing_stops_the_page(tmp_path: Path) -> None:
    alone = page_of(tmp_path / "alone", fields=["Edema"], rare=[], encoders={"one": 1.0}, examples=0, run={})
    for words in ("nothing to compare", "no examples.npz", "does not hold the command", "says nothing of the data set"):
        assert words in alone
    assert "the encoder has no SPD" in page_of(tmp_path / "no-maps", maps=False)


def test_a_field_of_one_state_has_no_curve_and_the_page_says_so(tmp_path: Path) -> None:
    make_run(tmp_path, rare=[])
    text = (tmp_path / "predictions.csv").read_text().splitlines()
    columns = [row.split(",") for row in text]
    where = columns[0].index("state:Lesion")
    for row in columns[1:]:
        row[where] = "absent"
    (tmp_path / "predictions.csv").write_text("\n".join(map(",".join, columns)) + "\n")
    stored = json.loads((tmp_path / "results.json").read_text())
    stored["test"]["n_present"]["Lesion"] = 0
    stored["macro_fields"] = []
    stored["rows"] = [
        [*row[:4], None, None, None, *row[7:]] if row[1] in ("Lesion", "(macro)") else row
        for row in stored["rows"]
        if not row[-1]
    ]
    stored["excluded"] = dict.fromkeys(stored["fields"], "0 present of at least 10")
    (tmp_path / "results.json").write_text(json.dumps(stored))
    page = write_report(tmp_path).read_text()
    assert page.count('class="panel"') == 2 * 4
    assert "No curve without images of both kinds: Lesion (0 present" in page
    assert "no field has enough images of both kinds" in page
    assert "No difference between the encoders is defined" in page


@pytest.mark.parametrize(
    ("part", "value"),
    [("fields", ["a", "b", "c", "d", "e"]), ("seeds", [7]), ("test images", None), ("AUROC of Edema", None)],
)
def test_files_of_two_runs_are_refused(tmp_path: Path, part: str, value: object) -> None:
    make_run(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    if part == "test images":
        results["test"]["images_sha256"] = "0" * 64
    elif part == "AUROC of Edema":
        (row,) = (row for row in results["rows"] if row[:4] == ["auroc", "Edema", "pretrained", None])
        row[4] += 0.001
    else:
        results[part] = value
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(VividError, match=f"not of one run, they differ in .*{part}"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_examples_are_found_under_the_name_of_their_data_set(tmp_path: Path) -> None:
    make_run(tmp_path, prefix="phantom/")
    page = write_report(tmp_path).read_text()
    assert page.count("is not in predictions.csv") == 0
    assert page.count("data:image/jpeg") == 2 * (1 + 4) + 3 + 1, "images, groups, findings but one, the key"
    assert page.count("Cosines between groups") == 2
    (tmp_path / "examples.npz").unlink()
    assert "data:image/jpeg" not in write_report(tmp_path).read_text()


def test_findings_have_maps_with_name_probability_and_range(tmp_path: Path) -> None:
    make_run(tmp_path)
    heats = Examples.load(tmp_path / "examples.npz").heats
    assert heats is not None
    page = write_report(tmp_path).read_text()
    captions = re.findall(r"<figcaption><b>(.*?)</b><br>(.*?)</figcaption>", page)
    expected = []
    for fields, probabilities, values in zip(heats.fields, heats.probabilities, heats.values, strict=True):
        for field, probability, value in zip(fields, probabilities, values, strict=True):
            told = f"0 to {value.max():+.3f} log odds"
            if value.max() < 0:
                told = f"no evidence: the strongest cell takes {value.max():+.3f} log odds"
            expected.append((f"{field} {probability:.2f}", told))
    assert [one for one in captions if "log odds" in one[1]] == expected
    assert sum("no evidence" in told for _, told in expected) == 1
    assert "no outline of a disease" in page
    make_run(tmp_path, heats=False)
    assert "There are no maps of findings" in write_report(tmp_path).read_text()


def test_the_same_files_make_the_same_page(run: Path, tmp_path: Path) -> None:
    assert write_report(run, tmp_path / "again.html").read_bytes() == (run / "report.html").read_bytes()


def test_a_large_run_is_a_small_page(tmp_path: Path) -> None:
    fields = [f"Finding {i}" for i in range(14)]
    skills = {"a": 2.0, "b": 1.0, "c": 0.5}
    make_run(tmp_path, fields=fields, encoders=skills, seeds=(0, 1, 2), n=1000, rare=[], examples=6)
    page = write_report(tmp_path)
    assert page.stat().st_size < 3e6


def test_the_command_writes_the_page_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "results cannot be read" in capsys.readouterr().err


def text(value: float | None) -> str:
    return "" if value is None else str(value)
