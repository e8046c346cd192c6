"""What a task asks, and the traps it refuses to walk into."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tests.evaluation.small import data_set, encoder
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.evaluation.evaluate import evaluate
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.task import Task
from vivid_monai.ums.label_space import load_label_space

SHARED = ["Atelectasis", "Cardiomegaly", "Edema", "No Finding"]


@pytest.fixture(scope="module")
def chexpert(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("a") / "chexpert", space="chexpert-14", dataset="chexpert")


@pytest.fixture(scope="module")
def nih(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("b") / "nih", space="nih-14", dataset="nih", seed=1)


def with_column(manifest, name, values):
    """The manifest with one column replaced, unchecked as a file made by hand would be."""
    table = manifest.table
    column = pa.array(values).cast(table.schema.field(name).type)
    changed = object.__new__(Manifest)
    changed.__dict__ = {**manifest.__dict__, "table": table.set_column(table.column_names.index(name), name, column)}
    return changed


def test_gives_the_states_of_its_fields_in_their_order(chexpert):
    fields = ["Edema", "Fracture"]
    train, val, test = Task(name="t", manifest=chexpert, fields=fields).parts(encoder(), FeatureStore(None))
    for split, part in (("train", train), ("val", val), ("test", test)):
        np.testing.assert_array_equal(part.states, chexpert.select(split).states(fields))
        assert part.ids.tolist() == chexpert.select(split).table["id"].to_pylist()
        assert part.x.shape == (len(part.ids), 128)


def test_transfer_learns_on_one_data_set_and_tests_on_the_other(chexpert, nih):
    task = Task(name="t", manifest=nih, fields=SHARED, source=chexpert, label_space="nih-shared")
    train, val, test = task.parts(encoder(), FeatureStore(None))
    assert {key.split("/")[0] for key in (*train.ids, *val.ids)} == {"chexpert"}
    assert {key.split("/")[0] for key in test.ids} == {"nih"}
    raw = nih.select("test").states(["Atelectasis", "Cardiomegaly", "Edema"])
    np.testing.assert_array_equal(test.states[:, :3], raw)
    nothing = (nih.select("test").states() == 0).all(1)
    np.testing.assert_array_equal(test.states[:, 3], nothing.astype(int))


def test_transfer_is_exact(chexpert, nih, tmp_path):
    """The images of CheXpert's test split, once as they are and once as another data set in other labels' words."""
    tested = chexpert.select("test")
    fields = load_label_space("nih-14").fields
    columns = {name: tested.table[name] for name in ("id", "image", "patient_id", "split", "modality", "anatomy")}
    n = len(tested)
    columns |= {"dataset": ["elsewhere"] * n, "labeller": ["made"] * n, "source": ["human"] * n}
    shared = set(chexpert.label_space.mapping_to(load_label_space("nih-14")).values())
    back = load_label_space("nih-14").mapping_to(chexpert.label_space)
    for field in fields:
        states = tested.states([back[field]])[:, 0] if field in shared else np.zeros(n, int)
        columns[f"finding.{field}"] = states
    other = Manifest(pa.table(columns), label_space="nih-14", image_root=chexpert.image_root)

    through_a = Task(name="a", manifest=chexpert, fields=SHARED, source=chexpert, label_space="nih-shared")
    through_b = Task(name="b", manifest=other, fields=SHARED, source=chexpert, label_space="nih-shared")
    options = {"min_present": 1, "min_absent": 1, "n_resamples": 20}
    both = [evaluate({"e": [encoder()]}, task, FeatureStore(None), **options) for task in (through_a, through_b)]
    np.testing.assert_array_equal(both[0].scored["e"].test, both[1].scored["e"].test)
    np.testing.assert_array_equal(both[0].test.states[:, :3], both[1].test.states[:, :3])
    plain = evaluate(
        {"e": [encoder()]}, Task(name="c", manifest=chexpert, fields=SHARED[:3]), FeatureStore(None), **options
    )
    np.testing.assert_allclose(plain.scored["e"].test, both[1].scored["e"].test[:, :, :3], atol=1e-6)


def test_a_patient_on_both_sides_is_refused(chexpert):
    patients = chexpert.table["patient_id"].to_pylist()
    splits = chexpert.table["split"].to_pylist()
    mixed = [patients[splits.index("test")] if i == splits.index("train") else p for i, p in enumerate(patients)]
    task = Task(name="t", manifest=with_column(chexpert, "patient_id", mixed), fields=["Edema"])
    with pytest.raises(VividError, match=r"1 patient on both sides .* chexpert-p3"):
        task.parts(encoder(), FeatureStore(None))


def test_a_test_image_among_the_probes_images_is_refused_under_whatever_name(chexpert):
    images, splits = chexpert.table["image"].to_pylist(), chexpert.table["split"].to_pylist()
    images[splits.index("train")] = "images/../" + images[splits.index("test")]
    with pytest.raises(VividError, match=r"1 test images are also train images of the probe, for example .*\.png"):
        Task(name="t", manifest=with_column(chexpert, "image", images), fields=["Edema"])


def test_a_transfer_onto_the_probes_own_images_is_refused(chexpert):
    turned = {"train": "test", "test": "train", "val": "val"}
    splits = [turned[split] for split in chexpert.table["split"].to_pylist()]
    other = with_column(with_column(chexpert, "split", splits), "dataset", ["elsewhere"] * len(splits))
    with pytest.raises(VividError, match="test images are also train images of the probe"):
        Task(name="t", manifest=other, fields=SHARED, source=chexpert, label_space="nih-shared")


def test_labels_that_do_not_map_are_refused(chexpert, nih, tmp_path):
    organs = data_set(tmp_path / "organs", space="organamnist-11", dataset="organs")
    with pytest.raises(VividError, match="labels of 'organamnist-11' do not map to Atelectasis, Cardiomegaly"):
        Task(name="t", manifest=organs, fields=SHARED, source=chexpert, label_space="nih-shared")
    twelve = data_set(tmp_path / "twelve", space="chexpert-12", dataset="twelve")
    with pytest.raises(VividError, match="do not map to No Finding"):
        Task(name="t", manifest=nih, fields=SHARED, source=twelve, label_space="nih-shared")
    with pytest.raises(VividError, match="go together"):
        Task(name="t", manifest=nih, fields=SHARED, source=chexpert)


def test_a_choice_between_classes_needs_all_of_them(tmp_path):
    organs = data_set(tmp_path / "organs", space="organamnist-11", dataset="organs")
    task = Task(name="t", manifest=organs, fields=organs.fields)
    assert task.exclusive
    assert not replace(task, fields=organs.fields[:2]).exclusive
