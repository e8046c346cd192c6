"""``vivid verify`` prints every violation with file and line, and tells by its exit status what it found."""

import json

import pytest

from vivid_monai.cli import main
from vivid_monai.ums.record import Finding, ImageInfo, Provenance, Record


def record(label_space="chexpert-14", **states) -> dict:
    findings = {name.replace("_", " "): Finding(state) for name, state in states.items()}
    made_by = Provenance("d", "l", None, "report")
    return Record(
        "1", "p", ImageInfo("a.png"), "DX", "chest", None, findings, made_by, label_space=label_space
    ).to_dict()


GOOD = record(Edema="present", Lung_Opacity="present")
CHILD = record(Edema="present", Lung_Opacity="absent")
PLAIN = record(None, Edema="present", Lung_Opacity="absent")


@pytest.fixture
def vivid(tmp_path, monkeypatch, capsys):
    """Run ``vivid`` in an empty folder and return the exit status and the printed lines."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, list[str]]:
        status = main(arguments)
        return status, capsys.readouterr().out.splitlines()

    return run


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def test_valid_lines_end_in_status_0(vivid, tmp_path):
    write(tmp_path / "a.jsonl", GOOD, "", GOOD)
    assert vivid("verify", "a.jsonl") == (0, ["2 records, 0 of them with 0 violations"])


def test_each_violation_has_file_line_pointer_code_and_sentence(vivid, tmp_path):
    write(tmp_path / "a.jsonl", GOOD, "", CHILD | {"age": -1})
    write(tmp_path / "b.NDJSON", CHILD)
    child = (
        '"/findings/Edema/state" hierarchy '
        "'Edema' is present although 'Lung Opacity', of which it is a kind, is absent"
    )
    assert vivid("verify", "a.jsonl", "b.NDJSON") == (
        1,
        [
            'a.jsonl:3 "/age" range -1 is less than the minimum of 0',
            f"a.jsonl:3 {child}",
            f"b.NDJSON:1 {child}",
            "3 records, 2 of them with 3 violations",
        ],
    )


def test_a_json_file_holds_one_record_or_an_array(vivid, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(CHILD, indent=2), encoding="utf-8-sig")
    write(tmp_path / "all.json", [GOOD, CHILD, 3])
    status, lines = vivid("verify", "one.json", "all.json")
    assert status == 1
    assert [line.split(" ")[:2] for line in lines[:-1]] == [
        ["one.json:1", '"/findings/Edema/state"'],
        ["all.json:1", '"/1/findings/Edema/state"'],
        ["all.json:1", '"/2"'],
    ]


def test_what_cannot_be_read_is_told_and_the_rest_checked(vivid, tmp_path):
    write(tmp_path / "a.jsonl", "{", CHILD, '{"id": 1, "id": 2}')
    (tmp_path / "b.jsonl").write_bytes(b'{"id": "\xff"}\n')
    status, lines = vivid("verify", "missing.json", "a.jsonl", "b.jsonl", ".")
    assert status == 2
    assert lines[0] == 'missing.json:1 "" unreadable cannot be read: No such file or directory'
    assert lines[1].startswith('a.jsonl:1 "" unreadable record: not JSON')
    assert lines[2].startswith('a.jsonl:2 "/findings/Edema/state" hierarchy')
    assert lines[3].startswith("a.jsonl:3 \"\" unreadable record: key 'id' stands twice")
    assert lines[4] == 'b.jsonl:1 "" unreadable not UTF-8 text: invalid start byte at byte 8'
    assert lines[5].startswith('.:1 "" unreadable cannot be read')
    assert lines[6:] == ["1 records, 1 of them with 1 violations; 5 unreadable"]


def test_a_label_space_given_is_used_and_its_lack_is_said(vivid, tmp_path):
    write(tmp_path / "a.jsonl", PLAIN)
    status, lines = vivid("verify", "a.jsonl")
    assert status == 0
    assert lines[-1].endswith("; 1 name no label space, so fields and hierarchy were not checked (see --label-space)")
    assert vivid("verify", "a.jsonl", "--label-space", "chexpert-12")[0] == 1


def test_an_unknown_label_space_is_one_line_and_status_2(vivid, tmp_path, capsys):
    write(tmp_path / "a.jsonl", PLAIN)
    assert main(["verify", "a.jsonl", "--label-space", "nih-15"]) == 2
    error = capsys.readouterr().err
    assert "no label space 'nih-15'" in error
    assert "Traceback" not in error


def test_odd_characters_do_not_break_lines_or_the_output(vivid, tmp_path):
    write(tmp_path / "a.jsonl", '{"a\\nb\\u2028": 1, "ums_version": "\\u0085\\n"}')
    status, lines = vivid("verify", "a.jsonl")
    assert status == 1
    assert all(line.startswith("a.jsonl:1 ") for line in lines[:-1])
    assert any(line.startswith('a.jsonl:1 "/a\\nb\\u2028" schema') for line in lines)


def test_half_a_surrogate_pair_is_no_text(vivid, tmp_path):
    write(tmp_path / "a.jsonl", '{"a": "\\ud800"}')
    status, lines = vivid("verify", "a.jsonl")
    assert status == 2
    assert lines[0] == "a.jsonl:1 \"\" unreadable record: holds half of a surrogate pair ('\\ud800'), no text"
