"""Requests to a MONAI Label server with the app: answered, or refused in one line, and it goes on answering."""

import atexit
import contextlib
import json
import os
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.damage import ODD, changed, damaged, one_line
from tests.fuzz.images import BUNDLE, SECRETS, model, originals, whole
from tests.monailabel.server import Client, Refused, serve

VARIABLE = "VIVID_MONAILABEL_PYTHON"
AT_HAND = bool(os.environ.get(VARIABLE))
"""Whether there is a Python with MONAI Label (docs/monailabel.md)."""
IMAGE = "whole.png"
STATES = ("present", "absent", "uncertain", None)


@cache
def server() -> tuple[Client, Path]:
    """A server over a folder with two images, until this process ends; and a folder to write in."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    (folder / "studies").mkdir()
    for name in (IMAGE, "whole.jpg"):
        (folder / "studies" / f"{name[-3:]}-{name}").write_bytes(originals()[name])
    return stack.enter_context(serve(os.environ[VARIABLE], BUNDLE, folder / "studies", folder)), folder


def check(choose: random.Random) -> str:
    """One request that nobody should send, and then an image."""
    kind = choose.choice([upload, upload, request, findings])
    told = f"{kind.__name__}: {kind(choose)}"
    if choose.random() < 0.1:
        client, folder = server()
        (folder / IMAGE).write_bytes(originals()[IMAGE])
        said = client.infer_file(folder / IMAGE)["findings"]
        np.testing.assert_allclose([one["probability"] for one in said.values()], whole(IMAGE), atol=2e-5)
    return told


def upload(choose: random.Random) -> str:
    """A damaged image."""
    client, folder = server()
    name = choose.choice(sorted(one for one in originals() if one.endswith((".png", ".jpg", ".dcm"))))
    (folder / name).write_bytes(damaged(originals()[name], choose))
    try:
        answer = client.infer_file(folder / name)
    except Refused as refused:
        return _harmless(refused, str(folder))
    if answer["status"] == "answered":
        assert all(0 <= one["probability"] <= 1 for one in answer["findings"].values())
    else:
        assert (answer["status"], answer["findings"]) == ("not assessed", {})
        one_line(answer["reason"], secrets=SECRETS)
    return answer["status"]


def request(choose: random.Random) -> str:
    """Odd words in the address, or an odd body."""
    client, folder = server()
    body = changed({"image": "png-whole", "model": client.model, "client_id": "a", "max_epochs": 1}, choose)
    text = json.dumps(body).encode()
    content = (damaged(text, choose) if choose.random() < 0.3 else text, "application/json")
    words = ["png-whole", "..", "/etc/passwd", "a/b", "%00", "x" * 300, *map(str, ODD)]
    odd = choose.choice([word for one in words if (word := one.encode(errors="ignore"))])
    # Of an empty one MONAI Label itself answers 500, in one line, before it asks the app.
    path, query = choose.choice(
        [
            (f"/train/{client.model}", {"run_sync": "true"}),
            ("/activelearning/least_sure", {}),
            ("/scoring/uncertainty", {"run_sync": "true"}),
            (f"/infer/{client.model}", {"image": odd, "output": "json"}),
            (f"/infer/{odd.decode()}", {"image": "png-whole", "output": "json"}),
        ]
    )
    try:
        client._send("POST", path, query, content if "infer" not in path else None)
    except Refused as refused:
        return _harmless(refused, str(folder))
    assert "train" not in path, "there are no findings to train on"
    return "answered"


def findings(choose: random.Random) -> str:
    """What no reader may say of an image: nothing of it is stored."""
    client, folder = server()
    said: Any = {field: choose.choice(STATES) for field in choose.sample(model().fields, 3)}
    wrong = choose.choice(["unknown", "state", "kind", "contradiction", "damaged"])
    if wrong == "unknown":
        said[choose.choice(["Spleen", "edema ", "", "x" * 400])] = "present"
    elif wrong == "state":
        said[choose.choice(model().fields)] = choose.choice([one for one in ODD if one not in STATES])
    elif wrong == "kind":
        said = choose.choice([[], "present", None, {}, 1])
    elif wrong == "contradiction":
        said |= {"Edema": "present", "Lung Opacity": "absent"}
    text = json.dumps({"findings": said, "reader": "R"}).encode()
    if wrong == "damaged":
        text = text[: choose.randrange(len(text))]
    try:
        client.store("png-whole", text)
    except Refused as refused:
        assert client.get("/datastore/")["completed"] == 0
        return _harmless(refused, str(folder))
    raise AssertionError(f"stored: {text!r}")


def _harmless(refused: Refused, folder: str) -> str:
    assert 400 <= refused.code < 500, refused
    text = refused.detail if isinstance(refused.detail, str) else json.dumps(refused.detail)
    assert "Traceback" not in text
    assert not any(secret in text for secret in SECRETS)
    if isinstance(refused.detail, str):
        one_line(refused.detail, beside=folder)
    return f"refused with {refused.code}"
