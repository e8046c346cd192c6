"""Features: the encoder on each image in evaluation mode; from the cache bit for bit what is computed."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image

from tests.evaluation.tiny_encoder import BATCH_SIZE, TinyEncoder
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.images.preprocess import ReadImaged


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(tmp_path / "cache", batch_size=BATCH_SIZE)


def features(store: FeatureStore, manifest: Manifest, encoder: TinyEncoder | None = None, split: str = "train"):
    return store.features(encoder or TinyEncoder(), manifest, split, manifest.fields)


def uncached(manifest: Manifest, encoder: TinyEncoder | None = None, split: str = "train", **options):
    return features(FeatureStore(None, batch_size=BATCH_SIZE, **options), manifest, encoder, split)


def with_column(manifest: Manifest, name: str, values) -> Manifest:
    table = manifest.table
    column = pa.array(values).cast(table[name].type)
    table = table.set_column(table.schema.get_field_index(name), name, column)
    return Manifest(table, label_space=manifest.label_space.name, image_root=manifest.image_root)


def test_cached_features_equal_uncached_ones_bit_for_bit(store, manifest):
    expected = uncached(manifest)
    for _ in range(2):  # extracted, then found
        cached = features(store, manifest)
        assert cached.x.tobytes() == expected.x.tobytes()
        for name in ("ids", "patients", "states"):
            np.testing.assert_array_equal(getattr(cached, name), getattr(expected, name))
        assert isinstance(cached.x, np.memmap)
    part = manifest.select("train")
    assert cached.ids.tolist() == part.table["id"].to_pylist()
    np.testing.assert_array_equal(cached.states, part.states())
    assert cached.encoder == TinyEncoder().fingerprint()


def test_a_hit_runs_nothing_and_any_fields_hit(store, manifest):
    features(store, manifest)
    encoder = TinyEncoder()
    got = store.features(encoder, manifest, "train", manifest.fields[:2])
    assert encoder.batches == []
    np.testing.assert_array_equal(got.states, manifest.select("train").states(manifest.fields[:2]))


@pytest.mark.parametrize(
    "other",
    [
        TinyEncoder(seed=1),
        TinyEncoder(resize="crop"),
        TinyEncoder(interpolation="bicubic"),
        TinyEncoder(mean=0.4),
        TinyEncoder(std=0.2),
    ],
    ids=["weights", "resize rule", "interpolation", "mean", "std"],
)
def test_another_encoder_never_hits(store, manifest, other):
    features(store, manifest)
    got = features(store, manifest, other)
    assert sum(other.batches) == len(got.x) == len(manifest.select("train"))


def test_one_changed_weight_never_hits(store, manifest):
    before = features(store, manifest).x.copy()
    encoder = TinyEncoder()
    encoder.weight.data[2, 3] += 1e-6
    assert not np.array_equal(features(store, manifest, encoder).x, before)
    assert encoder.batches


def fewer_rows(manifest):
    drop = manifest.table["id"].to_pylist()[manifest.table["split"].to_pylist().index("train")]
    table = manifest.table.filter(pc.not_equal(manifest.table["id"], drop))
    return Manifest(table, label_space=manifest.label_space.name, image_root=manifest.image_root)


def other_split(manifest):
    patients, splits = manifest.table["patient_id"].to_pylist(), manifest.table["split"].to_pylist()
    moved = patients[splits.index("train")]
    moved_splits = ["val" if patient == moved else split for patient, split in zip(patients, splits, strict=True)]
    return with_column(manifest, "split", moved_splits)


def other_order(manifest):
    table = manifest.table.take(list(reversed(range(len(manifest)))))
    return Manifest(table, label_space=manifest.label_space.name, image_root=manifest.image_root)


@pytest.mark.parametrize("change", [fewer_rows, other_split, other_order])
def test_another_manifest_never_hits(store, manifest, change):
    features(store, manifest)
    encoder, changed = TinyEncoder(), change(manifest)
    got = features(store, changed, encoder)
    assert sum(encoder.batches) == len(got.x)
    assert got.x.tobytes() == uncached(changed).x.tobytes()


def test_an_image_replaced_in_place_never_hits(store, manifest):
    before = features(store, manifest).x.copy()
    path = Path(manifest.select("train").items()[3]["image"])
    old = path.stat()
    pixels = np.asarray(Image.open(path))
    Image.fromarray(pixels[::-1].copy()).save(path)
    content = path.read_bytes().ljust(old.st_size, b"\0")[: max(old.st_size, path.stat().st_size)]
    path.write_bytes(content)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))  # as a copying tool may leave it
    after = features(store, manifest).x
    assert (after != before).any(1).nonzero()[0].tolist() == [3]


def test_another_batch_size_is_another_entry(store, manifest, tmp_path):
    features(store, manifest)
    encoder = TinyEncoder()
    FeatureStore(tmp_path / "cache", batch_size=BATCH_SIZE + 1).features(encoder, manifest, "train", manifest.fields)
    assert encoder.batches


def test_images_that_are_read_otherwise_are_another_entry(store, manifest, monkeypatch):
    features(store, manifest)
    monkeypatch.setattr("vivid_monai.evaluation.features.READER", 0)
    encoder = TinyEncoder()
    features(store, manifest, encoder)
    assert encoder.batches != []


def test_unreadable_images_are_reported_on_a_hit_too(store, manifest, capsys):
    items = manifest.select("train").items()
    broken = [0, 4, 5, 6, 7, len(items) - 1]  # the second batch has no image at all
    for position in broken:
        Path(items[position]["image"]).write_bytes(b"no image")
    expected = uncached(manifest)
    for _ in range(2):
        capsys.readouterr()
        got = features(store, manifest)
        assert [path for path, _ in got.skipped] == [items[position]["image"] for position in broken]
        assert f"{len(broken)} images cannot be read" in capsys.readouterr().err
        kept = [item for position, item in enumerate(items) if position not in broken]
        assert got.ids.tolist() == [item["id"] for item in kept]
        assert got.patients.tolist() == [item["patient_id"] for item in kept]
        np.testing.assert_array_equal(got.states, [item["states"] for item in kept])
        assert got.x.tobytes() == expected.x.tobytes()
        assert got.skipped == expected.skipped


def test_nothing_readable_is_an_error_and_leaves_no_entry(store, manifest, caplog):
    for item in manifest.select("test").items():
        Path(item["image"]).write_bytes(b"no image")
    with pytest.raises(VividError, match="can be read"):
        features(store, manifest, split="test")
    assert "terminating" not in caplog.text, "told once, by whoever catches it"
    assert list(store.root.glob("*/entry.json")) == []


def test_images_that_change_meanwhile_leave_no_entry(store, manifest):
    class Meddler(TinyEncoder):
        def forward(self, images):
            Path(manifest.select("train").items()[0]["image"]).touch()
            return super().forward(images)

    with pytest.raises(VividError, match="changed while"):
        features(store, manifest, Meddler())
    assert list(store.root.glob("*/entry.json")) == []


def test_labels_and_patients_are_the_manifests_own(store, manifest):
    """Features depend on the files alone: another label or patient is found with them."""
    before = features(store, manifest)
    name = next(n for n in manifest.table.column_names if n.endswith(manifest.fields[0]))
    states = [1 - max(state, 0) for state in manifest.table[name].to_pylist()]
    patients = [f"new-{p}" for p in manifest.table["patient_id"].to_pylist()]
    changed = with_column(with_column(manifest, name, states), "patient_id", patients)
    encoder = TinyEncoder()
    got = features(store, changed, encoder)
    assert encoder.batches == []
    assert got.x.tobytes() == before.x.tobytes()
    np.testing.assert_array_equal(got.states, changed.select("train").states())
    assert not np.array_equal(got.states, before.states)
    assert got.patients.tolist() == [f"new-{p}" for p in before.patients]


@pytest.mark.parametrize("at", [0, 3])
def test_a_stopped_pass_is_continued_at_its_batch(store, manifest, at, capsys):
    class Stopped(TinyEncoder):
        def forward(self, images):
            if len(self.batches) == at:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        features(store, manifest, Stopped())
    assert list(store.root.glob("*[!t]/entry.json")) == []
    encoder = TinyEncoder()
    capsys.readouterr()
    assert features(store, manifest, encoder).x.tobytes() == uncached(manifest).x.tobytes()
    n = len(manifest.select("train"))
    assert sum(encoder.batches) == n - at * BATCH_SIZE
    assert (f"continued after {at * BATCH_SIZE} of {n}" in capsys.readouterr().err) == (at > 0)


@pytest.mark.parametrize("damage", ["flipped", "no record"])
def test_a_damaged_entry_is_computed_again_with_a_message(store, manifest, damage, capsys):
    whole = features(store, manifest).x.tobytes()
    (entry,) = [path for path in store.root.iterdir() if path.is_dir()]
    if damage == "flipped":
        content = bytearray((entry / "array.npy").read_bytes())
        content[-9] ^= 1
        (entry / "array.npy").write_bytes(content)
    else:
        (entry / "entry.json").unlink()
    capsys.readouterr()
    encoder = TinyEncoder()
    assert features(store, manifest, encoder).x.tobytes() == whole
    assert encoder.batches
    assert "damaged" in capsys.readouterr().err


def test_features_of_a_run_are_found_however_they_were_computed(store, manifest):
    before = features(store, manifest).x.tobytes()
    near = FeatureStore(store.root, batch_size=BATCH_SIZE + 3, exact=False)
    encoder = TinyEncoder()
    assert features(near, manifest, encoder).x.tobytes() == before
    assert encoder.batches == []
    other = TinyEncoder(seed=1)
    features(near, manifest, other)
    assert other.batches, "never those of another encoder"
    Path(manifest.select("train").items()[0]["image"]).touch()
    features(near, manifest, encoder)
    assert encoder.batches, "never those of other files"


def test_features_that_are_not_to_be_kept_are_not(store, manifest):
    store.features(TinyEncoder(), manifest, "train", manifest.fields, keep=False)
    assert not store.root.exists()


def test_rows_are_the_encoder_on_each_image(manifest):
    encoder = TinyEncoder().train()
    got = uncached(manifest, encoder)
    assert encoder.training, "the mode is put back"
    transform = encoder.preprocess.transform()
    for row, item in zip(got.x, manifest.select("train").items(), strict=True):
        image = transform({"image": item["image"]})["image"]
        with torch.no_grad():
            expected = image.flatten() @ encoder.weight.T
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)  # another batch size rounds otherwise
    assert got.x.dtype == np.float32
    assert got.states.dtype == np.int64


def test_the_global_random_state_is_left_alone(manifest):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    uncached(manifest)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_kept_images_serve_the_next_encoder_with_the_same_preprocessing(manifest, monkeypatch):
    store = FeatureStore(None, batch_size=4, keep_images=True)
    reads = []
    read = ReadImaged.__call__
    monkeypatch.setattr(ReadImaged, "__call__", lambda self, data: reads.append(1) or read(self, data))
    images = len(manifest.select("train"))
    for seed in (0, 1):
        encoder = TinyEncoder(seed=seed)
        kept = store.features(encoder, manifest, "train", manifest.fields)
        assert len(reads) == images, "read once"
        assert kept.x.tobytes() == uncached(manifest, TinyEncoder(seed=seed)).x.tobytes()
        reads[images:] = []
    store.features(TinyEncoder(mean=0.4), manifest, "train", manifest.fields)
    assert len(reads) == images, "bytes do not depend on the normalisation"
    store.features(TinyEncoder(resize="crop"), manifest, "train", manifest.fields)
    assert len(reads) == 2 * images, "other preprocessing, other images"


def test_features_that_are_not_finite_are_refused(manifest):
    class Broken(TinyEncoder):
        def forward(self, images):
            x = super().forward(images)
            x[1, 2] = float("nan")
            return x

    second = manifest.select("train").table["id"][1].as_py()
    with pytest.raises(VividError, match=f"{second} are not finite"):
        uncached(manifest, Broken())


def test_features_of_another_shape_are_refused(manifest):
    encoder = TinyEncoder(dim=5)
    encoder.shape = (6,)
    with pytest.raises(VividError, match=r"\(4, 5\) for 4 images; it promised \(6,\)"):
        uncached(manifest, encoder)


def test_workers_change_nothing(manifest):
    one, two = uncached(manifest), uncached(manifest, num_workers=1)
    assert one.x.tobytes() == two.x.tobytes()
