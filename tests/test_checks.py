"""What a bundle is started with: workflows, options and values that it cannot mean, refused in one line."""

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, create_workflow

from vivid_monai.checks import LIMITS, SEVERAL_KINDS, check_options, refuse_pointers
from vivid_monai.errors import LONGEST, VividError, find_cause, one_line

ROOT = Path(__file__).parents[1]
CONFIG = {
    "imports": ["$from vivid_monai.checks import check_options"],
    "batch_size": 16,
    "max_epochs": 3,
    "learning_rate": 0.1,
    "resume": False,
    "name": "phantom",
    "seeds": [0],
    "min_asked": 4,
    "options": {},
    "device": "$torch.device('cpu')",
    "output_dir": "$'runs/' + @name",
    "pool": None,
    "trainer": {"_target_": "monai.handlers.StatsHandler", "iteration_log": False, "epoch_log": "@max_epochs"},
    "initialize": ["$check_options()"],
    "run": ["$check_options()", "$dict(resume=@resume, seeds=@seeds, batch_size=@batch_size)"],
    "training": "%run",
}


@pytest.fixture
def start(tmp_path):
    """Function that runs the config above with options; what its workflow saw."""

    def run(run_id="training", **options):
        (tmp_path / "train.json").write_text(json.dumps(CONFIG))
        file = str(tmp_path / "train.json")
        return create_workflow(config_file=file, run_id=run_id, logging_file=False, **options).run()[-1]

    return run


def told(start, *args, **options) -> str:
    with pytest.raises(RuntimeError) as raised:
        start(*args, **options)
    cause = find_cause(raised.value)
    assert cause is not None
    assert len(str(cause)) <= LONGEST + 100  # the path of a test is long
    return one_line(cause)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_epoch": 3}, "no option --max_epoch; did you mean --max_epochs?"),
        ({"colour": 3}, "no option --colour. All are items of"),
        ({"options#colour": 3}, "no option --options#colour"),
        (
            {"trainer#epoch_logs": True},
            "--trainer#epoch_logs: StatsHandler takes no epoch_logs; did you mean epoch_log?",
        ),
        ({"experiment_name": "x"}, "no option --experiment_name"),
    ],
)
def test_an_option_that_no_config_has(start, options, words):
    assert words in told(start, **options)


@pytest.mark.parametrize(
    ("run_id", "words"),
    [
        ("trainning", "no workflow 'trainning'"),
        ("trainer", "no workflow 'trainer'"),
        ("seeds", "no workflow 'seeds'"),
        ("initialize", "no workflow 'initialize'"),
    ],
)
def test_a_workflow_that_there_is_not(start, run_id, words):
    line = told(start, run_id)
    assert words in line
    assert line.endswith("Workflows: run, training")
    assert "did you mean training?" in told(start, "trainning")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_epochs": "one"}, "max_epochs is 'one'; it takes a whole number from 1"),
        ({"max_epochs": 2.5}, "max_epochs is 2.5; it takes a whole number from 1"),
        ({"max_epochs": True}, "max_epochs is True; it takes a whole number from 1"),
        ({"batch_size": 0}, "batch_size is 0; it takes a whole number from 1"),
        ({"batch_size": -1}, "batch_size is -1; it takes a whole number from 1"),
        ({"learning_rate": "abc"}, "learning_rate is 'abc'; it takes a number from 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it takes a number from 0"),
        ({"min_asked": "few"}, "min_asked is 'few'; it takes a whole number from 1, or all"),
        ({"seeds": 0}, 'seeds is 0; it takes a list of numbers, such as --seeds "[0]"'),
        ({"seeds": ["a"]}, "seeds is ['a']; it takes a whole number from 0"),
        ({"resume": "maybe"}, "resume is 'maybe'; it takes True or False"),
        ({"name": 7}, "name is 7; it takes a word; quote one that looks like something else: --name \"'7'\""),
        ({"options": 7}, "options is 7; it takes a mapping"),
        ({"output_dir": 7}, "output_dir is 7; it takes a path"),
        ({"device": "gpu"}, "device is 'gpu'; it takes a device of PyTorch that is here: cpu"),
        ({"trainer#epoch_log": 0}, "trainer#epoch_log is 0; it takes a whole number from 1"),
    ],
)
def test_a_value_of_another_kind_or_size(start, options, line):
    assert told(start, **options).startswith(line)


def test_what_is_right_runs_and_words_for_true_are_true(start):
    assert start(resume="true", seeds=(1, 2), batch_size=4) == {"resume": True, "seeds": [1, 2], "batch_size": 4}
    assert start(resume="False")["resume"] is False
    fine = {
        "min_asked": "all",
        "name": "x",
        "learning_rate": 1,
        "pool": "cls",
        "device": "cpu",
        "max_epochs": "@batch_size",
    }
    assert start(**fine, **{"trainer#tag_name": "loss"}, **{"trainer#_disabled_": True})
    assert start("run", **{"_meta_#version": "1"})


def test_a_word_that_stands_alone_is_not_taken_for_initialize(start):
    line = told(start, init_id="1", max_epochs="one")
    assert line.startswith("'1' stands alone in the command; write options as --NAME VALUE, and several values as")


def test_options_of_tracking_are_known_where_there_is_tracking(start, tmp_path):
    settings = {"handlers_id": {}, "configs": {"experiment_name": "here", "save_execute_config": False}}
    (tmp_path / "tracking.json").write_text(json.dumps(settings))
    assert start(tracking=str(tmp_path / "tracking.json"), experiment_name="mine", save_execute_config=False)


def test_a_number_of_a_file_has_its_limits_too(start, tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIG, "batch_size", 0)
    assert told(start) == "batch_size is 0; it takes a whole number from 1"


def test_every_number_of_the_configs_has_limits():
    configs = [*(ROOT / "configs").rglob("*.json"), *(ROOT / "vivid_monai" / "deploy" / "configs").glob("*.json")]
    without = set()
    for path in configs:
        if path.parts[-2] == "prepare" or path.name in ("arms.json", "evidence.json", "metadata.json"):
            continue
        config = ConfigParser.load_config_file(path)
        for name, value in config.items():
            numbers = [one for one in (value if isinstance(value, list) else [value]) if type(one) in (int, float)]
            without |= {name} if numbers and name.split("#")[-1] not in (*LIMITS, *SEVERAL_KINDS) else set()
    assert not without


def test_outside_of_a_bundle_nothing_is_checked():
    check_options()


def test_a_pointer_of_git_lfs_is_no_weights(tmp_path):
    (tmp_path / "model.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(VividError, match=r"model\.pt: is a pointer of Git LFS"):
        refuse_pointers([tmp_path / "nowhere.pt", str(tmp_path / "model.pt")])
