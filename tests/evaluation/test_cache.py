"""The feature cache: bit for bit what is computed, found for nothing else, whole or not at all."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from tests.evaluation.tiny_encoder import BATCH_SIZE, TinyEncoder
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import FeatureStore


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(tmp_path / "cache", batch_size=BATCH_SIZE)


def features(store: FeatureStore, manifest: Manifest, encoder: TinyEncoder | None = None, split: str = "train"):
    return store.features(encoder or TinyEncoder(), manifest, split, manifest.fields)


def with_column(manifest: Manifest, name: str, values) -> Manifest:
    table = manifest.table
    column = pa.array(values).cast(table[name].type)
    table = table.set_column(table.schema.get_field_index(name), name, column)
    return Manifest(table, label_space=manifest.label_space.name, image_root=manifest.image_root)


def test_cached_features_equal_uncached_ones_bit_for_bit(store, manifest):
    uncached = features(FeatureStore(None, batch_size=BATCH_SIZE), manifest)
    for _ in range(2):  # extracted, then found
        cached = features(store, manifest)
        assert cached.x.tobytes() == uncached.x.tobytes()
        for name in ("ids", "patients", "states"):
            np.testing.assert_array_equal(getattr(cached, name), getattr(uncached, name))
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


def changed_label(manifest):
    column = f"finding/{manifest.fields[0]}"
    name = next(n for n in manifest.table.column_names if n == column or n.endswith(manifest.fields[0]))
    rows = manifest.table["split"].to_pylist()
    states = manifest.table[name].to_pylist()
    states[rows.index("train")] = 1 - max(states[rows.index("train")], 0)
    return with_column(manifest, name, states)


def fewer_rows(manifest):
    drop = manifest.table["id"].to_pylist()[manifest.table["split"].to_pylist().index("train")]
    table = manifest.table.filter(pc.not_equal(manifest.table["id"], drop))
    return Manifest(table, label_space=manifest.label_space.name, image_root=manifest.image_root)


def other_split(manifest):
    patients, splits = manifest.table["patient_id"].to_pylist(), manifest.table["split"].to_pylist()
    moved = patients[splits.index("train")]
    moved_splits = ["val" if patient == moved else split for patient, split in zip(patients, splits, strict=True)]
    return with_column(manifest, "split", moved_splits)


def other_patient(manifest):
    return with_column(manifest, "patient_id", [f"new-{p}" for p in manifest.table["patient_id"].to_pylist()])


def other_order(manifest):
    table = manifest.table.take(list(reversed(range(len(manifest)))))
    return Manifest(table, label_space=manifest.label_space.name, image_root=manifest.image_root)


@pytest.mark.parametrize("change", [changed_label, fewer_rows, other_split, other_patient, other_order])
def test_another_manifest_never_hits(store, manifest, change):
    features(store, manifest)
    encoder, changed = TinyEncoder(), change(manifest)
    got = features(store, changed, encoder)
    assert sum(encoder.batches) == len(got.x)
    assert got.x.tobytes() == features(FeatureStore(None, batch_size=BATCH_SIZE), changed).x.tobytes()


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


def test_a_full_disk_is_told_and_finished_batches_are_kept(store, manifest, capsys):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    encoder = TinyEncoder(dim=100)
    try:
        # No file may grow over 4000 bytes: the header (128) and two batches of 4 x 100 x 4 fit, a third does not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limit[1]))
        with pytest.raises(VividError, match=r"cannot be stored.*the same command goes on"):
            features(store, manifest, encoder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(encoder.batches) == 3
    assert store.cache.describe()["entries"] == 0
    encoder.batches.clear()
    capsys.readouterr()
    uncached = features(FeatureStore(None, batch_size=BATCH_SIZE), manifest, TinyEncoder(dim=100))
    assert features(store, manifest, encoder).x.tobytes() == uncached.x.tobytes()
    assert sum(encoder.batches) == len(uncached.x) - 2 * BATCH_SIZE
    assert f"going on after {2 * BATCH_SIZE} of {len(uncached.x)} images" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no record", "empty record", "other key"])
def test_a_damaged_entry_is_made_again_with_a_message(store, manifest, damage, capsys):
    whole = features(store, manifest).x.tobytes()
    (entry,) = [path for path in store.cache.root.iterdir() if path.is_dir()]
    data, record = entry / "features.npy", entry / "entry.json"
    if damage == "truncated":
        data.write_bytes(data.read_bytes()[:-7])
    elif damage == "flipped":
        content = bytearray(data.read_bytes())
        content[-9] ^= 1
        data.write_bytes(content)
    elif damage == "no record":
        record.unlink()
    elif damage == "empty record":
        record.write_text("")
    else:
        record.write_text(record.read_text().replace('"batch_size": 4', '"batch_size": 5'))
    capsys.readouterr()
    encoder = TinyEncoder()
    assert features(store, manifest, encoder).x.tobytes() == whole
    assert encoder.batches
    assert "damaged" in capsys.readouterr().err


def test_unreadable_images_are_reported_on_a_hit_too(store, manifest, capsys):
    items = manifest.select("train").items()
    broken = [0, 4, 5, 6, 7, len(items) - 1]  # the second batch has no image at all
    for position in broken:
        Path(items[position]["image"]).write_bytes(b"no image")
    uncached = features(FeatureStore(None, batch_size=BATCH_SIZE), manifest)
    for _ in range(2):
        capsys.readouterr()
        got = features(store, manifest)
        assert [path for path, _ in got.skipped] == [items[position]["image"] for position in broken]
        assert f"{len(broken)} images cannot be read" in capsys.readouterr().err
        kept = [item for position, item in enumerate(items) if position not in broken]
        assert got.ids.tolist() == [item["id"] for item in kept]
        assert got.patients.tolist() == [item["patient_id"] for item in kept]
        np.testing.assert_array_equal(got.states, [item["states"] for item in kept])
        assert got.x.tobytes() == uncached.x.tobytes()
        assert got.skipped == uncached.skipped


def test_nothing_readable_is_an_error_and_leaves_no_entry(store, manifest, caplog):
    for item in manifest.select("test").items():
        Path(item["image"]).write_bytes(b"no image")
    with pytest.raises(VividError, match="can be read"):
        features(store, manifest, split="test")
    assert "terminating" not in caplog.text, "told once, by whoever catches it"
    assert store.cache.describe()["entries"] == 0


def test_images_that_change_meanwhile_leave_no_entry(store, manifest):
    class Meddler(TinyEncoder):
        def forward(self, images):
            Path(manifest.select("train").items()[0]["image"]).touch()
            return super().forward(images)

    with pytest.raises(VividError, match="changed while"):
        features(store, manifest, Meddler())
    assert store.cache.describe()["entries"] == 0


def test_a_folder_that_cannot_be_written_is_told(manifest, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VividError, match="cannot be stored"):
        features(FeatureStore(tmp_path / "file" / "cache", batch_size=BATCH_SIZE), manifest)


def test_describe_says_where_and_how_large(store, manifest, capsys):
    assert store.cache.describe() == {"folder": str(store.cache.root), "entries": 0, "unfinished": 0, "bytes": 0}
    got = features(store, manifest)
    features(store, manifest, split="test")
    told = capsys.readouterr().err
    assert str(store.cache.root) in told
    assert "MB" in told
    described = store.cache.describe()
    assert described["entries"] == 2
    assert described["bytes"] > got.x.nbytes
    record = json.loads(next(store.cache.root.glob("*/entry.json")).read_text())
    assert record["key"]["encoder"] == TinyEncoder().fingerprint()
