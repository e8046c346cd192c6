"""The command `vivid`: help that helps, and errors in one line."""

import os
import subprocess
import sys

import pytest

from vivid_monai.cli import COMMANDS, main
from vivid_monai.errors import LONGEST


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_errors_are_one_line(capsys, tmp_path):
    assert main(["verify", str(tmp_path / "nowhere.jsonl")]) == 2
    told = "".join(capsys.readouterr())
    assert "nowhere.jsonl" in told
    assert "Traceback" not in told


def test_a_message_has_at_most_300_characters_with_the_name_of_its_command(capsys, tmp_path):
    assert main(["report", str(tmp_path / f"{'deep/' * 80}nowhere")]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("vivid report: ")
    assert len(told) == 300


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert "vivid-monai" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m vivid_monai.cli labels chexpert-14 | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=os.environ)
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_help_does_not_wait_for_monai():
    code = (
        "import sys; from vivid_monai.cli import build_parser; build_parser().format_help(); print(sorted(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "vivid_monai.cli" in loaded
    assert "'torch'" not in loaded
    assert "vivid_monai.commands" not in loaded


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["predcit"], "vivid: argument COMMAND: no 'predcit'; did you mean predict? It is one of"),
        (["--versoin"], "vivid: there is no option --versoin; did you mean --version?"),
        (["verify", "--wrong"], "vivid verify: there is no option --wrong."),
        (
            ["verify", "x", "--label-spase=y"],
            "vivid verify: there is no option --label-spase; did you mean --label-space?",
        ),
        (["prepare", "tabel"], "vivid prepare: argument SOURCE: no 'tabel'; did you mean table?"),
        (["prepare", "table", "x", "--maping", "y"], "no option --maping; did you mean --mapping?"),
        (["labels", "one", "two"], "vivid labels: two: nothing takes this word"),
        (["phantom", "--seed", "one", "--out", "x"], "vivid phantom: argument --seed: invalid int value: 'one'"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_nearest_right_one(words, line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert line in told
    assert len(told) <= LONGEST + 40


def test_options_may_be_spelt_as_those_of_the_bundle(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "nowhere.jsonl"), "--label_space", "chexpert-14"]) == 2
    assert "nowhere.jsonl" in "".join(capsys.readouterr())


@pytest.mark.parametrize("command", ["prepare", "init", "phantom", "verify", "labels"])
def test_commands_before_training_do_not_wait_for_monai(command):
    code = (
        f"import sys; from vivid_monai.cli import build_parser; build_parser({command!r}); print(sorted(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"'vivid_monai.commands.{COMMANDS[command][0]}'" in loaded
    assert "'torch'" not in loaded
    assert "'monai'" not in loaded
