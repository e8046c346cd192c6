"""``vivid labels`` lists the label spaces and shows one."""

import json

from vivid_monai.cli import main
from vivid_monai.ums.label_space import available_label_spaces, load_label_space


def shown(capsys, *arguments: str) -> str:
    assert main(["labels", *arguments]) == 0
    return capsys.readouterr().out


def test_the_list_names_every_label_space_and_its_size(capsys):
    lines = shown(capsys).splitlines()
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines if " fields " in line}
    assert sizes == {name: len(load_label_space(name).fields) for name in available_label_spaces()}


def test_a_label_space_is_shown_with_order_aliases_parents_and_mappings(capsys):
    lines = shown(capsys, "chexpert-14").splitlines()
    table = [line.split(maxsplit=1) for line in lines if line[:1].isdigit()]
    fields = load_label_space("chexpert-14").fields
    assert [int(index) for index, _ in table] == list(range(len(fields)))
    assert all(rest.startswith(field) for (_, rest), field in zip(table, fields, strict=True))
    assert " ".join(table[fields.index("Edema")][1].split()) == "Edema Lung Opacity Pulmonary Edema"
    assert table[fields.index("Cardiomegaly")][1].split() == [
        "Cardiomegaly",
        "Enlarged",
        "Cardiomediastinum",
        "midline",
    ]
    assert "Beside No Finding, present may be: Support Devices." in lines
    assert any(line.startswith("Shared with nih-14: ") and "Pleural Effusion = Effusion" in line for line in lines)
    assert not any(line.startswith("Shared with lidc") for line in lines)


def test_what_a_label_space_forbids_and_rates_is_said(capsys):
    organs = shown(capsys, "organamnist-11")
    assert "Exclusive: at most one field is present." in organs
    assert "Sided: images must not be mirrored." in organs
    assert "Malignancy is rated 1 to 5: absent up to 2, present from 4" in shown(capsys, "lidc-malignancy")
    assert "Tables write 'No Finding' where every field is absent." in shown(capsys, "nih-14")


def test_a_file_of_ones_own_is_shown(capsys, tmp_path):
    path = tmp_path / "own.json"
    text = {"label_space_version": "1.0", "name": "own", "description": "d", "source": "s", "fields": [{"name": "A"}]}
    path.write_text(json.dumps(text))
    assert shown(capsys, str(path)).startswith("own: d\nSource: s\n")


def test_an_unknown_name_is_one_line_and_status_2(capsys):
    assert main(["labels", "chexpert-13"]) == 2
    error = capsys.readouterr().err
    assert "no label space 'chexpert-13'" in error
    assert "Traceback" not in error
