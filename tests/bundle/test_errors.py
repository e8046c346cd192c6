"""What users see when something is wrong: one line that says what and what to do, no traceback."""

import csv
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.bundle.conftest import bundle_command
from tests.processes import kill_once, start_module
from vivid_monai.data.manifest import Manifest
from vivid_monai.networks.modules import save_module
from vivid_monai.networks.vit import ViT


def error_line(done) -> str:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("vivid: ")]
    assert len(lines) == 1, done.stderr[-3000:]
    return lines[0]


@pytest.mark.parametrize(
    ("overlays", "knobs", "words"),
    [
        (["data/nih.json"], {"manifest": "nowhere/manifest.parquet"}, ["nowhere/manifest.parquet"]),
        ([], {"resume": True}, ["nothing to resume"]),
        ([], {"warmup_steps": 100}, ["warmup_steps=100", "8 steps"]),
        (["multi_gpu_train.json"], {}, ["torchrun"]),
        (["teacher/qwen2.5-1.5b.json"], {"teacher_path": "{tmp}/no-lm"}, ["no-lm"]),
        ([], {"vit_weights": "{tmp}/small.safetensors"}, ["small.safetensors"]),
        ([], {"max_epoch": 3}, ["no option --max_epoch; did you mean --max_epochs?"]),
        ([], {"train#trainer#max_epoch": 3}, ["SupervisedTrainer takes no max_epoch; did you mean max_epochs?"]),
        ([], {"evaluation#n_resample": 3}, ["finish_training takes no n_resample; did you mean n_resamples?"]),
        ([], {"train#trainer#max_epochs": "one"}, ["train#trainer#max_epochs is 'one'; it takes a whole number"]),
        ([], {"run_id": "train"}, ["there is no workflow 'train'", "did you mean training?"]),
        ([], {"init_id": "extra"}, ["'extra' stands alone"]),
    ],
    ids=[
        *("no manifest", "nothing to resume", "long warm-up", "no torchrun", "no causal LM", "other size"),
        *("no option", "no argument", "no option of the end", "no number", "no workflow", "a word alone"),
    ],
)
def test_one_clear_line(bundle, tmp_path, overlays, knobs, words):
    (tmp_path / "no-lm").mkdir()
    save_module(ViT(img_size=32, preset="tiny"), tmp_path / "small.safetensors", kind="vit", preprocess={"size": 32})
    knobs = {key: str(value).format(tmp=tmp_path) for key, value in knobs.items()}
    line = error_line(bundle(*overlays, **knobs))
    assert all(word in line for word in words), line


def test_unreadable_images_are_left_out_counted_and_listed(bundle, tmp_path, phantoms):
    mine = tmp_path / "mine"
    shutil.copytree(phantoms, mine)
    broken = sorted((mine / "images").rglob("*.png"))[::10]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    splits = {
        str(mine / row["image"]): row["split"] for row in Manifest.load(mine / "manifest.parquet").table.to_pylist()
    }
    assert {splits[str(path)] for path in broken} == {"train", "val", "test"}
    done = bundle("teacher/none.json", dataset_dir=mine)
    assert done.returncode == 0, done.stderr[-3000:]
    taught, evaluated = (listed(tmp_path / "run" / name) for name in ("skipped_in_training.csv", "skipped.csv"))
    assert taught
    assert {splits[path] for path in taught} == {"train"}
    assert evaluated == {str(path) for path in broken}
    assert f"{len(taught)} images could not be read and were left out" in done.stderr
    assert f"{len(broken)} images could not be read and are left out" in done.stdout


def listed(path: Path) -> set[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"] for row in csv.DictReader(file)}


def test_another_networks_checkpoint_is_refused(bundle, tmp_path):
    done = bundle("teacher/none.json", max_epochs=1, warmup_steps=1)
    assert done.returncode == 0, done.stderr[-3000:]
    line = error_line(bundle("teacher/none.json", max_epochs=1, warmup_steps=1, vit="tiny", resume=True))
    assert "cannot resume: vit was 'nano', is 'tiny'" in line
    assert "holds a run already" in error_line(bundle("teacher/none.json", max_epochs=1, warmup_steps=1))
    assert not (tmp_path / "models").exists(), "nobody asked for it"


def test_a_run_goes_on_as_it_was_asked_for_or_says_what_changed(bundle, tmp_path):
    small = {"max_epochs": 1, "warmup_steps": 1}
    nested = {"train#trainer#max_epochs": 1, "train#optimizer#lr_vit": 0.002}
    done = bundle("teacher/none.json", warmup_steps=1, device="cpu", **nested)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "run" / "curves.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert int(float(last["step"])) == 4
    saved = torch.load(tmp_path / "run" / "checkpoints" / "step_4.pt", weights_only=True)
    assert saved["settings"]["max_epochs"] == 1
    assert saved["lr_scheduler"]["last_epoch"] == 4
    assert float(last["lr/vit"]) == pytest.approx(0.0002), "the schedule ends with the run: a tenth of its top"
    again = bundle("teacher/none.json", warmup_steps=1, resume=True, rotate=20, **nested)
    assert "cannot resume: device was 'cpu'" not in again.stderr
    assert "cannot resume: rotate was 0.0, is 20." in error_line(again)
    assert "train#trainer#max_epochs was 1, is '@max_epochs'" in error_line(
        bundle("teacher/none.json", resume=True, **small)
    )


def test_where_models_cannot_be_written_the_run_keeps_them(bundle, tmp_path):
    (tmp_path / "models").write_text("no folder")
    done = bundle("teacher/none.json", max_epochs=1, warmup_steps=1, publish="true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the models are in" in done.stderr
    assert "also in" not in done.stdout
    assert (tmp_path / "run" / "model.pt").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


def test_an_interrupted_closing_is_one_line_and_resumed(bundle, tmp_path, phantoms):
    small = {"max_epochs": 1, "warmup_steps": 1, "evaluation#n_resamples": 3000}
    knobs = {"dataset_dir": phantoms, "output_dir": tmp_path / "run", "bundle_root": tmp_path, **small}
    command = bundle_command("teacher/none.json", **knobs)
    process = start_module(command[1], command[2:], cwd=tmp_path, stderr=tmp_path / "told")
    kill_once(process, lambda: (tmp_path / "run" / "features").is_dir(), number=signal.SIGINT)
    told = (tmp_path / "told").read_text()
    assert "Traceback" not in told, told[-3000:]
    assert f"vivid: interrupted; continue with the same command plus: --output_dir {tmp_path / 'run'}" in told
    done = bundle("teacher/none.json", resume=True, **small)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "results.json").is_file()
