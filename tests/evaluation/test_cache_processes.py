"""The feature cache between processes: killed, at work at the same time, or taking over what another one left."""

import multiprocessing
import signal
from pathlib import Path

import pytest

from tests.evaluation import tiny_encoder
from tests.evaluation.tiny_encoder import BATCH_SIZE
from vivid_monai.evaluation.features import FeatureStore


class Processes:
    """Starts extractions in processes of their own, which are forked from one that has imported everything once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([tiny_encoder.__name__])

    def start(self, manifest, cache, log, kill_at=-1, where="forward"):
        result = self.folder / f"{cache.name}-{len(list(self.folder.iterdir()))}"
        result.touch()
        arguments = (manifest.image_root / "manifest.parquet", cache, log, kill_at, where, result)
        process = self.context.Process(target=tiny_encoder.extract_in_process, args=arguments, name=str(result))
        process.start()
        return process

    def finish(self, process) -> str:
        process.join()
        assert process.exitcode == 0
        return Path(process.name).read_text()


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> Processes:
    return Processes(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize(("where", "kill_at"), [("forward", 3), ("append", 3), ("forward", 0), ("append", 0)])
def test_sigkill_loses_at_most_one_batch(processes, manifest, tmp_path, where, kill_at):
    log, cache = tmp_path / "log", tmp_path / "killed"
    killed = processes.start(manifest, cache, log, kill_at, where)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    done = len(log.read_text().split()) if log.exists() else 0
    assert done == kill_at + (where == "append")
    assert FeatureStore(cache).cache.describe()["entries"] == 0, "nothing half-written is taken as whole"
    log.unlink(missing_ok=True)
    resumed = processes.finish(processes.start(manifest, cache, log))
    total = -(-len(manifest.select("train")) // BATCH_SIZE)
    assert len(log.read_text().split()) == total - kill_at, "only the batch at which it died is done again"
    whole = processes.finish(processes.start(manifest, tmp_path / "whole", tmp_path / "log2"))
    assert resumed == whole, "as if it had never been killed"
    described = FeatureStore(cache).cache.describe()
    assert (described["entries"], described["unfinished"]) == (1, 0)


def test_two_processes_share_the_work_of_one(processes, manifest, tmp_path):
    log = tmp_path / "log"
    both = [processes.start(manifest, tmp_path / "cache", log) for _ in range(2)]
    assert len({processes.finish(one) for one in both}) == 1
    assert len(log.read_text().split()) == -(-len(manifest.select("train")) // BATCH_SIZE)


def test_a_damaged_unfinished_entry_is_begun_again(processes, manifest, tmp_path):
    cache, log = tmp_path / "cache", tmp_path / "log"
    processes.start(manifest, cache, log, 3).join()
    (part,) = cache.glob("*.part")
    content = bytearray((part / "features.npy").read_bytes())
    content[-2] ^= 1
    (part / "features.npy").write_bytes(content)
    whole = processes.finish(processes.start(manifest, tmp_path / "whole", tmp_path / "log2"))
    assert processes.finish(processes.start(manifest, cache, log)) == whole
