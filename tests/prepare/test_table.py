"""Your own table: read through a mapping file, or one clear error."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vivid_monai.errors import VividError
from vivid_monai.prepare import table
from vivid_monai.prepare.build import prepare

from .conftest import values

MAPPING = {
    "mapping_version": "1.0",
    "dataset": "my-hospital",
    "source": "human",
    "image": "file",
    "patient": "mrn",
    "label_space": "chexpert-14",
    "label_columns": {"Pulmonary Edema": "oedema", "Fracture": "fx"},
    "values": {"1": "present", "0": "absent", "?": "uncertain", "": None},
}
CSV = "file,mrn,oedema,fx\na.png,p1,1,0\nb.png,p2,0.0,?\nc.png,p2,,1.0\n"


def read(tmp_path: Path, content: str | pa.Table = CSV, *, drop: tuple[str, ...] = (), **changes):
    plan = {key: value for key, value in {**MAPPING, **changes}.items() if key not in drop}
    (tmp_path / "map.json").write_text(json.dumps(plan))
    path = tmp_path / ("t.csv" if isinstance(content, str) else "t.parquet")
    if isinstance(content, str):
        path.write_text(content)
    else:
        pq.write_table(content, path)
    return table.read(path, mapping=tmp_path / "map.json", image_root=tmp_path)


def column(source, name):
    return values(source.rows.table[name])


def test_cells_become_states_by_text_and_by_number(tmp_path):
    source = read(tmp_path)
    assert column(source, "finding.Edema") == [1, 0, -1]
    assert column(source, "finding.Fracture") == [0, 2, 1]
    assert column(source, "finding.Pneumonia") == [-1] * 3
    assert column(source, "id") == column(source, "image") == ["a.png", "b.png", "c.png"]
    assert column(source, "split") == [None] * 3
    assert set(column(source, "labeller")) == {"my-hospital"}


def test_parquet_gives_the_same_as_text(tmp_path):
    columns = {"file": ["a.png", "b.png", "c.png"], "mrn": ["p1", "p2", "p2"]}
    numbers = pa.table({**columns, "oedema": [1.0, 0.0, float("nan")], "fx": pa.array([0, None, 1], pa.int64())})
    source = read(tmp_path, numbers)
    assert column(source, "finding.Edema") == [1, 0, -1]
    assert column(source, "finding.Fracture") == [0, -1, 1]
    assert column(source, "#row") == [1, 2, 3]


def test_every_optional_column(tmp_path):
    head = "row,file,mrn,oedema,fx,v,s,y,st,part,z,text"
    one = 'x,ct.nii.gz,p1,1,0,sag,female,047Y,s1,training,12,"two\nlines"'
    two = "y,ct.nii.gz,p1,0,0,,,,,training,13,"
    source = read(
        tmp_path,
        "\n".join([head, one, two]) + "\n",
        view={"column": "v", "values": {"sag": "sagittal", "": None}},
        sex={"column": "s", "values": {"female": "F", "": None}},
        split={"column": "part", "values": {"training": "train"}},
        age="y",
        study="st",
        slice="z",
        report="text",
        modality="CT",
        labeller="two readers",
    )
    first, second = values(source.rows.table)
    assert (first["view"], first["sex"], first["age"], first["study_id"]) == ("sagittal", "F", 47.0, "s1")
    assert (first["slice"], first["id"], first["report"], first["split"]) == (12, "ct.nii.gz#12", "two\nlines", "train")
    assert (second["view"], second["sex"], second["age"], second["study_id"], second["report"]) == (None,) * 5
    assert (first["modality"], first["labeller"]) == ("CT", "two readers")
    prepared = prepare(source, check="none")
    assert prepared.manifest.splits["salt"] is None
    assert [item["slice"] for item in prepared.manifest.items(["Edema"])] == [12, 13]


def test_an_age_that_cannot_be_is_listed(tmp_path):
    content = (
        CSV.replace("file,mrn", "age,file,mrn").replace("\n", "\n40,").removesuffix("40,").replace("40,b", "140,b")
    )
    prepared = prepare(read(tmp_path, content, age="age"), check="none", val=0.0, test=0.0)
    assert prepared.card["skipped"] == {"invalid-range": 1}
    assert prepared.skipped["row"].tolist() == [3]
    negative = prepare(read(tmp_path, content.replace("140", "-5"), age="age"), check="none", val=0.0, test=0.0)
    assert negative.skipped[["row", "reason"]].to_numpy().tolist() == [[3, "invalid-range"]]
    with pytest.raises(VividError, match=r"column .age. holds .old., not an age .* Mend the table, or leave the cell"):
        read(tmp_path, content.replace("140", "old"), age="age")


def test_a_delimited_label_column(tmp_path):
    text = "file\tmrn\tlabels\na.png\t1\tpulmonary edema; Fracture\nb.png\t2\tnormal\nc.png\t3\t\n"
    entry = {"column": "labels", "delimiter": ";", "unlisted": "absent", "none": ["normal", ""]}
    source = read(tmp_path, text, drop=("label_columns", "values"), label_list=entry, delimiter="\t")
    assert column(source, "finding.Edema") == [1, 0, 0]
    assert column(source, "finding.No Finding") == [0, 1, 1]
    source = read(
        tmp_path, text, drop=("label_columns", "values"), label_list={**entry, "unlisted": None}, delimiter="\t"
    )
    assert column(source, "finding.Edema") == [1, -1, -1]


KIND = {
    "Edema": {"column": "kind", "values": {"oedema": "present", "?": "uncertain"}, "other": "absent"},
    "Pneumonia": {"column": "kind", "values": {"bacteria": "present", "virus": "present", "none": "absent"}},
    "Fracture": "fx",
}


def test_one_column_may_answer_several_labels_each_by_values_of_its_own(tmp_path):
    content = "file,mrn,kind,fx\na.png,p1,virus,1\nb.png,p2,none,\nc.png,p3,bacteria,0\n"
    source = read(tmp_path, content, label_columns=KIND)
    assert column(source, "finding.Edema") == [0, 0, 0]
    assert column(source, "finding.Pneumonia") == [1, 0, 1]
    assert column(source, "finding.Fracture") == [1, -1, 0]
    assert "Edema: 'oedema' is present, '?' is uncertain, any other is absent; Pneumonia: " in source.label_policy
    numbers = pa.table({"file": ["a.png"], "mrn": ["p1"], "kind": ["none"], "fx": [0]})
    assert column(read(tmp_path, numbers, label_columns=KIND), "finding.Pneumonia") == [0]


@pytest.mark.parametrize("role", ["split", "sex", "age"])
def test_no_message_quotes_an_identifier_that_a_mapping_takes_for_something_else(tmp_path, role):
    entry = "mrn" if role == "age" else {"column": "mrn", "values": {"train": "train"}}
    with pytest.raises(VividError, match=r"t\.csv, row 2: column 'mrn' holds an identifier, which cannot") as said:
        read(tmp_path, **{role: entry})
    assert "p1" not in str(said.value)


def test_a_cell_without_a_meaning_of_its_label_is_an_error_that_names_it(tmp_path):
    with pytest.raises(VividError, match=r"t\.csv, row 2: column 'kind' holds 'oedema', not one of .*'bacteria'"):
        read(tmp_path, "file,mrn,kind,fx\na.png,p1,oedema,1\n", label_columns=KIND)
    with pytest.raises(VividError, match=r"label 'Edema' names column 'kind', which t\.csv does not have"):
        read(tmp_path, label_columns=KIND)


def test_without_a_label_space_the_columns_are_the_fields(tmp_path):
    source = read(tmp_path, drop=("label_space",))
    manifest = prepare(source, val=0.0, test=0.0, check="none").manifest
    assert manifest.fields == ("Pulmonary Edema", "Fracture")
    manifest.save(tmp_path / "m.parquet")
    assert type(manifest).load(tmp_path / "m.parquet").label_space.name == "my-hospital"


def test_absolute_paths_become_relative_where_they_lie_under_the_root(tmp_path):
    text = f"file,mrn,oedema,fx\n{tmp_path}/x/a.png,p1,1,0\n/elsewhere/b.png,p2,1,0\n./x//c.png,p3,1,0\n"
    source = read(tmp_path, text)
    assert column(source, "image") == ["x/a.png", "/elsewhere/b.png", "x/c.png"]
    items = prepare(source, val=0.0, test=0.0, check="none").manifest.items(["Edema"])
    assert [item["image"] for item in items] == [f"{tmp_path}/x/a.png", "/elsewhere/b.png", f"{tmp_path}/x/c.png"]


def test_rows_without_image_or_patient_are_listed(tmp_path):
    source = read(tmp_path, CSV + ",p3,1,1\nd.png, ,1,1\n")
    skipped = source.rows.all_skipped().to_dict("records")
    assert [(s["row"], s["reason"]) for s in skipped] == [(5, "no-image"), (6, "no-patient")]
    assert len(source.rows.table) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            CSV.replace("0.0", "-2"),
            r"t\.csv, row 3: column 'oedema' holds '-2', not one of the mapping's values \('1', '0'",
        ),
        (CSV.replace("mrn", "patient"), "'patient' names column 'mrn', which t.csv does not have"),
        (CSV.replace("fx", "fxx"), "label 'Fracture' names column 'fx'.*did you mean 'fxx'"),
    ],
)
def test_what_the_table_lacks_is_an_error_that_names_it(tmp_path, content, message):
    with pytest.raises(VividError, match=message):
        read(tmp_path, content)


def test_words_of_view_and_sex_that_nobody_explained_are_errors(tmp_path):
    text = "file,mrn,oedema,fx,v\na.png,p1,1,0,post-ant\n"
    with pytest.raises(VividError, match="column 'v' holds 'post-ant', not 'PA'"):
        read(tmp_path, text, view="v")
    source = read(tmp_path, text, view={"column": "v", "values": {"post-ant": "backwards"}})
    with pytest.raises(VividError, match=r"no rows are left of 1 \(invalid-enum 1\).*backwards"):
        prepare(source, check="none")


def test_a_broken_parquet_file_is_an_error(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(MAPPING))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(VividError, match="not a readable Parquet"):
        table.read(tmp_path / "t.parquet", mapping=tmp_path / "map.json", image_root=tmp_path)


def test_contradictory_rows_of_your_own_are_skipped(tmp_path):
    changes = {"label_columns": {"Edema": "oedema", "Lung Opacity": "fx"}}
    prepared = prepare(read(tmp_path, **changes), val=0.0, test=0.0, check="none")
    assert prepared.card["contradictions"] == {"policy": "skip", "rows": 1, "by_code": {"hierarchy": 1}}
    assert prepared.skipped.to_dict("records")[0]["row"] == 2


LISTED = {"column": "labels", "unlisted": "absent", "none": ["normal"]}


def listed(tmp_path, *cells: str, **entry):
    text = "file,mrn,labels\n" + "".join(f'{i}.png,p{i},"{cell}"\n' for i, cell in enumerate(cells))
    return read(tmp_path, text, drop=("label_columns", "values"), label_list={**LISTED, **entry})


def test_a_listed_child_makes_its_parent_present_and_what_is_never_listed_is_null(tmp_path):
    source = listed(tmp_path, "Edema|Fracture", "Lung Opacity", "normal", "Fracture")
    assert column(source, "finding.Lung Opacity") == [1, 1, 0, 0]
    assert column(source, "finding.Edema") == [1, 0, 0, 0]
    assert column(source, "finding.Pneumonia") == [-1] * 4
    assert column(source, "finding.No Finding") == [0, 0, 1, 0]
    assert any(note.startswith("No row lists ") and "Pneumonia" in note for note in source.rows.notes)
    prepared = prepare(source, check="none", val=0.0, test=0.0)
    assert (len(prepared.manifest), prepared.card["contradictions"]["rows"]) == (4, 0)
    # A parent that nobody lists is no question of the list's, so it stays null.
    assert column(listed(tmp_path, "Edema", "normal"), "finding.Lung Opacity") == [-1, -1]


def test_what_a_list_looks_for_can_be_said(tmp_path):
    source = listed(tmp_path, "Edema", "normal", looked_for=["Edema", "Lung Opacity", "Pneumonia"])
    assert column(source, "finding.Lung Opacity") == [1, 0]
    assert column(source, "finding.Pneumonia") == [0, 0]
    assert column(source, "finding.Fracture") == [-1, -1]
    assert source.rows.notes == []
    with pytest.raises(VividError, match="looked_for: label 'Oedema' is not in"):
        listed(tmp_path, "Edema", looked_for=["Oedema"])


def test_a_list_as_python_writes_it(tmp_path):
    source = listed(tmp_path, "['Edema', 'normal']", "['Fracture']", "normal")
    assert column(source, "finding.Edema") == [1, 0, 0]
    assert column(source, "finding.Fracture") == [0, 1, 0]
    for cell in ("[Edema]", "[1, 2]"):
        with pytest.raises(VividError, match="row 2: column 'labels' holds"):
            listed(tmp_path, cell)


def test_labels_outside_of_the_space_are_an_error_or_passed_over(tmp_path):
    with pytest.raises(VividError, match=r"label_list's unknown 'ignore' passes others over.*'bone island'"):
        listed(tmp_path, "Edema|bone island")
    assert column(listed(tmp_path, "Edema|bone island", "normal", unknown="ignore"), "finding.Edema") == [1, 0]


def test_a_number_written_in_two_ways_is_one_patient_or_two_as_the_mapping_says(tmp_path):
    text = "file,mrn,oedema,fx\na.png,10000007,1,0\nb.png,10000007.0,0,0\nc.png,010000007,0,1\nd.png,P7,0,1\n"
    with pytest.raises(VividError, match=r"writes one number in two ways \(rows 2 and 3.*patient_ids") as error:
        read(tmp_path, text)
    assert "10000007" not in str(error.value)
    assert column(read(tmp_path, text, patient_ids="number"), "patient_id") == ["10000007"] * 3 + ["P7"]
    assert column(read(tmp_path, text, patient_ids="text"), "patient_id") == [
        "10000007",
        "10000007.0",
        "010000007",
        "P7",
    ]


def test_words_for_nothing_are_no_patient_and_no_age(tmp_path):
    text = "file,mrn,oedema,fx,y\na.png,nan,1,0,3\nb.png,p,0,0,NA\nNA,p,0,0,1\nc.png,p,0,0,90+\n"
    source = read(tmp_path, text, age="y")
    assert column(source, "age") == [None, 90.0]
    assert source.rows.all_skipped()["reason"].tolist() == ["no-patient", "no-image"]
    assert source.rows.notes == ["1 ages are bounds, such as '90+': the number is taken."]


def test_floats_that_lost_their_digits_are_no_identifiers(tmp_path):
    columns = {"file": ["a.png", "b.png"], "mrn": [1234567890123456789.0, 1234567890123456700.0], "oedema": [1, 0]}
    with pytest.raises(VividError, match="column 'mrn' holds floats over"):
        read(tmp_path, pa.table({**columns, "fx": [0, 0]}))


def test_a_path_from_several_columns(tmp_path):
    text = "dir,name,mrn,oedema,fx\n2019,a,p1,1,0\n,b,p2,0,0\n"
    source = read(tmp_path, text, image={"template": "{dir}/{name}.png"})
    assert column(source, "image") == ["2019/a.png"]
    assert source.rows.all_skipped()["detail"].tolist() == ["column 'dir' is blank"]
    for template in ("a.png", "{dir", "{}"):
        with pytest.raises(VividError, match="template names no column"):
            read(tmp_path, text, image={"template": template})
    with pytest.raises(VividError, match=r"the image's template, 'dri', names column 'dri'.*did you mean 'dir'"):
        read(tmp_path, text, image={"template": "{dri}/{name}"})


def test_a_long_cell_is_told_shortly(tmp_path):
    with pytest.raises(VividError, match="row 2: column 'oedema'") as error:
        read(tmp_path, CSV.replace("p1,1,0", f"p1,{'9 ' * 5000},0"))
    assert len(str(error.value)) < 300


def test_a_parquet_column_named_twice(tmp_path):
    twice = pa.table([["a.png"], ["p"], [1], [0], [0]], names=["file", "mrn", "oedema", "fx", "fx"])
    with pytest.raises(VividError, match="more than one column is named 'fx'"):
        read(tmp_path, twice)


@pytest.mark.parametrize(("kind", "first"), [(pa.float16(), 2048), (pa.float32(), 2**24)])
def test_identifiers_in_short_floats_are_refused_once_they_are_not_exact(tmp_path, kind, first):
    def made(number):
        numbers = pa.array(np.array([1, 2, number], kind.to_pandas_dtype()), kind)
        return pa.table({"file": ["a.png", "b.png", "c.png"], "mrn": numbers, "oedema": ["1"] * 3, "fx": ["0"] * 3})

    assert len(read(tmp_path, made(first)).rows.table) == 3
    with pytest.raises(VividError, match=f"column 'mrn' holds numbers over {first:,} as (half)?float: last digits"):
        read(tmp_path, made(first + 4))


@pytest.mark.parametrize("what", ["t.csv", "map.json"])
def test_a_pipe_is_no_table_and_is_not_waited_for(tmp_path, what):
    read(tmp_path)
    (tmp_path / what).unlink()
    os.mkfifo(tmp_path / what)
    with pytest.raises(VividError, match=f"{what}: is a pipe, a socket or a device, not a file; write its content"):
        table.read(tmp_path / "t.csv", mapping=tmp_path / "map.json", image_root=tmp_path)


@pytest.mark.parametrize("what", ["t.csv", "map.json"])
def test_a_name_that_is_not_utf_8_is_told_as_such(tmp_path, what):
    read(tmp_path)
    odd = tmp_path / os.fsdecode(b"\xf6" + what.encode())
    (tmp_path / what).rename(odd)
    files = {"t.csv": tmp_path / "t.csv", "map.json": tmp_path / "map.json", what: odd}
    with pytest.raises(VividError, match=r"xf6.*: this name is not plain text in UTF-8; rename it"):
        table.read(files["t.csv"], mapping=files["map.json"], image_root=tmp_path)
