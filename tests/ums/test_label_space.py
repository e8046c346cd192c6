"""The label spaces of the package are right, and files of one's own are checked."""

import csv
import json

import pytest

from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import (
    Rating,
    available_label_spaces,
    load_label_space,
    normalise,
    parse_label_space,
    side_in,
)

CHEXPERT = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
]  # fmt: skip
PARENTS = {
    "Edema": "Lung Opacity",
    "Consolidation": "Lung Opacity",
    "Pneumonia": "Lung Opacity",
    "Lung Lesion": "Lung Opacity",
    "Atelectasis": "Lung Opacity",
    "Cardiomegaly": "Enlarged Cardiomediastinum",
}
SIX = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pneumonia", "Pneumothorax")


def test_the_promised_label_spaces_are_there():
    promised = {"chexpert-14", "chexpert-12", "nih-14", "nih-shared", "lidc-malignancy", "organamnist-11", "ctrate-18"}
    assert promised <= set(available_label_spaces())


@pytest.mark.parametrize("name", available_label_spaces())
def test_every_file_is_valid_and_its_names_unambiguous(name):
    space = load_label_space(name)  # checks schema, parents, aliases, concepts
    assert space.name == name, "the file is called like the label space"
    assert len(set(space.fields)) == len(space.fields) == len(space.labels)
    for field, label in zip(space.fields, space.labels, strict=True):
        assert {space.resolve(word) for word in (field, label, *space.aliases[field])} == {field}
    assert set(space.parents) | set(space.parents.values()) <= set(space.fields)
    assert space.concepts.keys() == set(space.fields)


@pytest.mark.parametrize("one", available_label_spaces())
@pytest.mark.parametrize("other", available_label_spaces())
def test_mappings_agree_in_both_directions(one, other):
    here, there = load_label_space(one), load_label_space(other)
    forth, back = here.mapping_to(there), there.mapping_to(here)
    assert {there_field: here_field for here_field, there_field in forth.items()} == back
    assert list(forth) == [field for field in here.fields if field in forth], "in the order of the fields"


def test_chexpert_is_its_table_and_hierarchy():
    space = load_label_space("chexpert-14")
    assert list(space.fields) == CHEXPERT
    assert space.parents == PARENTS
    assert space.no_finding == "No Finding"
    assert space.no_finding_compatible == {"Support Devices"}
    assert space.ancestors("Cardiomegaly") == ("Enlarged Cardiomediastinum",)
    assert space.ancestors("Fracture") == ()
    twelve = load_label_space("chexpert-12")
    assert list(twelve.fields) == [field for field in CHEXPERT if field not in ("No Finding", "Pleural Other")]
    assert twelve.parents == PARENTS
    assert twelve.no_finding is None


def test_nih_is_found_under_all_spellings_of_its_tables():
    space = load_label_space("nih-14")
    assert len(space.fields) == 14
    assert space.none_label == "No Finding"
    spellings = {
        "Pleural_Thickening": "Pleural Thickening",
        "pleural thickening": "Pleural Thickening",
        "Infiltrate": "Infiltration",
        "Pleural Effusion": "Effusion",
    }
    assert {label: space.resolve(label) for label in spellings} == spellings
    with pytest.raises(VividError):
        space.resolve("No Finding")


def test_shared_labels_are_those_of_the_transfer_protocol():
    shared = load_label_space("nih-shared")
    assert shared.fields == (*SIX[:4], "Effusion", *SIX[4:], "No Finding")
    seven = {field: field for field in SIX} | {"Effusion": "Pleural Effusion"}
    assert shared.mapping_to(load_label_space("chexpert-14")) == seven | {"No Finding": "No Finding"}
    assert shared.mapping_to(load_label_space("chexpert-12")) == seven
    assert load_label_space("nih-14").mapping_to(load_label_space("chexpert-14")) == seven
    assert shared.mapping_to(load_label_space("lidc-malignancy")) == {}


def test_organs_are_classes_in_order_and_sided():
    space = load_label_space("organamnist-11")
    order = "bladder femur-left femur-right heart kidney-left kidney-right liver lung-left lung-right pancreas spleen"
    assert " ".join(space.fields) == order
    assert space.exclusive
    assert space.sided
    assert space.sides["kidney-right"] == "right"
    assert space.sides["heart"] == "midline"
    assert space.labels[4] == "left kidney"
    sided = {name for name in available_label_spaces() if load_label_space(name).sided}
    assert sided == {"organamnist-11"}


def test_malignancy_follows_its_cut_offs():
    rating = load_label_space("lidc-malignancy").ratings["Malignancy"]
    states = {value: rating.state(value) for value in (1, 2, 2.25, 3, 3.99, 4, 5)}
    assert states == {
        1: "absent", 2: "absent", 2.25: "uncertain", 3: "uncertain", 3.99: "uncertain", 4: "present", 5: "present",
    }  # fmt: skip
    for value in (0.9, 5.1, float("nan")):
        with pytest.raises(VividError, match="outside the scale 1 to 5"):
            rating.state(value)
    assert rating == Rating(1, 5, 2, 4)


@pytest.mark.real_data
def test_ctrate_and_nih_tables_name_exactly_the_fields(real_data):
    with (real_data / "reports" / "ctrate_train.csv").open(newline="", encoding="utf-8") as file:
        assert tuple(next(csv.reader(file))[2:]) == load_label_space("ctrate-18").fields
    space = load_label_space("nih-14")
    with (real_data / "nih" / "Data_Entry_2017_v2020.csv").open(newline="", encoding="utf-8") as file:
        labels = {label for row in csv.DictReader(file) for label in row["Finding Labels"].split("|")}
    assert {space.resolve(label) for label in labels - {space.none_label}} == set(space.fields)
    with (real_data / "nih" / "BBox_List_2017.csv").open(newline="", encoding="utf-8") as file:
        boxed = {row["Finding Label"] for row in csv.DictReader(file)}
    assert {space.resolve(label) for label in boxed} <= set(space.fields)


def test_an_unknown_label_is_told_with_its_near_matches():
    space = load_label_space("chexpert-14")
    with pytest.raises(
        VividError, match=r"'Plural Effusion' is not in label space 'chexpert-14'; did you mean 'Pleural E"
    ):
        space.resolve("Plural Effusion")
    with pytest.raises(VividError, match="its fields are No Finding, Enlarged"):
        space.resolve("xyzzy")


def test_words_for_sides():
    sides = {"left base": "left", "RIGHT-upper lobe": "right", "left and right": "bilateral", "Bilateral": "bilateral"}
    assert {text: side_in(text) for text in sides} == sides
    assert side_in("both lungs") == "bilateral"
    assert side_in("cleft, upright") is None
    assert normalise(" Pleural_Thickening (mild)") == "pleural thickening mild"


def own(fields=({"name": "A"},), **rest) -> str:
    head = {"label_space_version": "1.0", "name": "own", "description": "d", "source": "s"}
    return json.dumps({**head, "fields": list(fields), **rest})


def test_a_file_of_ones_own_is_read_by_its_path(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(own([{"name": "Left lung"}, {"name": "Éclat", "aliases": ["Glint"]}]), encoding="utf-8")
    space = load_label_space(path)
    assert space.fields == ("Left lung", "Éclat")
    assert space.sided, "a side in a name counts even where the file does not say it"
    assert space.resolve("éclat") == space.resolve("glint") == "Éclat"
    assert not space.exclusive
    assert load_label_space(str(path)) == space


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        (own(fields=[]), "at /fields: a list should be non-empty"),
        (own(colour=1), "at /colour: unknown key"),
        (own([{"name": "A"}, {"name": "A"}]), "field 'A' is there twice"),
        (own([{"name": "A b"}, {"name": "a_B"}]), "'a_B' names both 'A b' and 'a_B'"),
        (own([{"name": "A", "aliases": ["B"]}, {"name": "B"}]), "'B' names both 'A' and 'B'"),
        (own([{"name": "A", "parent": "B"}]), "parent of 'A' is 'B', which is not a field"),
        (own([{"name": "A", "parent": "B"}, {"name": "B", "parent": "A"}]), "'A' is its own ancestor"),
        (own([{"name": "A", "concept": "c"}, {"name": "B", "concept": "c"}]), "share a concept"),
        (own(no_finding={"field": "None"}), "no_finding field is 'None', which is not a field"),
        (own(no_finding={"field": "A", "compatible": ["X"]}), "'X', which is not a field"),
        (own(none_label="a"), "none_label 'a' is also the name of a field"),
        (own([{"name": "--"}]), "'--' has no letter or digit"),
        (own([{"name": "A left", "side": "right"}]), "'A left' names another side than its side 'right'"),
        (
            own([{"name": "A", "rating": {"minimum": 1, "maximum": 5, "absent_at_most": 4, "present_at_least": 2}}]),
            "the rating of 'A' needs minimum",
        ),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(text, message):
    with pytest.raises(VividError, match=rf"^mine\.json: .*{message}"):
        parse_label_space(text, where="mine.json")


@pytest.mark.parametrize("name", ["chexpert-13", "nowhere/own.json", "."])
def test_a_missing_label_space_names_those_there_are(name):
    with pytest.raises(VividError, match=r"no label space .*chexpert-12, chexpert-14"):
        load_label_space(name)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "own.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VividError, match=r"own\.json: cannot be read as text"):
        load_label_space(path)
