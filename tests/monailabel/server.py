"""A MONAI Label server with the app, in a process of its own, on a free port of this machine."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

ROOT = Path(__file__).parents[2]
APP = ROOT / "bundle" / "monailabel"


class Refused(Exception):
    """An answer of 400 and above."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class Client:
    """The REST interface of MONAI Label."""

    def __init__(self, port: int, model: str) -> None:
        self.url, self.model = f"http://127.0.0.1:{port}", model

    def get(self, path: str, **query) -> Any:
        return self._send("GET", path, query)

    def post(self, path: str, body: dict | None = None, **query) -> Any:
        content = None if body is None else (json.dumps(body).encode(), "application/json")
        return self._send("POST", path, query, content)

    def infer(self, image: str) -> Any:
        return self.post(f"/infer/{self.model}", image=image, output="json")

    def infer_file(self, path: Path) -> Any:
        return self._send(
            "POST", f"/infer/{self.model}", {"output": "json"}, _file("file", path.name, path.read_bytes())
        )

    def store(self, image: str, said: Any, *, tag: str = "final", params: bytes = b"{}") -> Any:
        text = said if isinstance(said, bytes) else json.dumps(said).encode()
        content = _file("label", "said.json", text, {"params": params})
        return self._send("PUT", "/datastore/label", {"image": image, "tag": tag}, content)

    def next(self) -> Any:
        return self.post("/activelearning/least_sure", {})

    def train(self, **options) -> Any:
        return self.post(f"/train/{self.model}", options, run_sync="true")

    def score(self, method: str) -> Any:
        return self.post(f"/scoring/{method}", {}, run_sync="true")

    def _send(self, method: str, path: str, query: dict, content: tuple[bytes, str] | None = None) -> Any:
        body, kind = content or (None, None)
        request = urllib.request.Request(f"{self.url}{quote(path)}?{urlencode(query)}", body, method=method)
        if kind:
            request.add_header("Content-Type", kind)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            with contextlib.suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["detail"]
            raise Refused(error.code, text) from None


@contextlib.contextmanager
def serve(
    python: str, bundle: Path, studies: str | Path, folder: Path, *, settings: dict[str, str] | None = None
) -> Iterator[Client]:
    """A server of this app; its own folder, log and copy of the app go into `folder`. Ends with the block.

    ``settings``: environment variables of MONAI Label.
    """
    app = shutil.copytree(APP, folder / "app", ignore=shutil.ignore_patterns("model", "logs", "bin", "__pycache__"))
    port = free_port()
    command = [python, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--conf", "bundle", str(bundle), "--conf", "work", str(folder / "work")]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MONAI_LABEL")}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(folder), **(settings or {})}
    with running(command, folder / "server.log", env=environment, cwd=folder) as process:
        client = Client(port, bundle.name)
        wait_for(lambda: client.get("/info/"), process, folder / "server.log")
        yield client


@contextlib.contextmanager
def running(command: list[str], log: Path, **options) -> Iterator[subprocess.Popen]:
    """A process and all that it starts, ended with the block whatever happens in it."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        yield process
    finally:
        for signal in (15, 9):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal)
                process.wait(timeout=20)


def wait_for(answers: Any, process: subprocess.Popen, log: Path, *, seconds: float = 120) -> None:
    """Wait until a call no longer fails to connect."""
    end = time.monotonic() + seconds
    while True:
        try:
            answers()
            return
        except OSError:  # URLError is one
            assert process.poll() is None, f"ended: {log.read_text()[-3000:]}"
            assert time.monotonic() < end, f"does not answer: {log.read_text()[-3000:]}"
            time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _file(name: str, filename: str, content: bytes, fields: Mapping[str, bytes] | None = None) -> tuple[bytes, str]:
    """One file, and fields beside it, as multipart/form-data (RFC 7578)."""
    line, parts = uuid.uuid4().hex, {f'"{field}"': text for field, text in (fields or {}).items()}
    parts[f'"{name}"; filename="{filename}"'] = content
    body = b"".join(
        f"--{line}\r\nContent-Disposition: form-data; name={head}\r\n\r\n".encode() + text + b"\r\n"
        for head, text in parts.items()
    )
    return body + f"--{line}--\r\n".encode(), f"multipart/form-data; boundary={line}"
