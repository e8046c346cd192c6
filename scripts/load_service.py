"""How many requests `vivid serve` answers, how fast, and whether its memory stays flat.

    python scripts/load_service.py --requests 5000 --clients 8

starts the service on this machine and sends it phantoms as PNG and DICOM, ultrasound, damaged files and
broken forms, on connections that stay open. Memory is the resident one of all its processes, added up: pages that they
share count in each. Clients and service share the processor, so the times are upper bounds.

A good image that is not answered 200, or a malformed request that is not answered 4xx (a damaged file may be answered),
ends it with status 1.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.deploy.made_dicom import dicom  # noqa: E402
from tests.deploy.mutate import mutations  # noqa: E402
from vivid_monai.prepare.phantoms import prepare  # noqa: E402

BUNDLE = ROOT / "bundle" / "chest_phantom_vit_classification"
WARM = 0.2  # share of the requests after which memory is to be flat
KINDS = {"PNG": 40, "DICOM": 40, "not for it": 5, "damaged": 10, "malformed": 5}
"""Each kind of request, and how many of a hundred are of it."""


@dataclass(frozen=True)
class Sent:
    """A request that may be sent, and the statuses that are right for it."""

    kind: str
    body: bytes
    headers: dict[str, str]
    right: tuple[int, ...]


@dataclass
class Load:
    """What happened so far; clients add to it."""

    left: int
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000, help="(default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="at a time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that answer (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="(default: the one in bundle/)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        requests = drawn(Path(name), args.requests, args.seed)
        command = [sys.executable, "-m", "vivid_monai.cli", "serve", "--port", "0"]
        command += ["--bundle", str(args.bundle.resolve()), "--workers", str(args.workers)]
        env = {**os.environ, "TMPDIR": name, "PYTHONPATH": str(ROOT)}
        with (Path(name) / "log").open("w") as log:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        try:
            assert server.stdout
            found = re.match(r"http://127\.0\.0\.1:(\d+):", server.stdout.readline())
            if not found:
                raise SystemExit((Path(name) / "log").read_text())
            load, readings, seconds = run(int(found[1]), requests, args.clients, lambda: resident(server.pid))
        finally:
            server.terminate()
            server.wait()
        left = [path.name for path in Path(name).glob(".vivid-serve*")]
    return tell(load, readings, seconds, args, left)


def drawn(folder: Path, n: int, seed: int) -> list[Sent]:
    """n requests in a drawn order; of each kind the share of :data:`KINDS`."""
    prepare(folder / "phantoms", n=100, seed=seed, size=112)
    pngs = sorted((folder / "phantoms").rglob("*.png"))
    dicoms = []
    for i, png in enumerate(pngs):
        with Image.open(png) as image:
            dicoms.append(Path(dicom(folder / f"{i}.dcm", seed=i, pixels=np.asarray(image))))
    others = [dicom(folder / f"us{i}.dcm", seed=i, Modality="US") for i in range(10)]
    files = {"PNG": pngs, "DICOM": dicoms, "not for it": [Path(one) for one in others]}
    ready = {kind: [form(kind, path.read_bytes(), (200,)) for path in paths] for kind, paths in files.items()}
    sources = [path.read_bytes() for path in (*pngs[:50], *dicoms[:50])]
    damaged = [one for i, source in enumerate(sources) for one in mutations(source, 8, seed=seed + i)]
    ready["damaged"] = [form("damaged", one, (200, 422)) for one in damaged]
    ready["malformed"] = malformed(sources[0])
    rng = random.Random(seed)
    kinds = rng.choices(list(KINDS), weights=list(KINDS.values()), k=n)
    return [rng.choice(ready[kind]) for kind in kinds]


def form(kind: str, content: bytes, right: tuple[int, ...], *, name: str = "file") -> Sent:
    """One file as multipart/form-data (RFC 7578)."""
    line = "f8a6d2"
    head = f'--{line}\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'.encode()
    kept = {"Content-Type": f"multipart/form-data; boundary={line}"}
    return Sent(kind, head + content + f"\r\n--{line}--\r\n".encode(), kept, right)


def malformed(image: bytes) -> list[Sent]:
    """Requests that hold no image that could be read."""
    whole, refused = form("malformed", image, (422,)), range(400, 500)
    kept = whole.headers
    bodies = [b"", b"x", whole.body[:60], whole.body[:-20], whole.body[:200] + b"\r\n--f8a6d2\r\n" * 3]
    sent = [Sent("malformed", body, kept, tuple(refused)) for body in bodies]
    sent += [Sent("malformed", image, {"Content-Type": "image/png"}, (415,))]
    sent += [form("malformed", image, (422,), name="image")]
    return sent + [form("malformed", one, (422,)) for one in (b"", b"no image", image[:100], b"%PDF-1.7")]


def run(port: int, requests: list[Sent], clients: int, memory: Callable[[], int]) -> tuple[Load, dict[str, int], float]:
    """Send the requests; returns what happened, kB of memory at start, after a share and at the end, and seconds."""
    load, warm = Load(len(requests)), int(len(requests) * WARM)
    readings = {"start": memory()}

    def client() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with load.lock:
                if not load.left:
                    return
                sent = requests[load.left - 1]
                load.left -= 1
            began = time.perf_counter()
            try:
                connection.request("POST", "/predict", sent.body, sent.headers)
                response = connection.getresponse()
                status, text = response.status, response.read()
            except (OSError, HTTPException):  # closed after a request that was not read to its end
                connection.close()
                status, text = 0, b""
            took = time.perf_counter() - began
            with load.lock:
                load.seconds.append(took)
                load.statuses[sent.kind, status] += 1
                if status not in sent.right or not one_line(status, text):
                    load.wrong.append(f"{sent.kind}: {status} {text[:200]!r}")
                if len(load.seconds) == warm:
                    readings[f"after {warm:,}"] = memory()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    readings["end"] = memory()
    return load, readings, seconds


def one_line(status: int, text: bytes) -> bool:
    """Whether a refusal is one line, and everything else JSON."""
    try:
        said = json.loads(text)
    except ValueError:
        return False
    return status == 200 or ("\n" not in said["detail"] and 0 < len(said["detail"]) <= 300)


def resident(pid: int) -> int:
    """kB of memory that a process and all below it hold."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            total += resident(int(child))
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            total += int(line.split()[1])
    return total


def tell(load: Load, readings: dict[str, int], seconds: float, args: argparse.Namespace, left: list[str]) -> int:
    n = len(load.seconds)
    print(f"{n:,} requests by {args.clients} clients to {args.workers} workers in {seconds:.0f} s: {n / seconds:.1f}/s")
    p50, p95, p99 = (1000 * float(one) for one in np.percentile(load.seconds, (50, 95, 99)))
    print(f"ms: p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, longest {1000 * max(load.seconds):.0f}")
    for kind in KINDS:
        counts = {status: count for (one, status), count in sorted(load.statuses.items()) if one == kind}
        print(f"{kind:12s}" + ", ".join(f"{status}: {count:,}" for status, count in counts.items()))
    print("resident MB: " + ", ".join(f"{when} {kb / 1e3:.1f}" for when, kb in readings.items()))
    _, warm, end = readings.values()
    print(f"growth after the first {WARM:.0%}: {(end - warm) / 1e3:+.1f} MB ({(end - warm) / warm:+.2%})")
    print(f"left on the disk: {', '.join(left) or 'nothing'}")
    for line in load.wrong[:10]:
        print(f"wrong: {line}")
    return 1 if load.wrong or left else 0


if __name__ == "__main__":
    sys.exit(main())
