"""Time and memory of a manifest's index, from thousands to millions of images; no image is needed.

    python scripts/simulate_scale.py                                # 10 thousand to 10 million rows
    python scripts/simulate_scale.py --rows 1000000 --folder /data  # a disk with room: 1 GB for a million rows

Memory is what belongs to the process alone (RssAnon): pages of mapped files are shared by all processes, and the system
may take them back. Every line is one process of its own; "first" makes what is remembered, "again" finds it. A cell is
seconds, of them processor seconds (the others wait for the disk or for other programs), and peak memory so far.
"""

import argparse
import itertools
import multiprocessing as mp
import pickle
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vivid_monai.data.columns import conform, state_columns
from vivid_monai.data.loader import ResumableBatchSampler
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import SplitRule
from vivid_monai.ums.label_space import load_label_space

SPACE = "chexpert-14"
STAGES = ("load", "counts", "select", "items", "batches", "rows", "pickle")
ROW_GROUP = 1 << 17
IMAGES_OF_A_PATIENT = 3.5
SHARES = {-1: 0.6, 0: 0.12, 1: 0.22, 2: 0.06}
"""State → share of the cells: most of CheXpert's are blank."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, help="where the manifests are made (default: the system's)")
    args = parser.parse_args()
    print(f"{'rows':>11} {'file':>8} {'':6}" + "".join(f"{stage:>20}" for stage in STAGES))
    for rows in args.rows:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = write(Path(folder) / "manifest.parquet", rows)
            size = path.stat().st_size / 1e6
            for turn in ("first", "again"):
                cells = [f"{wall:.2f}/{cpu:.2f}s {peak:.0f}MB" for wall, cpu, peak in measure(path)]
                print(f"{rows:>11,} {size:>6.0f}MB {turn:6}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


def write(path: Path, rows: int) -> Path:
    """A manifest like CheXpert's, written by row groups."""
    fields = load_label_space(SPACE).fields
    pattern = Manifest(some_rows(range(1000), fields), label_space=SPACE, image_root="/images").save(path)
    schema = pq.read_schema(pattern)
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for first in range(0, rows, ROW_GROUP):
            out.write_table(some_rows(range(first, min(first + ROW_GROUP, rows)), fields))
    return path


def some_rows(which: range, fields: tuple[str, ...]) -> pa.Table:
    rng = np.random.default_rng(which.start)
    number = np.arange(which.start, which.stop)
    patient = (number / IMAGES_OF_A_PATIENT).astype(int)
    of_patient = number - np.ceil(patient * IMAGES_OF_A_PATIENT).astype(int)

    def words(prefix: str, numbers: np.ndarray, width: int = 0) -> pa.Array:
        return pc.binary_join_element_wise(prefix, pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0"), "")

    patients, studies = words("patient", patient, 8), words("study", of_patient // 2 + 1)
    views = words("view", of_patient % 2 + 1)
    image = pc.binary_join_element_wise("train", patients, studies, pc.binary_join_element_wise(views, ".jpg", ""), "/")
    states = rng.choice(list(SHARES), (len(which), len(fields)), p=list(SHARES.values())).astype(np.int8)
    columns = {
        "id": pc.binary_join_element_wise("chexpert", image, ":"),
        "image": image,
        "patient_id": patients,
        "study_id": pc.binary_join_element_wise(patients, studies, "/"),
        "split": SplitRule(val=0.02, test=0.1).assign(patients).cast(pa.string()),
        "view": pa.array(np.array(["PA", "AP", "lateral"])[rng.integers(0, 3, len(which))]),
        "sex": pa.array(np.array(["F", "M"])[patient % 2]),
        "age": pa.array(18.0 + patient % 70),
    }
    constant = {
        "dataset": "chexpert",
        "modality": "DX",
        "anatomy": "chest",
        "labeller": "chexpert-labeler",
        "source": "report",
    }
    columns |= {name: pa.array([word]).take(pa.array(np.zeros(len(which), int))) for name, word in constant.items()}
    columns |= {name: pa.array(states[:, i]) for i, name in enumerate(state_columns(fields))}
    return conform(pa.table(columns), fields)


def measure(path: Path) -> list[tuple[float, float, float]]:
    """Seconds and processor seconds of each stage, and the peak of RssAnon in MB up to its end, in a new process."""
    context = mp.get_context("spawn")
    now, seconds = context.Value("i", -1), context.Array("d", 2 * len(STAGES))
    process = context.Process(target=run, args=(path, now, seconds))
    process.start()
    peaks = [0.0] * len(STAGES)
    while process.is_alive():
        if (stage := now.value) >= 0:
            peaks[stage] = max(peaks[stage], anonymous(process.pid))
        time.sleep(0.002)
    if process.exitcode:
        raise SystemExit(f"stage {STAGES[now.value]!r} failed")
    return list(zip(seconds[::2], seconds[1::2], itertools.accumulate(peaks, max), strict=True))


def run(path: Path, now: "Synchronized[int]", seconds: "SynchronizedArray[float]") -> None:
    stages = the_stages(path)
    for stage in range(len(STAGES)):
        started = time.perf_counter(), time.process_time()
        now.value = stage
        next(stages)
        seconds[2 * stage] = time.perf_counter() - started[0]
        seconds[2 * stage + 1] = time.process_time() - started[1]


def the_stages(path: Path) -> Iterator[None]:
    manifest = Manifest.load(path)
    yield
    fields = manifest.fields_with(1, min_absent=1)
    yield
    train = manifest.select("train")
    yield
    items = train.items(fields)
    yield
    order = ResumableBatchSampler(len(items), 256, seed=0)
    batches = list(itertools.islice(order, 1000))
    yield
    for index, _ in itertools.islice(itertools.chain(*batches), 1000):
        assert len(items[index]["states"]) == len(fields)
    yield
    pickle.dumps(items)
    yield


def anonymous(pid: int | None) -> float:
    """RssAnon of a process in MB; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon")), 0.0)


if __name__ == "__main__":
    main()
