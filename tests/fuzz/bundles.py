"""A bundle with a file damaged, or changed as if it was meant: refused in one line, or the answer holds."""

import hashlib
import json
import random
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from tests.fuzz.damage import changed, damaged, one_line
from tests.fuzz.images import BUNDLE, originals, sane, whole
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.model import ONNX, OOD, WEIGHTS, BundleModel
from vivid_monai.deploy.predict import predict
from vivid_monai.errors import VividError

METADATA = "configs/metadata.json"
IMAGE = "whole.png"


@cache
def contents() -> dict[str, bytes]:
    return {name: (BUNDLE / name).read_bytes() for name in (METADATA, WEIGHTS, ONNX, OOD)}


def check(choose: random.Random) -> str:
    """Predict with a copy of the committed bundle in which one file is not as it was."""
    runtime = choose.choice(["torch", "onnx"])
    name = choose.choice([METADATA, METADATA, ONNX if runtime == "onnx" else WEIGHTS, OOD])
    meant = choose.random() < 0.5  # whoever changed it knows of the checksums
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / BUNDLE.name
        for one, content in contents().items():
            (folder / one).parent.mkdir(parents=True, exist_ok=True)
            if one == name or (meant and one == METADATA):
                (folder / one).write_bytes(content)
            else:
                (folder / one).symlink_to(BUNDLE / one)
        told = json.loads(contents()[METADATA])
        if meant:
            told["vivid"]["metadata_sha256"] = None
        if name == METADATA and meant:
            told = changed(told, choose)
        elif name == METADATA:
            (folder / name).write_bytes(damaged(contents()[name], choose))
        else:
            content = damaged(contents()[name], choose)
            (folder / name).write_bytes(content)
            told["vivid"]["sha256"][name] = hashlib.sha256(content).hexdigest()
        if meant:
            (folder / METADATA).write_text(json.dumps(told), encoding="utf-8")
        image = Path(place) / IMAGE
        image.write_bytes(originals()[IMAGE])
        kind = f"{'meant' if meant else 'damaged'} {name}"
        try:
            done = predict(BundleModel(folder, runtime=runtime), find_inputs([image]), Path(place) / "out")
        except VividError as error:
            one_line(error, beside=place)
            return f"{kind}: refused"
        (entry,) = done.entries
        if not meant:
            np.testing.assert_allclose(entry.probabilities, whole(IMAGE), atol=2e-5)
            return f"{kind}: the same answer"
        sane(entry, place)
        return f"{kind}: {entry.status}"
