"""Files that are given: each is found once, or listed with its problem; nothing but files is opened."""

import json
import os
import socket
from pathlib import Path

import pytest

from vivid_monai.deploy.inputs import UNSEEN, find_inputs
from vivid_monai.errors import VividError, printable


def names(found, folder: Path) -> list[str]:
    return [os.path.relpath(one.path, folder) for one in found]


def make(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_finds_every_file_once_in_order(tmp_path):
    make(tmp_path, "b/2.png", "b/1.dcm", "a.txt", ".hidden", "b/.git/c.png")
    found = find_inputs([tmp_path / "b" / "2.png", str(tmp_path)])
    assert names(found, tmp_path) == ["b/2.png", "a.txt", "b/1.dcm"]
    assert [one.size for one in found] == [7, 5, 7]
    assert find_inputs([tmp_path / ".hidden"])[0].size == 7


def test_a_changed_file_is_another_input(tmp_path):
    make(tmp_path, "a.png")
    before = find_inputs([tmp_path / "a.png"])
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert find_inputs([tmp_path / "a.png"]) != before


def test_what_desktops_leave_is_passed_over(tmp_path):
    make(tmp_path, ".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", "__MACOSX/a.png", "@eaDir/a.png", "a.png")
    assert names(find_inputs([tmp_path]), tmp_path) == ["a.png"]


@pytest.mark.parametrize("given", [[""], ["a", ""]])
def test_an_empty_path_is_no_folder(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "a")
    with pytest.raises(VividError, match="a path is empty"):
        find_inputs(given)


def test_nothing_to_answer_is_an_error(tmp_path):
    make(tmp_path, ".DS_Store")
    with pytest.raises(VividError, match="there is no file to answer"):
        find_inputs([tmp_path])
    with pytest.raises(VividError, match="nowhere: there is no such file or folder"):
        find_inputs([tmp_path / "nowhere"])


def test_links_are_followed_once_and_cycles_are_cut(tmp_path):
    make(tmp_path, "real/a.png", "real/deep/b.png")
    (tmp_path / "real" / "deep" / "up").symlink_to("..")
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "real" / "c.png").symlink_to("a.png")
    assert names(find_inputs([tmp_path]), tmp_path) == ["again/a.png", "again/c.png", "again/deep/b.png"]
    assert len(find_inputs([tmp_path / "real", tmp_path / "again"])) == 3


def test_what_is_no_file_is_listed_and_never_opened(tmp_path):
    make(tmp_path, "good.png")
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "nothing.png").symlink_to("/nowhere/x.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "s.png"))
        found = {Path(one.path).name: one.problem for one in find_inputs([tmp_path])}
    assert found.pop("good.png") == ""
    expected = {
        "loop.png": "cannot be opened (Too many levels of symbolic links)",
        "nothing.png": "cannot be opened (No such file or directory)",
        "null.png": "is a device, not a file",
        "pipe.dcm": "is a named pipe, not a file",
        "s.png": "is a socket, not a file",
    }
    assert found == {name: f"{tmp_path / name}: {problem}" for name, problem in expected.items()}
    assert [one.problem for one in find_inputs([tmp_path / "nothing.png"])] == [found["nothing.png"]]


def test_a_folder_without_rights_is_listed(tmp_path, monkeypatch):
    make(tmp_path, "a.png", "closed/b.png", "half/c.png")
    listdir, stat = os.listdir, os.stat

    def refusing(call, what):  # root may enter every folder
        def refused(path, *args, **kwargs):
            if what in str(path):
                raise PermissionError(13, "Permission denied", path)
            return call(path, *args, **kwargs)

        return refused

    monkeypatch.setattr(os, "listdir", refusing(listdir, "closed"))
    monkeypatch.setattr(os, "stat", refusing(stat, "c.png"))
    found = find_inputs([tmp_path])
    assert names(found, tmp_path) == ["a.png", "closed", "half/c.png"]
    assert [UNSEEN in one.problem for one in found] == [False, True, True]


def test_a_file_that_vanishes_is_listed(tmp_path, monkeypatch):
    make(tmp_path, "a.png")
    monkeypatch.setattr(os, "listdir", lambda path: ["a.png", "gone.png"])
    assert [one.problem for one in find_inputs([tmp_path])] == [
        "",
        f"{tmp_path}/gone.png: cannot be opened (No such file or directory)",
    ]


@pytest.mark.parametrize("mark", ["journal.jsonl", "predictions.csv"])
def test_answers_of_before_are_no_inputs(tmp_path, mark):
    make(tmp_path, "in/a.png", "out/overlays/0.png", "out/reports/0.dcm", "out/unreadable.csv", "out/b.png")
    header = json.dumps({"model": "m", "version": "1", "weights": "0"}) + "\n"
    (tmp_path / "out" / mark).write_text(header if mark == "journal.jsonl" else "image,status,Edema\n")
    assert names(find_inputs([tmp_path]), tmp_path) == ["in/a.png", "out/b.png"]  # no image of the user's is lost
    (tmp_path / "out" / mark).write_text("[]\n")
    assert len(find_inputs([tmp_path])) == 6


def test_names_in_any_bytes_are_found_and_can_be_shown(tmp_path):
    with open(os.fsencode(tmp_path) + b"/r\xf6ntgen\n.png", "w"):
        pass
    (one,) = find_inputs([tmp_path])
    assert os.path.exists(one.path)
    assert printable(Path(one.path).name) == "r\\xf6ntgen\\n.png"
    assert printable("Röntgen 肺\u3000.png") == "Röntgen 肺\u3000.png"
