"""The array cache between processes: killed, waiting for each other, started afresh."""

import multiprocessing
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.storage.numbered import N, Reader, assert_right, build_in_process, get
from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.targets import StatesTarget
from vivid_monai.images.augment import RandomAugmentation
from vivid_monai.images.preprocess import Preprocess


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.storage.numbered"])
    return context


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_process_is_gone_on_with(processes, tmp_path: Path) -> None:
    root, log = tmp_path / "cache", tmp_path / "log"
    killed = processes.Process(target=build_in_process, args=(root, log, 200, 150))
    killed.start()
    # Waits at image 150, in the third chunk, until its last record is old enough for the next one.
    wait_for(lambda: log.exists() and len(log.read_text().split()) >= 149)
    time.sleep(2.1)
    (tmp_path / "go").touch()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not any(path.is_dir() and path.suffix != ".part" for path in root.iterdir())
    log.unlink()
    reader = Reader(log)
    assert_right(get(root, reader))
    assert reader.read() == list(range(192, N)), "what was recorded is not read again"
    assert_right(get(root, Reader(tmp_path / "other", kill_at=1)))


def test_a_second_process_waits_for_the_first(processes, tmp_path: Path) -> None:
    root, logs = tmp_path / "cache", [tmp_path / "one", tmp_path / "two"]
    first, second = (processes.Process(target=build_in_process, args=(root, log, -1, 100)) for log in logs)
    first.start()
    wait_for(logs[0].exists)
    second.start()
    told = logs[1].with_suffix(".err")
    wait_for(lambda: told.exists() and "another process is making these images" in told.read_text())
    assert not logs[1].exists()
    (tmp_path / "go").touch()
    for process in (first, second):
        process.join()
        assert process.exitcode == 0
    assert not logs[1].exists(), "the second has read nothing"


def test_workers_started_afresh_map_the_same_file(processes, tmp_path: Path) -> None:
    rows = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 33)).astype(np.uint8)).save(path)
        rows.append({"image": str(path), "states": np.array([0, 1]), "id": str(index), "patient_id": "p"})
    preprocess = Preprocess(size=32)
    options = {"targets": [StatesTarget()], "augmentation": RandomAugmentation(preprocess)}
    dataset = ImageDataset(rows, preprocess, **options, cache=tmp_path / "cache", num_workers=2)
    assert len(pickle.dumps(dataset)) < 50_000
    expected = [dataset[index, 7 + index] for index in range(5)]
    for row in rows:
        Path(row["image"]).unlink()
    draws = [(index, 7 + index) for index in range(5)]
    loader = DataLoader(dataset, batch_size=None, sampler=draws, num_workers=1, multiprocessing_context=processes)
    for one, other in zip(loader, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in ("image", "states", "asked"))
        assert all(map(torch.equal, one["drawn"], other["drawn"]))
