"""Files of weights, damaged or made of other parts: refused, or the features are those of the file; no code is run."""

import json
import pickle
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fuzz.damage import changed, damaged
from tests.fuzz.images import originals
from vivid_monai.deploy.model import load_model
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.checkpoint import read_checkpoint
from vivid_monai.networks.library import LibraryBackbone
from vivid_monai.networks.modules import KEY, save_module
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT

IMAGE = "whole.png"


KINDS: dict[str, Callable[[], Any]] = {
    "vit": lambda: ViT(img_size=16, patch_size=8, preset="micro"),
    "library": lambda: LibraryBackbone(library="transformers", model=BEIT, image_shape=(1, 16, 16)),
}
BEIT = {"model_type": "beit", "num_channels": 1, "image_size": 16, "patch_size": 8, "use_relative_position_bias": True}
BEIT |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@cache
def saved(kind: str) -> tuple[bytes, dict[str, Tensor], dict[str, str]]:
    """A small encoder with its read-out: content, tensors and metadata of the file."""
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        backbone = KINDS[kind]()
        path, preprocess, spd = Path(folder) / "a.safetensors", Preprocess(size=16), SPD(backbone.embed_dim, groups=2)
        save_module(backbone, path, kind=kind, spd=spd, pool="spd", preprocess=preprocess.to_dict())
        return path.read_bytes(), load_file(path), read_checkpoint(path).metadata


def features(file: Path) -> np.ndarray:
    image = file.parent / IMAGE
    image.write_bytes(originals()[IMAGE])
    return load_model(file).features(image)


@cache
def expected(kind: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.safetensors"
        file.write_bytes(saved(kind)[0])
        return features(file)


class Code:
    """What unpickling calls."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def check(choose: random.Random) -> str:
    """Load one file that is not as it was."""
    backbone = choose.choice(list(KINDS))
    content, tensors, metadata = saved(backbone)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, proof = folder / "a.safetensors", folder / "proof"
        kind = choose.choice(["damaged", "said", "tensors", "pickle", "code"])
        if kind == "damaged":
            file.write_bytes(damaged(content, choose))
        elif kind == "said":
            save_file(tensors, file, {**metadata, KEY: json.dumps(changed(json.loads(metadata[KEY]), choose))})
        elif kind == "tensors":
            save_file(other_tensors(dict(tensors), choose), file, metadata)
        else:
            file = folder / choose.choice(["a.pt", "a.pth", "a.bin"])
            data: Any = {"state_dict": tensors} if choose.random() < 0.5 else tensors
            if kind == "code":
                data = {**data, "more": Code(proof)}
            torch.save(data, file) if choose.random() < 0.7 else file.write_bytes(pickle.dumps(data))
            if kind == "pickle":
                file.write_bytes(damaged(file.read_bytes(), choose))
        try:
            found = read_checkpoint(file).tensors if file.suffix != ".safetensors" else features(file)
        except VividError:
            return f"{kind}: refused"
        finally:
            assert not proof.exists(), "code was run"
        assert kind != "code", "what holds code was read"
        if isinstance(found, dict):
            assert all(isinstance(one, Tensor) for one in found.values())
        elif np.array_equal(found, expected(backbone)):
            return f"{kind}: the same features"
        return f"{kind}: read"


def other_tensors(tensors: dict[str, Tensor], choose: random.Random) -> dict[str, Tensor]:
    """One tensor is missing, new, of another shape or type, or not finite."""
    name = choose.choice(sorted(tensors))
    one, way = tensors[name], choose.randrange(6)
    if way == 0:
        del tensors[name]
    elif way == 1:
        tensors[f"{name}s"] = one.clone()
    elif way == 2:
        tensors[name] = torch.cat([one, one])
    elif way == 3:
        tensors[name] = one.to(choose.choice([torch.float16, torch.bfloat16, torch.int64, torch.bool]))
    elif way == 4:
        tensors[name] = torch.full_like(one, float(choose.choice(["nan", "inf"])))
    else:
        tensors[name] = one.flatten()[:0]
    return tensors
