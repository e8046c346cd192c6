"""The command `vivid`: help that helps, and errors in one line."""

import os
import subprocess
import sys

import pytest

from vivid_monai.cli import COMMANDS, main


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
