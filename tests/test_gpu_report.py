"""The report of what pretraining costs on a GPU, in small shapes on the CPU, and what becomes of its cases."""

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from gpu_report import Bench, Case, measure, table

from vivid_monai.assets import tiny_teacher_path

ABOUT = {"gpu": None, "torch": "2", "transformers": "5", "tokenizer": "made"}
ABOUT |= {"shapes": {"vit": "micro", "size": 32, "lm": "tiny", "dtype": "float32"}}


def fails():
    raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")


def test_a_case_that_fails_is_one_line_and_the_others_go_on(tmp_path):
    out = tmp_path / "report.json"
    cases = [Case("layouts", "published", 0, fails), Case("layouts", "slots", 0, lambda: {"images": 4})]
    report = measure(cases, ABOUT, out, minutes=1)
    published, slots = report["sections"]["layouts"]
    assert published["error"] == "CUDA out of memory."
    assert slots["images"] == 4
    assert json.loads(out.read_text()) == report
    assert "layouts, published: CUDA out of memory." in table(report)


def test_what_no_time_is_left_for_is_named_as_skipped(tmp_path):
    cases = [Case("first", "quick", 5, lambda: {"images": 4}), Case("second", "slow", 600, fails)]
    cases.append(Case("third", "quick", 5, lambda: {"images": 8}))
    report = measure(cases, ABOUT, tmp_path / "report.json", minutes=1)
    assert "it needs about 600" in report["sections"]["second"][0]["skipped"]
    assert report["sections"]["third"][0]["images"] == 8
    assert "second, slow: skipped, " in table(report)


def test_a_case_that_takes_too_long_is_ended(tmp_path):
    cases = [Case("first", "stuck", 0, lambda: time.sleep(30) or {}), Case("second", "late", 0.01, fails)]
    report = measure(cases, ABOUT, tmp_path / "report.json", minutes=0.2 / 60)
    assert "time of the report was over" in report["sections"]["first"][0]["error"]
    assert "skipped" in report["sections"]["second"][0]
    assert report["seconds"] < 10


def test_the_last_whole_report_outlives_its_process(tmp_path):
    def killed():
        raise KeyboardInterrupt

    cases = [Case("first", "quick", 0, lambda: {"images": 4}), Case("second", "killed", 0, killed)]
    with pytest.raises(KeyboardInterrupt):
        measure(cases, ABOUT, tmp_path / "report.json", minutes=1)
    assert list(json.loads((tmp_path / "report.json").read_text())["sections"]) == ["first"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A few of the real cases, and all others as they are named."""
    wanted = {
        ("matrix product", "float32"),
        ("layouts", "published"),
        ("layouts", "short slots"),
        ("recipe of the paper", "short_slots"),
        ("attention of the LM", "short slots: eager"),
    }
    bench = Bench(tiny_teacher_path(), tiny=True)
    cases = [case for case in bench.cases() if (case.section, case.name) in wanted]
    assert len(cases) == len(wanted)
    report = measure(cases, bench.about(), tmp_path_factory.mktemp("report") / "report.json", minutes=5)
    return {(section, row["case"]): row for section, rows in report["sections"].items() for row in rows}, report


def test_the_steps_are_measured_and_their_work_is_counted(report):
    rows, whole = report
    assert not [row for row in rows.values() if "error" in row or "skipped" in row]
    published, short = rows["layouts", "published"], rows["layouts", "short slots"]
    # Eight image embeddings, and a position for each of the fields asked of the image that is asked most.
    assert 12 <= short["positions"] <= 14
    assert published["tflop_per_image"] > 3 * short["tflop_per_image"] > 0
    rate = rows["matrix product", "float32"]["tflop_per_s"]
    assert short["mfu"] == pytest.approx(short["tflop_per_image"] * short["images_per_s"] / rate, rel=0.15)
    faster = short["images_per_s"] / published["images_per_s"]
    assert f"| {faster:.1f} |" in table(whole)


def test_the_recipe_is_the_job_of_the_bundle(report):
    recipe = report[0]["recipe of the paper", "short_slots"]
    assert recipe["steps"] == 8
    assert recipe["hours_of_10000_steps"] == pytest.approx(10_000 * 4 / recipe["images_per_s"] / 3600, rel=0.05)


def test_performance_shows_a_stored_report():
    docs = Path(__file__).parents[1] / "docs"
    page, stored = (docs / "performance.md").read_text(encoding="utf-8"), docs / "measured" / "gpu_report.json"
    if stored.exists():
        assert table(json.loads(stored.read_text(encoding="utf-8"))) in page
    else:
        assert "gpu_report.json` is not there yet" in page
