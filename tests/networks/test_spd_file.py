"""SPD's own file: round trip, and everything that can be wrong with it."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vivid_monai.errors import VividError
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.spd_file import load_spd, save_spd


@pytest.fixture
def spd() -> SPD:
    torch.manual_seed(0)
    return SPD(16, groups=3, queries=5, heads=2, dropout=0.25)


@pytest.fixture
def file(spd: SPD, tmp_path: Path) -> Path:
    save_spd(spd, tmp_path / "spd.safetensors")
    return tmp_path / "spd.safetensors"


def rewrite(file: Path, tensors: dict[str, torch.Tensor | None] | None = None, **metadata: str) -> None:
    with safe_open(file, framework="pt") as content:
        stored = content.metadata() | metadata
    kept = {name: tensor for name, tensor in (load_file(file) | (tensors or {})).items() if tensor is not None}
    save_file(kept, file, metadata=stored)


def test_round_trip(spd: SPD, file: Path) -> None:
    before = torch.random.get_rng_state()
    again = load_spd(file)
    assert torch.equal(torch.random.get_rng_state(), before)
    tokens = torch.rand(2, 7, 16)
    for mine, theirs in zip(spd.eval()(tokens), again.eval()(tokens), strict=True):
        assert torch.equal(mine, theirs)
    assert (again.dim, again.head_dim, again.dropout.p) == (16, 8, 0.25)
    assert again.queries.shape == (3, 2, 5, 8)
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in again.parameters())
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_double_precision_is_kept(tmp_path: Path) -> None:
    save_spd(SPD(16).double(), tmp_path / "spd.safetensors")
    assert load_spd(tmp_path / "spd.safetensors").queries.dtype == torch.float64


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "vivid-vit"}, "not written by save_spd"),
        ({"version": "2"}, "version '2'"),
        ({"config": "{"}, "metadata is broken"),
        ({"config": "3"}, "metadata is broken"),
        ({"config": '{"dim": 16, "depth": 3}'}, "settings are not those of an SPD"),
        ({"config": '{"dim": 0}'}, "settings are not those of an SPD"),
        ({"config": '{"dim": 16, "groups": 2, "queries": 5, "heads": 2}'}, r"queries is \(3, 2, 5, 8\), not \(2, 2"),
    ],
)
def test_a_file_that_is_not_ours_or_contradicts_itself(file: Path, metadata: dict, message: str) -> None:
    rewrite(file, **metadata)
    with pytest.raises(VividError, match=message) as caught:
        load_spd(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [({"out_bias": None}, "out_bias is missing"), ({"other": torch.zeros(1)}, r"other is \(1,\), not known")],
)
def test_tensors_are_matched_exactly(file: Path, tensors: dict, message: str) -> None:
    rewrite(file, tensors)
    with pytest.raises(VividError, match=message):
        load_spd(file)


def test_what_cannot_be_read_or_saved(spd: SPD, file: Path, tmp_path: Path) -> None:
    with pytest.raises(VividError, match="no such file"):
        load_spd(tmp_path / "other.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(VividError, match="no whole safetensors"):
        load_spd(file)
    with pytest.raises(VividError, match="Linear cannot be saved"):
        save_spd(torch.nn.Linear(2, 2), file)  # type: ignore[arg-type]
    with pytest.raises(VividError, match="is saved as"):
        save_spd(spd, tmp_path / "spd.pt")
