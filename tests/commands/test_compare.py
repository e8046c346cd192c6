"""``vivid compare``: arms, runs, twins and claims; tests/bundle/test_compare.py has a whole comparison."""

import argparse
import json
import os
import time
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from tests.evaluation.small import PREPROCESS
from vivid_monai.cli import build_parser, main
from vivid_monai.commands import compare
from vivid_monai.commands.arms import read_arms
from vivid_monai.commands.compare import Matrix
from vivid_monai.errors import VividError
from vivid_monai.networks.modules import save_module
from vivid_monai.networks.resnet import ResNet
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the configs of the checkout and a data set; the current one."""
    (tmp_path / "configs").symlink_to(CONFIGS)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "mine" / "manifest.parquet").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def matrix(*words: str, data: str = "data/mine") -> Matrix:
    return Matrix(parsed(*words, data=data))


def parsed(*words: str, data: str = "data/mine") -> argparse.Namespace:
    return build_parser("compare").parse_args(["compare", data, *words])


def run_folder(made: Matrix, arm: str, seed: int, network=None, spd=None, pool="mean", **config) -> None:
    """What a finished run leaves that a comparison looks at."""
    folder = made.folder(arm, seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"seed": seed, "batch_size": 16, "max_epochs": 4, "epoch_length": 200, "warmup_steps": 100, **config}
    (folder / "config.json").write_text(json.dumps(config))
    network = network or ViT(img_size=16, patch_size=8, preset="micro")
    kind = "resnet" if isinstance(network, ResNet) else "vit"
    parts = {"spd": spd, "pool": pool, "preprocess": PREPROCESS.to_dict()}
    save_module(network, folder / "initial_vit.safetensors", kind=kind, **parts)
    (folder / "results.json").write_text("{}")


def test_every_arm_of_the_table_makes_a_config_that_monai_reads():
    arms = read_arms(list(json.loads((CONFIGS / "arms.json").read_text())), CONFIGS, {"dino": "transformers:dino"})
    knobs, tuning = (set(json.loads((CONFIGS / name).read_text())) for name in ("train.json", "finetune.json"))
    assert {"lm", "random_lm", "none", "phrases", "bce_vit", "resnet18", "densenet121", "thumbnails"} <= arms.keys()
    for arm in arms.values():
        assert arm.says
        assert arm.knobs.keys() <= (knobs | tuning if arm.finetunes else knobs), arm.name
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / "train.json"), *arm.configs])
    for name, kind in (("resnet18", "ResNet"), ("densenet121", "DenseNet"), ("bce_vit", "ViT")):
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / "train.json"), *arms[name].configs])
        assert parser["network_def#encoder#_target_"].endswith(f".{kind}")
        assert list(parser["objectives"]) == ["findings"]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"mine": {"config": []}}, "the arm 'mine' has config; it takes says"),
        ({"mine": {"says": "nothing"}}, "needs either configs and knobs, or an encoder"),
        ({"mine": {"encoder": "a.safetensors", "knobs": {}}}, "needs either"),
        ({"mine": {"configs": ["teacher/nobody.json"]}}, "there is no teacher/nobody.json"),
        ({"mine": []}, "is no table"),
        ({}, "holds no arm"),
        ({"lm": {"configs": []}}, "'lm' is given twice"),
        ({"untrained": {"configs": []}}, "has the name of the untrained twins"),
    ],
)
def test_arms_of_ones_own_that_are_wrong(checkout, table, told):
    (checkout / "mine.json").write_text(json.dumps(table))
    with pytest.raises(VividError, match=told):
        read_arms(["lm", "mine.json"], Path("configs"))


def test_an_arm_that_is_not_known(checkout):
    with pytest.raises(VividError, match=r"no arm 'bce_vitt'; did you mean bce_vit\?"):
        read_arms(["bce_vitt"], Path("configs"))
    with pytest.raises(VividError, match="--against none: it is none of the arms lm"):
        matrix("--arms", "lm", "--against", "none")
    with pytest.raises(VividError, match=r"data/other: no manifest\.parquet"):
        matrix(data="data/other")


def test_a_run_for_every_arm_and_seed_that_is_trained(checkout):
    (checkout / "own").mkdir()
    (checkout / "own" / "wide.json").write_text("{}")
    own = {"wide": {"says": "wider", "configs": ["wide.json", "teacher/none.json"], "knobs": {"groups": 8}}}
    (checkout / "own" / "arms.json").write_text(json.dumps(own))
    words = ["--arms", "phrases", "own/arms.json", "thumbnails", "--seeds", "3", "5", "--out", "there"]
    cells = matrix(*words, "--set", "groups=2", "vit=tiny", "--configs", "extra.json").cells()
    assert [cell.name for cell in cells] == ["phrases, seed 3", "wide, seed 3", "phrases, seed 5", "wide, seed 5"]
    assert [cell.folder for cell in cells][:2] == ["there/images/phrases/3", "there/images/wide/3"]
    common = ("configs/train.json", "configs/data/table.json", "extra.json")
    assert cells[0].configs == (*common, "configs/teacher/tiny.json")
    assert cells[3].configs == (*common, "own/wide.json", "configs/teacher/none.json")
    assert (cells[0].knobs["groups"], cells[3].knobs["groups"]) == ("2", 8)
    assert (cells[3].knobs["seed"], cells[3].knobs["vit"], cells[0].knobs["layout"]) == (5, "tiny", "phrases")
    assert matrix(data="data/phantom").cells()[0].configs[1] == "configs/data/phantom.json"
    both = matrix("data/mine", "--arms", "lm").cells()[0]
    assert both.configs[1] == "configs/data/union.json"
    assert both.knobs["dataset_dir"] == ["data/mine", "data/mine"]


def test_an_arm_that_lacks_a_run_is_left_out(checkout):
    made = matrix("--arms", "lm", "bce_vit", "thumbnails", "--seeds", "0", "1")
    for seed in (0, 1):
        run_folder(made, "lm", seed)
    run_folder(made, "bce_vit", 0)
    assert made.complete() == ["lm", "thumbnails"]
    assert made.claims() == [("lm", "untrained"), ("lm", "thumbnails")]
    assert made.encoders() == {
        "lm": [f"runs/compare/mine/images/lm/{seed}/pretrained_vit.safetensors" for seed in (0, 1)],
        "thumbnails": ["thumbnails:24"],
        "untrained": [f"runs/compare/mine/images/lm/{seed}/initial_vit.safetensors" for seed in (0, 1)],
    }


def test_each_kind_of_network_has_an_untrained_twin(checkout):
    made = matrix("--arms", "lm", "bce_vit", "none", "resnet18", "one_group", "thumbnails", "--seeds", "0")
    run_folder(made, "lm", 0, spd=SPD(128))  # by which it is not read out
    run_folder(made, "bce_vit", 0)
    run_folder(made, "none", 0, vit_weights="imagenet.safetensors")  # starts elsewhere
    run_folder(made, "resnet18", 0, ResNet(img_size=16, width=8))
    run_folder(made, "one_group", 0, spd=SPD(128, groups=1, queries=8), pool="spd")
    own = ("none", "resnet18", "one_group")
    twins = {"lm": "untrained", "bce_vit": "untrained"} | {name: f"untrained {name}" for name in own}
    assert made.twins() == twins
    assert list(made.encoders())[-4:] == ["untrained", *(f"untrained {name}" for name in own)]
    claims = made.claims()
    assert set(twins.items()) <= set(claims)
    assert {("lm", "none"), ("resnet18", "bce_vit"), ("bce_vit", "thumbnails")} <= set(claims)
    assert not {(b, a) for a, b in claims} & set(claims)


def test_runs_of_an_arm_that_are_not_of_one_recipe_are_told(checkout):
    made = matrix("--arms", "lm", "--seeds", "0", "1")
    run_folder(made, "lm", 0)
    run_folder(made, "lm", 1, max_epochs=8)
    with pytest.raises(VividError, match=r"images/lm/1/config\.json: differs from the arm's first run in max_epochs"):
        made.twins()


def test_equal_time_is_that_of_the_slowest_arm(checkout, monkeypatch):
    words = ["--arms", "lm", "bce_vit", "thumbnails", "--seeds", "0", "--equal", "time"]
    made = matrix(*words)
    run_folder(made, "lm", 0)
    run_folder(made, "bce_vit", 0)
    monkeypatch.setattr(compare, "seconds_per_step", lambda folder: 0.4 if "/lm/" in str(folder) else 0.1)
    (cell,) = made.timed()
    assert (cell.name, cell.folder) == ("bce_vit (equal time), seed 0", "runs/compare/mine/time/bce_vit/0")
    assert (cell.knobs["epoch_length"], cell.knobs["warmup_steps"]) == (800, 400)
    run_folder(made, "bce_vit (equal time)", 0, epoch_length=800)
    assert made.complete() == ["lm", "bce_vit", "thumbnails", "bce_vit (equal time)"]
    assert ("bce_vit (equal time)", "untrained") in made.claims()
    assert ("lm", "bce_vit") in made.claims()
    assert made.told("bce_vit (equal time)")["images"] == 4 * made.told("lm")["images"] == 4 * 12_800
    assert made.told("bce_vit (equal time)")["minutes"] == pytest.approx(4 * 800 * 0.1 / 60)
    assert "as long as the slowest" in made.equal()
    shorter = {cell.name: cell.knobs["epoch_length"] for cell in matrix(*words, "--minutes", "1").timed()}
    assert shorter == {"lm (equal time), seed 0": 38, "bce_vit (equal time), seed 0": 150}


def test_arms_of_start_encoders_are_there_for_each(checkout, monkeypatch):
    monkeypatch.setattr(compare, "seconds_per_step", lambda folder: 0.1)
    words = ["--arms", "finetuned", "from_scratch", "linear_probe", "lm", "--seeds", "0"]
    starts = ["--starts", "ours=runs/phantom/001", "xrv=torchxrayvision:densenet121=a.pt"]
    made = matrix(*words, *starts, "--against", "finetuned ours")
    trained = ["finetuned ours", "finetuned xrv", "from_scratch ours", "from_scratch xrv"]
    cells = made.cells()
    assert [cell.name for cell in cells] == [f"{name}, seed 0" for name in (*trained, "lm")]
    assert [cell.job for cell in cells] == [*["finetuning"] * 4, "training"]
    assert [cell.knobs.get("start") for cell in cells] == [
        "runs/phantom/001",
        "torchxrayvision:densenet121=a.pt",
        "untrained:runs/phantom/001",
        "untrained:torchxrayvision:densenet121=a.pt",
        None,
    ]
    assert cells[0].configs[-1] == "configs/finetune.json"
    assert cells[0].folder == "runs/compare/mine/images/finetuned ours/0"
    for name in (*trained, "lm"):
        run_folder(made, name, 0)
        (made.folder(name, 0) / "checkpoints").mkdir()
        (made.folder(name, 0) / "checkpoints" / "step_70.pt").write_text("")
    assert made.encoders()["linear_probe xrv"] == ["torchxrayvision:densenet121=a.pt"]
    assert made.twins() == {"lm": "untrained"}, "what a fine-tuning started from is not untrained"
    claims = made.claims()
    assert [one for one in claims if one[0] == "finetuned xrv"] == [
        ("finetuned xrv", "from_scratch xrv"),
        ("finetuned xrv", "linear_probe xrv"),
        ("finetuned xrv", "finetuned ours"),
    ]
    assert ("from_scratch ours", "linear_probe ours") in claims
    assert (made.told("finetuned ours")["images"], made.told("lm")["images"]) == (70 * 16, 800 * 16)


def test_the_best_validation_over_the_seeds_chooses_what_an_arm_is(checkout, monkeypatch):
    monkeypatch.setattr(compare, "seconds_per_step", lambda folder: 0.1)
    words = ["--arms", "finetuned", "linear_probe", "--starts", "ours=a.safetensors", "--seeds", "0", "1"]
    made = matrix(*words, "--try", "learning_rate=1e-5,1e-4", "--try", "trained=all,lora:4")
    settings = [
        f"learning_rate={rate}, trained={trained}" for rate in ("1e-5", "1e-4") for trained in ("all", "lora:4")
    ]
    cells = made.cells()
    assert [cell.name for cell in cells[:4]] == [f"finetuned ours, {one}, seed 0" for one in settings]
    assert cells[3].folder == "runs/compare/mine/images/finetuned ours, learning_rate=1e-4, trained=lora:4/0"
    assert (cells[3].knobs["learning_rate"], cells[3].knobs["trained"]) == ("1e-4", "lora:4")
    assert made.complete() == ["linear_probe ours"], "nothing is chosen yet"
    for setting, bests in zip(settings[:3], [(0.9, 0.5), (0.7, 0.8), (0.6, 0.8)], strict=True):
        for seed, best in enumerate(bests):
            run_folder(made, f"finetuned ours, {setting}", seed)
            folder = made.folder(f"finetuned ours, {setting}", seed)
            rows = "".join(f"{step},{value}\n" for step, value in ((0, 0.4), (4, best), (8, 0.45)))
            (folder / "curves.csv").write_text("step,val/macro_auroc\n" + rows)
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "step_8.pt").write_text("")
    run_folder(made, f"finetuned ours, {settings[3]}", 0)  # seed 1 failed
    tried = made.choose()
    assert [(one.setting, one.chosen) for one in tried] == [(one, one == settings[1]) for one in settings]
    assert [one.mean for one in tried] == [0.7, 0.75, pytest.approx(0.7), None]
    assert tried[1].validation == (0.7, 0.8)
    chosen = f"runs/compare/mine/images/finetuned ours, {settings[1]}"
    assert made.encoders() == {
        "finetuned ours": [f"{chosen}/{seed}/pretrained_vit.safetensors" for seed in (0, 1)],
        "linear_probe ours": ["a.safetensors"],
    }
    assert "trained=lora:4" in made.told("finetuned ours")["settings"]
    assert made.claims() == [("finetuned ours", "linear_probe ours")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--arms", "lm", "--try", "learning_rate=1,2"], "--try is for fine-tuned arms"),
        (["--arms", "finetuned", "--starts", "a=b", "--try", "ema=.9", "ema=.99"], "ema is given twice"),
        (["--arms", "finetuned", "--starts", "a=b", "--try", "ema=.9,"], "each of the values once"),
        (["--arms", "finetuned", "--starts", "a=b", "--try", "ema"], "--try ema: write KEY=VALUE"),
        (["--arms", "finetuned"], "the arm 'finetuned' needs an encoder to start from: --starts"),
        (["--arms", "lm", "--starts", "ours=a"], "--starts ours: none of the arms takes a start encoder"),
        (["--arms", "finetuned", "--starts", "a:b=c"], "'a:b' cannot name an encoder"),
        (["--arms", "finetuned", "--starts", "a=b", "--equal", "time"], "--equal time is for pretraining"),
    ],
)
def test_start_encoders_that_cannot_be_meant(checkout, words, told):
    with pytest.raises(VividError, match=told):
        matrix(*words)


def test_an_evaluation_is_repeated_where_it_asked_for_other_runs_or_one_is_newer(checkout, monkeypatch):
    asked = []

    def launch(self, cells):
        asked.append([*cells[0].knobs["encoder"]])
        Path(cells[0].folder, "results.json").write_text("{}")
        return {}

    monkeypatch.setattr(Matrix, "_launch", launch)
    words = ["--arms", "lm", "thumbnails", "--seeds", "0"]
    made = matrix(*words)
    run_folder(made, "lm", 0)
    for _ in range(2):
        assert made.evaluate() == Path("runs/compare/mine/evaluation")
    assert asked == [["lm", "thumbnails", "untrained"]]
    matrix("--arms", "lm", "--seeds", "0").evaluate()
    assert asked[1:] == [["lm", "untrained"]]
    later = time.time() + 10
    os.utime(made.folder("lm", 0) / "results.json", (later, later))
    matrix("--arms", "lm", "--seeds", "0").evaluate()
    assert asked[2:] == [["lm", "untrained"]]


def test_wrong_words_are_one_line(checkout, capsys):
    assert main(["compare", "data/mine", "--set", "vit"]) == 2
    assert capsys.readouterr().err.endswith("--set vit: write KEY=VALUE\n")
    assert main(["compare", "data/mine", "--seeds", "0", "0"]) == 2
    assert "each seed given once" in capsys.readouterr().err
