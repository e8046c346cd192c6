"""The service: the answers of ``vivid predict``, limits that hold, one line for what is wrong, nothing left or told."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests.deploy.made_dicom import dicom
from tests.deploy.mutate import mutations
from tests.processes import quiet
from vivid_monai.cli import main
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.predict import reading
from vivid_monai.deploy.workers import Bundle, answer, started
from vivid_monai.prepare.phantoms import prepare

MISSING = [name for name in ("fastapi", "python_multipart", "uvicorn", "httpx2") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"pip install 'vivid-monai[service,test]': no {MISSING}")
FOLDER = Path(__file__).parents[2] / "bundle" / "chest_phantom_vit_classification"
NAME = "Doe^Jane.4711"  # no log may hold it


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A phantom in all formats, a DICOM file and a PNG that are not assessed."""
    folder = tmp_path_factory.mktemp("images")
    prepare(folder / "made", n=1, seed=99, size=112)
    (png,) = (folder / "made").rglob("*.png")
    with Image.open(png) as image:
        pixels = np.asarray(image)
        for suffix in ("png", "jpg", "tif", "bmp"):
            image.save(folder / f"{NAME}.{suffix}")
    dicom(folder / f"{NAME}.dcm", pixels=pixels)
    dicom(folder / f"{NAME} us.dcm", pixels=pixels, Modality="US")
    Image.new("L", (60, 40), 128).save(folder / "x blank ü.png")
    return folder


@pytest.fixture(scope="module")
def running():
    """A worker and the folder where it looks for images."""
    with started(Bundle(FOLDER), 1) as (workers, folder):
        yield workers, folder


def served(*arguments, **limits):
    """A client of the service in this process."""
    from starlette.testclient import TestClient

    from vivid_monai.deploy.service import service

    return TestClient(service(*arguments, **limits))


@pytest.fixture
def client(running, caplog):
    """The service; after each test nothing may lie in the folder or have been told of a patient."""
    workers, folder = running
    with served(workers, folder, max_mb=1, timeout=60) as client:
        yield client
    assert not list(folder.iterdir())
    assert not re.search("Doe|4711|blank|Traceback|secret", caplog.text)


def post(client, path: Path, **more):
    return client.post("/predict", files={"file": (path.name, path.read_bytes())}, **more)


def refused(response, *statuses: int) -> str:
    assert response.status_code in statuses, response.text
    assert set(response.json()) == {"detail"}
    detail = response.json()["detail"]
    assert isinstance(detail, str)
    assert 0 < len(detail) <= 300
    assert not re.search(f"\n|Traceback|Doe|4711|{re.escape(tempfile.gettempdir())}", detail)
    return detail


def test_answers_are_those_of_predict_byte_for_byte(client, images, tmp_path, monkeypatch):
    monkeypatch.chdir(images)
    files = sorted(path.name for path in images.iterdir() if path.is_file())
    assert main(["predict", *files, "--bundle", str(FOLDER), "--out", str(tmp_path), "--batch-size", "1"]) == 0
    with (tmp_path / "not_assessed.csv").open(newline="", encoding="utf-8") as table:
        reasons = {row["image"]: row["reason"] for row in csv.DictReader(table)}
    lines = (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    records = {json.loads(line)["id"]: line for line in lines}
    assert set(reasons) == {f"{NAME} us.dcm", "x blank ü.png"}
    assert {*reasons, *records} == set(files)
    for name in files:
        response = post(client, images / name)
        assert response.status_code == 200
        if name in reasons:
            assert response.json() == {"status": "not assessed", "reason": reasons[name], "record": None}
        else:
            assert response.text == f'{{"status": "answered", "reason": "", "record": {records[name]}}}'


def test_an_override_is_in_the_record_and_paths_are_nowhere(images):
    model = BundleModel(FOLDER)
    said = answer(model, reading(model, ["modality"]), str(images / f"{NAME} us.dcm"), "a.dcm")
    assert said.record["provenance"]["labeller_version"] == f"{model.version}+accept:modality"
    assert str(images) not in str(said)
    said = answer(model, reading(model), str(images), "a")
    assert (said.status, said.record) == ("unreadable", None)
    assert str(images) not in said.reason


def test_the_name_of_a_client_is_only_a_name(client, images):
    content = (images / f"{NAME}.png").read_bytes()
    for name, told in (
        ("../../../../tmp/secret.png", "../../../../tmp/secret.png"),
        ("a" * 300, "a" * 255),
        ("\x85\u2028.png", "\\x85\\u2028.png"),
    ):
        record = client.post("/predict", files={"file": (name, content)}).json()["record"]
        assert record["id"] == record["image"]["path"] == told


def test_what_is_no_image_is_refused_in_one_line(client, images, tmp_path):
    png, dcm = ((images / f"{NAME}.{suffix}").read_bytes() for suffix in ("png", "dcm"))
    volume = nibabel.Nifti1Image(np.zeros((8, 8, 3), np.uint8), np.eye(4)).to_bytes()
    colour = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(colour, "JPEG")
    for content in (b"", b"no image", png[:-100], dcm[:400], dcm[:-100], b"%PDF-1.7", volume, colour.getvalue()):
        refused(client.post("/predict", files={"file": (f"{NAME}.dcm", content)}), 422)


def test_damaged_images_are_answered_or_refused(client, images):
    before = post(client, images / f"{NAME}.dcm").text
    counts = {200: 0, 422: 0}
    for suffix in ("png", "jpg", "tif", "bmp", "dcm"):
        for content in mutations((images / f"{NAME}.{suffix}").read_bytes(), 12, seed=len(suffix)):
            response = client.post("/predict", files={"file": (f"{NAME}.{suffix}", content)})
            counts[response.status_code] += 1
            if response.status_code == 422:
                refused(response, 422)
    assert counts[422] > 20
    assert post(client, images / f"{NAME}.dcm").text == before


def test_forms_without_one_file_are_refused_in_one_line(client, images):
    content = (images / f"{NAME}.png").read_bytes()
    refused(client.post("/predict", content=content, headers={"Content-Type": "image/png"}), 415)
    refused(client.post("/predict", data={"file": "text"}), 415)
    refused(client.post("/predict"), 415)
    refused(client.post("/predict", files={"image": (f"{NAME}.png", content)}), 422)
    refused(client.post("/predict", files=[("file", ("a", content)), ("file", ("b", content))]), 400)
    refused(client.post("/predict", files={"file": ("a", content)}, data={"PatientName": "Doe"}), 400)
    form = {"Content-Type": "multipart/form-data"}
    refused(client.post("/predict", content=content, headers=form), 400)
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    refused(client.post("/predict", content=b"Doe^Jane", headers=form), 400)
    long = b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + b"a" * 100_000
    refused(client.post("/predict", content=long, headers=form), 400)
    for method, path in (("GET", "/predict"), ("GET", f"/{NAME}"), ("DOE", "/health")):
        refused(client.request(method, path), 404, 405)


def test_a_request_over_the_limit_is_refused(client):
    assert "over 1,000,000 bytes" in refused(client.post("/predict", files={"file": ("a", bytes(1_000_001))}), 413)
    refused(client.post("/predict", files={"file": ("a", bytes(990_000))}), 422)


def test_an_image_that_takes_too_long_costs_its_process_only(running, images):
    (worker,), folder = running
    with served([worker], folder, timeout=1) as client:
        before = post(client, images / f"{NAME}.png").text
        os.kill(worker._process.pid, signal.SIGSTOP)  # as a decoder that hangs
        assert "took over 1 s" in refused(post(client, images / f"{NAME}.png"), 504)
        assert not list(folder.iterdir())
        assert post(client, images / f"{NAME}.png").text == before


def test_a_process_that_falls_is_replaced(running, images, caplog):
    (worker,), folder = running
    with served([worker], folder, timeout=60) as client:
        before = post(client, images / f"{NAME}.png").text
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.join()
        assert post(client, images / f"{NAME}.png").text == before
        os.kill(worker._process.pid, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (worker._process.pid, signal.SIGKILL)).start()  # as a decoder that crashes
        refused(post(client, images / f"{NAME}.png"), 500)
        assert "exit code -9" in caplog.text
        assert post(client, images / f"{NAME}.png").text == before


def test_a_mistake_of_ours_is_told_without_values(running, images):
    (worker,), folder = running
    (folder / "a").write_bytes((images / f"{NAME}.png").read_bytes())
    worker.answer("a", "b", seconds=60)
    worker._pipe.send(("a", {"Doe": 4711}))  # no name: to print it fails
    told = worker._pipe.recv()
    assert re.fullmatch(r"[A-Za-z]+Error in \w+\.py:\d+", told)
    (folder / "a").unlink()


def test_who_waits_too_long_is_told_to_come_again(tmp_path, images):
    with served([], tmp_path, timeout=0.2) as client:
        response = post(client, images / f"{NAME}.png")
        assert "busy" in refused(response, 503)
        assert response.headers["Retry-After"]
    assert not list(tmp_path.iterdir())


def test_says_what_answers_and_whether_it_can(client, running, monkeypatch):
    metadata = json.loads((FOLDER / "configs" / "metadata.json").read_text(encoding="utf-8"))
    told = client.get("/model").json()
    assert (told["name"], told["version"]) == (FOLDER.name, metadata["version"])
    assert told["fingerprint"] == metadata["vivid"]["sha256"]["models/model.onnx"]
    for field, rule in zip(told["fields"], metadata["answers"]["fields"], strict=True):
        assert field.items() <= rule.items()
    assert told["limits"] == {"max_mb": 1, "timeout_s": 60, "formats": ["DICOM", "PNG", "JPEG", "TIFF", "BMP"]}
    assert told["medical_device"] is False
    assert told["intended_use"] == metadata["intended_use"]
    assert client.get("/health").json() == {"status": "ok", "workers": 1, "free": 1}
    monkeypatch.setattr(running[0][0], "broken", True)
    assert client.get("/health").status_code == 503
    assert client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["required"]
    refused(client.get("/docs"), 404)


def test_what_a_killed_server_left_is_removed_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / ".vivid-serve.abcd_123.part" / "vivid-serve"
    left.mkdir(parents=True)
    (left / "image").write_text("of before")
    with started(Bundle(FOLDER), 1) as (workers, folder):
        assert not left.exists()
        assert folder.parent.stat().st_mode & 0o077 == 0
        process = workers[0]._process
        (folder / "image").write_text("in the middle")
    assert not list(tmp_path.iterdir())
    process.join(10)
    assert not process.is_alive()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "0"], "--workers must be 1 or more, not 0"),
        (["--port", "70000"], "--port must be at most 65535"),
        (["--max-mb", "nan"], "--max-mb must be over 0 and at most 10000, not nan"),
        (["--timeout", "0"], "--timeout must be over 0 and at most 3600, not 0"),
        (["--accept", "vew"], "did you mean view"),
        (["--host", "300.1.1.1"], "--host 300.1.1.1 --port 8000: cannot listen there (Name or service not known)"),
        (["--bundle", "nowhere"], "nowhere/configs/metadata.json: cannot be read"),
    ],
)
def test_a_bad_word_is_one_line(words, told, capsys):
    assert main(["serve", "--bundle", str(FOLDER), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert "\n" not in error


def test_a_missing_package_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "--bundle", str(FOLDER)]) == 2
    assert 'fastapi is not installed: pip install "vivid-monai[service]"' in capsys.readouterr().err


def form(content: bytes, name: str) -> tuple[bytes, dict[str, str]]:
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return head + content + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def test_a_server_answers_holds_its_limits_and_ends_without_a_trace(images, tmp_path):
    command = [sys.executable, "-m", "vivid_monai.cli", "serve", "--bundle", str(FOLDER), "--port", "0"]
    options = {"cwd": Path(__file__).parents[2], "env": {**quiet(), "TMPDIR": str(tmp_path)}, "text": True}
    with (tmp_path.with_name("log")).open("w+") as log:
        process = subprocess.Popen(
            [*command, "--max-mb", "2", "--timeout", "3"], stdout=subprocess.PIPE, stderr=log, **options
        )
        try:
            first = process.stdout.readline()
            port = int(re.match(r"http://127\.0\.0\.1:(\d+): ", first)[1])
            assert "Not a medical device" in first
            client = HTTPConnection("127.0.0.1", port, timeout=60)
            for suffix, status in (("png", 200), ("dcm", 200)):
                client.request("POST", f"/predict?{NAME}", *form((images / f"{NAME}.{suffix}").read_bytes(), NAME))
                response = client.getresponse()
                assert (response.status, json.loads(response.read())["record"]["id"]) == (status, NAME)
            _stream_without_end(port)
            _stall(port)
            client.request("GET", "/health")
            assert client.getresponse().status == 200
            (folder,) = tmp_path.glob(".vivid-serve.*.part/vivid-serve")
            assert not list(folder.iterdir())
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
        assert not list(tmp_path.iterdir())
        log.seek(0)
        told = log.read()
    assert re.fullmatch(r"(\w+ /\w+: \d+ in \d+ ms\n)+", told), told
    assert told.count("POST /predict: 200") == 2


def _stream_without_end(port: int) -> None:
    """A body without a length is read up to the limit and no further."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as one:
        head, chunk = form(b"", NAME)[0].split(b"\r\n--x--")[0], bytes(2**16)
        one.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n")
        one.sendall(b"Content-Type: multipart/form-data; boundary=x\r\n\r\n%x\r\n%b\r\n" % (len(head), head))
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 200e6:
                one.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                sent += len(chunk)
        assert sent < 30e6  # what fits into the buffers of both ends
        with contextlib.suppress(ConnectionResetError):  # what was sent meanwhile overtook the answer
            assert one.recv(2**16).startswith(b"HTTP/1.1 413 ")


def _stall(port: int) -> None:
    """A client that stops in the middle is sent away."""
    body, _ = form(bytes(1000), NAME)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as one:
        one.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body))
        one.sendall(b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body[:500])
        began = time.monotonic()
        assert one.recv(2**16).startswith(b"HTTP/1.1 408 ")
        assert 2 < time.monotonic() - began < 30
