"""Modules as files: round trips, files of earlier versions, and everything that can be wrong with one."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vivid_monai.errors import VividError
from vivid_monai.networks.classifier import BACKBONES
from vivid_monai.networks.modules import KEY, fingerprint, load_module, save_module
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT
from vivid_monai.networks.weights import load_vit_weights

pytestmark = pytest.mark.numeric

PREPROCESS = {"size": 32, "channels": 1, "mean": [0.5], "std": [0.25]}
ALLOWED = {**BACKBONES, "spd": SPD, "probe": nn.Linear}


@pytest.fixture
def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=(32, 48), preset="micro", drop_path=0.1, norm_eps=1e-12)


@pytest.fixture
def spd() -> SPD:
    torch.manual_seed(0)
    return SPD(16, groups=3, queries=5, heads=2, dropout=0.25)


@pytest.fixture
def file(vit: ViT, tmp_path: Path) -> Path:
    path = tmp_path / "pretrained_vit.safetensors"
    save_module(vit, path, kind="vit", preprocess=PREPROCESS, fields=["edema", "fracture"], extra={"seed": 3})
    return path


def rewrite(file: Path, tensors: dict[str, torch.Tensor | None] | None = None, **changed: Any) -> None:
    """The same file with other parts or tensors; None takes one away."""
    with safe_open(file, framework="pt") as content:
        stored = json.loads(content.metadata()[KEY]) | changed
    kept = {name: tensor for name, tensor in (load_file(file) | (tensors or {})).items() if tensor is not None}
    save_file(kept, file, {KEY: json.dumps({name: value for name, value in stored.items() if value is not None})})


def test_round_trip_of_an_encoder(vit: ViT, file: Path) -> None:
    saved = load_module(file, ALLOWED)
    image = torch.rand(2, 1, 32, 48)
    assert torch.equal(saved.module.eval()(image), vit.eval()(image))
    assert saved.module.config == vit.config
    assert (saved.preprocess, saved.fields, saved.extra) == (PREPROCESS, ("edema", "fracture"), {"seed": 3})
    assert fingerprint(saved.module) == fingerprint(vit)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    before = file.read_bytes()
    save_module(vit, file, kind="vit", preprocess=PREPROCESS, fields=["edema", "fracture"], extra={"seed": 3})
    assert file.read_bytes() == before


def test_round_trip_of_spd(spd: SPD, tmp_path: Path) -> None:
    save_module(spd, tmp_path / "new" / "spd.safetensors", kind="spd", extra={"encoder": "ab"})
    before = torch.random.get_rng_state()
    saved = load_module(tmp_path / "new" / "spd.safetensors", ALLOWED)
    assert torch.equal(torch.random.get_rng_state(), before)
    tokens = torch.rand(2, 7, 16)
    for mine, theirs in zip(spd.eval()(tokens), saved.module.eval()(tokens), strict=True):
        assert torch.equal(mine, theirs)
    assert (saved.module.config, saved.preprocess, saved.fields) == (spd.config, None, None)
    assert saved.extra == {"encoder": "ab"}
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in saved.module.parameters())


def test_an_encoder_is_one_file_with_its_read_out(vit: ViT, spd: SPD, tmp_path: Path) -> None:
    save_module(vit, tmp_path / "plain.safetensors", kind="vit")
    save_module(vit, tmp_path / "read.safetensors", kind="vit", spd=spd, pool="spd")
    plain, saved = (load_module(tmp_path / f"{name}.safetensors", ALLOWED) for name in ("plain", "read"))
    assert (plain.spd, plain.pool, saved.pool) == (None, None, "spd")
    assert fingerprint(plain.module) == fingerprint(saved.module) == fingerprint(vit)
    assert saved.spd is not None
    assert fingerprint(saved.spd) == fingerprint(spd)
    torch.manual_seed(3)
    fresh = load_module(tmp_path / "read.safetensors", ALLOWED, pretrained=False).spd
    torch.manual_seed(3)
    ViT(**vit.config)
    assert fresh is not None
    assert fingerprint(fresh) == fingerprint(SPD(**spd.config)), "drawn anew, after the encoder"
    content = safe_open(tmp_path / "read.safetensors", "pt")
    tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    del tensors["spd.queries"]
    save_file(tensors, tmp_path / "less.safetensors", content.metadata())
    with pytest.raises(VividError, match=r"its tensors are not those of its configuration: spd\.queries is missing"):
        load_module(tmp_path / "less.safetensors", ALLOWED)


def test_precision_is_kept_but_halves_widen(tmp_path: Path) -> None:
    for dtype, expected in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        save_module(SPD(16).to(dtype), tmp_path / "spd.safetensors", kind="spd")
        assert load_module(tmp_path / "spd.safetensors", ALLOWED).module.queries.dtype == expected


def test_fresh_weights_come_from_the_global_random_state(vit: ViT, file: Path) -> None:
    torch.manual_seed(0)
    fresh = load_module(file, ALLOWED, pretrained=False).module
    assert fingerprint(fresh) == fingerprint(vit)
    assert fingerprint(load_module(file, ALLOWED, pretrained=False).module) != fingerprint(vit)


def test_fingerprints_change_with_every_tensor_and_setting(spd: SPD) -> None:
    prints = [fingerprint(spd), fingerprint(spd, {"a": 1}), fingerprint(spd.double())]
    with torch.no_grad():
        spd.out_bias[1, 0, 3] += 1e-6
    prints.append(fingerprint(spd))
    assert len(set(prints)) == 4


class Statistics(nn.Module):
    """Stands for the out-of-distribution statistics."""

    def __init__(self, *, dim: int, limit: float, accepted: float, n_images: int, n_patients: int) -> None:
        super().__init__()
        self.register_buffer("location", torch.empty(dim))
        self.register_buffer("whitening", torch.empty(dim, dim))


def write_version_1(kind: str, path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A file as the package wrote it up to 595e86b; what it holds."""
    if kind == "vit":
        vit = ViT(img_size=32, preset="micro")
        metadata = {"preprocess": PREPROCESS, "fields": None, "extra": {}, "config": vit.config}
        said, module, extra = {k: json.dumps(v) for k, v in metadata.items()}, vit, {}
    elif kind == "spd":
        module, extra = SPD(16, groups=3), {}
        said = {"config": json.dumps(module.config)}
    elif kind == "probe":
        module = nn.Linear(5, 2).double()
        extra = {"encoder": "ab", "exclusive": False, "untrained": [], "description": {"kind": "linear"}}
        said = {k: json.dumps(v) for k, v in {"fields": ["a", "b"], **extra}.items()}
    else:
        settings = {"limit": 2.0, "accepted": 0.99, "n_images": 50, "n_patients": 40}
        module, extra = Statistics(dim=3, **settings).double(), {}
        said = {"vivid-assessment": json.dumps({"version": 1, **settings})}
    if kind != "assessment":
        said |= {"format": f"vivid-{kind}", "version": "1"}
    save_file(dict(module.state_dict()), path, said)
    return module, extra


@pytest.mark.parametrize("kind", ["vit", "spd", "probe", "assessment"])
def test_files_of_version_1_are_read(kind: str, tmp_path: Path) -> None:
    module, extra = write_version_1(kind, tmp_path / "old.safetensors")
    saved = load_module(tmp_path / "old.safetensors", {**ALLOWED, "assessment": Statistics})
    assert type(saved.module) is type(module)
    assert fingerprint(saved.module, {}) == fingerprint(module, {})
    assert saved.extra == extra
    assert saved.preprocess == (PREPROCESS if kind == "vit" else None)
    assert saved.fields == (("a", "b") if kind == "probe" else None)


def test_other_image_sizes_come_by_interpolation_and_the_same_size_exactly(vit: ViT, file: Path) -> None:
    same = load_vit_weights(ViT(img_size=(32, 48), preset="micro", norm_eps=1e-12), file.parent)
    assert all(torch.equal(same.state_dict()[name], tensor) for name, tensor in vit.state_dict().items())
    larger = load_vit_weights(ViT(img_size=(64, 48), preset="micro", norm_eps=1e-12), file)
    differs = [n for n, t in vit.state_dict().items() if not torch.equal(larger.state_dict()[n], t)]
    differing_shape = [n for n in differs if larger.state_dict()[n].shape != vit.state_dict()[n].shape]
    assert differs == differing_shape == ["patch_embedding.position_embeddings"]
    columns = [v.patch_embedding.position_embeddings.detach().unflatten(1, v.grid).mean(1) for v in (vit, larger)]
    torch.testing.assert_close(columns[0], columns[1], atol=2e-3, rtol=0)  # rows were added, columns left alone


@pytest.mark.parametrize(
    ("other", "message"),
    [({"preset": "tiny"}, "preset='micro', the ViT has 'tiny'"), ({"norm_eps": 1e-6}, "norm_eps=1e-12")],
)
def test_another_architecture_is_refused(file: Path, other: dict, message: str) -> None:
    with pytest.raises(VividError, match=message):
        load_vit_weights(ViT(**{"img_size": (32, 48), "preset": "micro", "norm_eps": 1e-12} | other), file)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "spd"}, "configuration is not one of a spd"),
        ({"kind": "teacher"}, "holds a module of kind 'teacher', not vit or .*probe"),
        ({"kind": None}, "metadata are broken"),
        ({"version": 3}, "version 3"),
        ({"config": None}, "metadata are broken"),
        ({"config": []}, "metadata are broken"),
        ({"fields": "edema"}, "metadata are broken"),
        ({"config": {"layers": 3}}, "configuration is not one of a vit"),
        ({"config": {"preset": "micro", "img_size": 2**35}}, "configuration is not one of a vit"),
        ({"config": {"preset": "micro", "img_size": [[32], [48]]}}, "configuration is not one of a vit"),
        ({"config": {"preset": "tiny"}}, "tensors are not those of its configuration.* and .* more"),
        (
            {"config": {"preset": "micro", "img_size": 64}},
            r"position_embeddings has shape \(1, 6, 128\), not \(1, 16, 128\)",
        ),
        ({"tensors": {"cls_token": None}}, "cls_token is missing"),
        ({"tensors": {"other": torch.zeros(1)}}, "other is unknown"),
        ({"tensors": {"cls_token": torch.zeros(1, 1, 128, dtype=torch.int64)}}, "cls_token is of torch.int64"),
    ],
)
def test_a_file_that_contradicts_itself(file: Path, changed: dict, message: str) -> None:
    rewrite(file, **changed)
    with pytest.raises(VividError, match=message) as caught:
        load_module(file, ALLOWED)
    assert str(file) in str(caught.value)


def test_what_cannot_be_read(file: Path, tmp_path: Path) -> None:
    with pytest.raises(VividError, match="no such file"):
        load_module(tmp_path / "other.safetensors", ALLOWED)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(VividError, match="not written by save_module"):
        load_module(tmp_path / "other.safetensors", ALLOWED)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(VividError, match="no whole safetensors"):
        load_module(file, ALLOWED)


def test_what_cannot_be_saved_leaves_the_old_file(vit: ViT, file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(VividError, match="must be JSON"):
        save_module(vit, file, kind="vit", preprocess={"mean": torch.zeros(1)})
    with pytest.raises(VividError, match="are saved as"):
        save_module(vit, file.with_suffix(".pt"), kind="vit")
    # A limit on the size of files stands in for a full disk: both fail within the write.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(VividError, match=r"cannot be written.*as it was before"):
            save_module(vit, file, kind="vit", preprocess=PREPROCESS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
