"""Several data sets in one manifest: rows stay apart, one meaning is one question, no answer is no gradient."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.data.test_manifest import make
from vivid_monai.data.columns import FINDING
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.targets import FieldSampler
from vivid_monai.data.union import load_manifest, manifests_in, namespaced, shares, union
from vivid_monai.errors import VividError
from vivid_monai.networks.objectives import FindingsBCE
from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.states import NULL
from vivid_monai.ums.verify import verify

ONLY_NIH = ["Infiltration", "Mass", "Nodule", "Emphysema", "Fibrosis", "Pleural Thickening", "Hernia"]


def made(
    name: str, space: str, n: int = 30, *, root: str = "", seed: int = 0, splits="train train val test", **columns
) -> Manifest:
    """n images of n/2 patients with random states."""
    fields, rng = load_label_space(space).fields, np.random.default_rng(seed)
    split = [splits.split()[i // 2 % len(splits.split())] for i in range(n)]
    table = {"id": [f"{i}" for i in range(n)], "image": [f"{i}.png" for i in range(n)]}
    table |= {"patient_id": [f"{i // 2}" for i in range(n)], "split": split, "dataset": [name] * n}
    table |= {"modality": ["DX"] * n, "anatomy": ["chest"] * n, "labeller": ["x"] * n, "source": ["human"] * n}
    table |= {FINDING + field: rng.integers(-1, 3, n) for field in fields}
    options = {"splits": {"salt": name}, "sources": [{"file": name}], "card": {"dataset": name}}
    return Manifest(pa.table(table | columns), label_space=space, image_root=root or f"/{name}", **options)


@pytest.fixture(scope="module")
def both() -> tuple[Manifest, Manifest]:
    return made("phantom", "chexpert-12"), made("nih", "nih-14", 20, seed=1)


def test_rows_stand_one_data_set_after_the_other_and_keep_their_split(both):
    whole = union(both)
    assert len(whole) == 50
    assert whole.datasets().tolist() == ["phantom"] * 30 + ["nih"] * 20
    assert whole.table["split"].to_pylist() == [s for one in both for s in one.table["split"].to_pylist()]
    assert whole.splits == {"phantom": {"salt": "phantom"}, "nih": {"salt": "nih"}}
    assert whole.card == {"phantom": {"dataset": "phantom"}, "nih": {"dataset": "nih"}}
    assert whole.sources == [{"file": "phantom"}, {"file": "nih"}]
    train = whole.select("train")
    assert Counter(train.datasets()) == {one.card["dataset"]: len(one.select("train")) for one in both}


def test_patient_17_of_one_hospital_is_not_that_of_another(both):
    whole = union(both)
    assert whole.patients()[[0, 30]].tolist() == ["phantom/0", "nih/0"]
    assert whole.table["id"].to_pylist()[30] == "nih/0"
    item = whole.items(["Edema"])[30]
    assert (item["image"], item["id"], item["patient_id"]) == ("/nih/0.png", "nih/0", "nih/0")
    swapped = made("nih", "nih-14", splits="test val train train")
    assert len(union([both[0], swapped])) == 60, "'0' is in train here and in test there"


def test_images_are_found_where_each_data_set_has_them(both, tmp_path):
    moved = made(
        "b", "nih-14", root="/r/b", image=[f"/elsewhere/{i}.png" if i % 2 else f"s/{i}.png" for i in range(30)]
    )
    masked = made("c", "nih-14", root="/r/c", mask=pa.array(["m.png"] + [None] * 29))
    whole = union([moved, masked])
    assert [item["image"] for item in whole.items()[28:32]] == [
        *("/r/b/s/28.png", "/elsewhere/29.png", "/r/c/0.png", "/r/c/1.png")
    ]
    assert [item.get("mask") for item in whole.items(columns=["mask"])[29:32]] == [None, "/r/c/m.png", None]
    for one, first in ((moved, 0), (masked, 30)):
        assert [item["image"] for item in one.items()] == [item["image"] for item in whole.items()[first : first + 30]]


def test_one_field_asks_what_both_mean_and_null_what_a_data_set_does_not(both):
    whole = union(both)
    assert whole.fields == (*load_label_space("chexpert-12").fields, *ONLY_NIH)
    phantom, nih = both
    names = nih.label_space.mapping_to(whole.label_space)
    assert names["Effusion"] == "Pleural Effusion"
    np.testing.assert_array_equal(whole.states(list(names.values()))[30:], nih.states(list(names)))
    np.testing.assert_array_equal(whole.states(phantom.fields)[:30], phantom.states())
    assert (whole.states(ONLY_NIH)[:30] == NULL).all()
    others = [field for field in whole.fields if field not in names.values()]
    assert len(others) == 5
    assert (whole.states(others)[30:] == NULL).all()
    assert whole.fields_with(1)[:2] == ["Enlarged Cardiomediastinum", "Cardiomegaly"]


def test_boxes_and_details_are_called_as_their_field(both):
    record = make().table.slice(0, 1)
    renamed = {"Edema": "Effusion"}
    table = made("nih", "nih-14", 2).table
    boxes = [[{**box, "field": renamed.get(box["field"], box["field"])} for box in record["boxes"][0].as_py()], None]
    table = table.set_column(table.column_names.index("boxes"), "boxes", pa.array(boxes, table["boxes"].type))
    details = pa.array(['{"Effusion": {"severity": "mild"}}', None], pa.string())
    table = table.set_column(table.column_names.index("details"), "details", details)
    for name in ("Effusion", "Pneumonia"):
        name = FINDING + name
        table = table.set_column(table.column_names.index(name), name, pa.array([1, 1], pa.int8()))
    nih = Manifest(table, label_space="nih-14", image_root="/nih")
    first = list(union([both[0], nih]).records())[30]
    assert [box.x for box in first.findings["Pleural Effusion"].boxes] == [1.5, 5]
    assert first.findings["Pleural Effusion"].severity == "mild"
    assert [box.x for box in first.findings["Pneumonia"].boxes] == [1]
    assert not [v for v in verify(first, union([both[0], nih]).label_space) if v.code != "hierarchy"]


def test_it_is_a_manifest_like_any_other(both, tmp_path):
    whole = union(both)
    again = Manifest.load(whole.save(tmp_path / "m.parquet"))
    assert again.table.equals(whole.table)
    assert (again.label_space, again.splits, again.card) == (whole.label_space, whole.splits, whole.card)
    more = union([again, made("covid", "nih-shared")])
    assert more.patients()[0] == "phantom/0", "named once"


def test_data_sets_with_the_same_labels_keep_their_label_space():
    whole = union([made("a", "chexpert-12"), made("b", "chexpert-12")])
    assert whole.label_space == load_label_space("chexpert-12")
    assert whole.stored_space == "chexpert-12"


def test_one_data_set_is_itself_however_it_is_named(both, tmp_path):
    for one in both:
        one.save(tmp_path / one.card["dataset"] / "manifest.parquet")
    alone, folders = Manifest.load(tmp_path / "nih" / "manifest.parquet"), [tmp_path / "phantom", tmp_path / "nih"]
    for named in (tmp_path / "nih", [tmp_path / "nih"], f"[{tmp_path / 'nih'}]"):
        assert load_manifest(manifests_in(named)).table.equals(alone.table)
    assert load_manifest(str(tmp_path / "nih" / "manifest.parquet")).path == alone.path
    for named in (folders, f"[{folders[0]}, {folders[1]}]", f"['{folders[0]}',\"{folders[1]}\"]"):
        whole = load_manifest(manifests_in(named))
        assert whole.path == [folder / "manifest.parquet" for folder in folders]
        assert whole.folder == folders[0]
        assert len(whole) == 50
    with pytest.raises(VividError, match="no data set"):
        load_manifest([])


def test_a_data_set_twice_is_refused(both):
    with pytest.raises(VividError, match=r"both of the data set 'nih': .*another name"):
        union([*both, made("nih", "nih-14", root="/other")])


def test_an_image_in_two_splits_is_refused_under_whatever_name(both):
    same = ["../phantom/0.png"] + [f"{i}.png" for i in range(1, 30)]  # of phantom's training images
    says = r"1 image\(s\) of 'a' are in another split of 'phantom', .* /phantom/0\.png \(test and train\)"
    with pytest.raises(VividError, match=says):
        union([both[0], made("a", "nih-14", root="/a", image=same, splits="test train val")])
    assert len(union([both[0], made("a", "nih-14", root="/a", image=same)])) == 60, (
        "in one split it may have two labels"
    )
    sliced = {"slice": pa.array([0, 1], pa.int32()), "image": ["v.nii"] * 2, "patient_id": ["0", "1"]}
    union([made("a", "nih-14", 2, root="/r", **sliced | {"split": ["train", "test"]}),
           made("b", "nih-14", 2, root="/r", **sliced | {"split": ["train", "test"]})])  # fmt: skip


def test_a_data_set_is_named_before_what_needs_it_once():
    assert namespaced(["17", "a/3", None, "b/3"], ["a", "a", "a", "a"]) == ["a/17", "a/3", None, "a/b/3"]


def test_no_question_is_asked_that_the_data_set_cannot_answer(both):
    whole = union(both)
    sampler, rng = FieldSampler(whole.fields), np.random.default_rng(0)
    asked = {name: np.zeros(len(whole.fields), int) for name in ("phantom", "nih")}
    for item, name in zip(whole.items(), whole.datasets(), strict=True):
        for _ in range(20):
            chosen = sampler(item["states"], rng)
            assert chosen.sum() >= min(4, (item["states"] >= 0).sum()), "none is wasted"
            asked[name] += chosen
    never = {name: {f for f, n in zip(whole.fields, counts, strict=True) if not n} for name, counts in asked.items()}
    only_phantom = {"Enlarged Cardiomediastinum", "Lung Opacity", "Lung Lesion", "Fracture", "Support Devices"}
    assert never == {"phantom": set(ONLY_NIH), "nih": only_phantom}


@pytest.mark.parametrize("name", ["phantom", "nih"])
def test_what_a_data_set_cannot_answer_carries_no_gradient(both, name):
    whole = union(both)
    rows = np.flatnonzero(whole.datasets() == name)
    states = torch.from_numpy(whole.states()[rows].astype(np.int64))
    batch = {"states": states, "asked": torch.ones_like(states, dtype=torch.bool)}
    bce = FindingsBCE(fields=whole.fields, dim=8, pool="mean", prefix=0)
    torch.manual_seed(0)
    bce(torch.randn(len(rows), 4, 8), batch)["bce"].backward()
    silent = (states == NULL).all(dim=0)
    assert silent.sum() == (7 if name == "phantom" else 5)
    assert (bce.head.weight.grad.abs().sum(1) == 0).tolist() == silent.tolist()
    assert bce.counts(batch)["bce"] == ((states == 0) | (states == 1)).sum()


def test_weights_are_given_in_order_or_by_name(both):
    whole = union(both)
    rows = whole.select("train").datasets()
    assert shares(whole, "train", None) is None
    for weights in ([1, 2], {"nih": 2, "phantom": 1}):
        (first, one), (second, two) = shares(whole, "train", weights)
        assert (one, two) == (1, 2)
        assert (set(rows[first]), set(rows[second])) == ({"phantom"}, {"nih"})
        assert sorted([*first, *second]) == list(range(len(rows)))
    [(only, _)] = shares(whole, "train", [0, 5])
    assert set(rows[only]) == {"nih"}


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"nhi": 1, "phantom": 1}, "'nhi' is no data set of this run; did you mean 'nih'"),
        ({"nih": 1}, "phantom has no weight; give 0"),
        ([1], r"is \[1\]: give 2 numbers, one for each of phantom, nih"),
        ([1, 2, 3], "give 2 numbers"),
        (2, "give 2 numbers"),
        ("nih:1,phantom:2", "give 2 numbers"),
        ([1, -1], "weight of 'nih' is -1, not a number from 0 on"),
        ([1, float("nan")], "weight of 'nih' is nan"),
        ([1, "2"], "weight of 'nih' is '2'"),
        ([0, 0], "every weight is 0"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(both, weights, says):
    with pytest.raises(VividError, match=says):
        shares(union(both), "train", weights)


def test_a_weight_for_a_data_set_without_training_images_is_refused(both):
    whole = union([both[0], made("outside", "nih-14", splits="test")])
    with pytest.raises(VividError, match="'outside' has no image in the split 'train'; give it the weight 0"):
        shares(whole, "train", [1, 1])
    assert len(shares(whole, "train", [1, 0])) == 1
