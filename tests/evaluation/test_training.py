"""What the page says of a training: its curves, its time, its knobs; nothing of it on the page of an evaluation."""

import json
import re
from pathlib import Path

import pytest

from tests.evaluation.made_run import make_run
from vivid_monai.errors import VividError
from vivid_monai.evaluation.report import write_comparison, write_report
from vivid_monai.evaluation.training import read_knobs, read_training
from vivid_monai.storage.configs import packaged_configs
from vivid_monai.storage.curves import write_rows

CONFIG = {"_desc_": "made", "imports": ["$import x"], "name": "mine", "seed": 3, "vit": "nano", "amp": False}
CONFIG |= {"rare_fields": ["Fracture"], "device": "$device()", "spd": {"groups": 4}, "batch_size": 16}


def trained(folder: Path, *, times: bool = True) -> Path:
    """A run with the files that a training leaves: 10 images/s for 20 steps, 40 images/s for 20."""
    make_run(folder, examples=0)
    losses = {10: 2.0, 20: 1.5, 40: 0.75}
    write_rows(
        folder / "curves.csv",
        [{"step": step, "train/nll": loss, "lr/vit": 1e-4, "val/macro_auroc": 0.7} for step, loss in losses.items()],
    )
    speeds = {10: (100, 10.0), 20: (130, 10.0), 40: (200.4, 40.0)}
    rows = [{"step": step, "seconds": s, "images_per_s": fast} for step, (s, fast) in speeds.items()]
    if times:
        write_rows(folder / "times.csv", rows)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def text_of(page: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", page).split())


def test_the_page_tells_of_the_training(tmp_path: Path) -> None:
    page = write_report(trained(tmp_path)).read_text()
    assert re.search("<h1>phantom-findings: vit-micro/16 on phantom</h1>", page)
    section = page[page.index('<section aria-labelledby="training">') : page.index('<section aria-labelledby="data">')]
    said = text_of(section)
    assert "40 steps in 3 min 20 s, validation included; 16.0 images/s, validation apart." in said
    assert section.count('class="curve"') == 4
    assert "train/nll 0.75" in said
    assert "train/nll 2 to 0.75" in section
    differ, others = said.split("All others")
    shipped = json.loads((packaged_configs() / "train.json").read_text())
    assert f"seed 3 {shipped['seed']}" in differ
    assert f"rare_fields Fracture {', '.join(shipped['rare_fields'])}" in differ
    assert "vit nano" in others
    assert "batch size 16" in others
    assert "imports" not in said
    assert "device()" not in said
    assert "<script" not in page


def test_pages_of_evaluations_do_not(tmp_path: Path) -> None:
    make_run(tmp_path, examples=0)
    page = write_report(tmp_path).read_text()
    assert 'id="training"' not in page
    assert "<h1>phantom-findings</h1>" in page


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    folder = trained(tmp_path, times=False)
    assert "no times.csv" in write_report(folder).read_text()
    told = read_training(folder, defaults=tmp_path / "nowhere.json")
    assert told is not None
    assert (told.changed, told.seconds, told.images_per_s) == ({}, None, None)
    assert told.others == read_knobs(folder / "config.json")
    (folder / "config.json").unlink()
    assert "keeps no config.json" in write_report(folder).read_text()


@pytest.mark.parametrize(
    ("name", "text"), [("curves.csv", "step,a\n1,x\n"), ("times.csv", "a\n1\n"), ("config.json", "[1")]
)
def test_broken_files_are_named(tmp_path: Path, name: str, text: str) -> None:
    (trained(tmp_path) / name).write_text(text)
    with pytest.raises(VividError, match=str(tmp_path / name)):
        write_report(tmp_path)


def test_a_comparison_has_the_titles(tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("second", 2)):
        make_run(tmp_path / name, encoders={"encoder": 1.0}, seed=seed, task=f"task-{name}")
    page = write_comparison([tmp_path / "first", tmp_path / "second"], tmp_path / "page.html").read_text()
    for name in ("first", "second"):
        assert text_of(page).count(f"task-{name}: vit-micro/16 on phantom") == 3
