"""Reading checkpoints from disk, whole and broken."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vivid_monai.errors import VividError
from vivid_monai.networks.checkpoint import read_checkpoint

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}


def test_all_kinds_of_file_hold_the_same_tensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"format": "pt"})
    torch.save(TENSORS, tmp_path / "b.bin")
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "c.pth")
    torch.save({"model": TENSORS}, tmp_path / "d.pt")
    for file in sorted(tmp_path.iterdir()):
        tensors = read_checkpoint(file).tensors
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS), file
    assert read_checkpoint(tmp_path / "a.safetensors").metadata == {"format": "pt"}


def test_a_folder_is_searched_and_its_config_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert read_checkpoint(tmp_path).path.name == "pytorch_model.bin"
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"image_size": 224}')
    file = read_checkpoint(tmp_path)
    assert (file.path.name, file.config) == ("model.safetensors", {"image_size": 224})


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "short.safetensors")
    torch.save(TENSORS, tmp_path / "short.bin")
    for name in ("short.safetensors", "short.bin"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    torch.save(argparse.Namespace(), tmp_path / "code.pth")
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    (tmp_path / "stop.bin").write_bytes(b"\x80\x02.")  # nothing is on the stack where it ends
    (tmp_path / "weights.npz").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    messages = {
        "short.safetensors": "no whole safetensors",
        "short.bin": "broken or pickles code",
        "code.pth": "broken or pickles code",
        "mixed.pth": "'epoch' is no tensor",
        "list.pth": "holds a list",
        "stop.bin": "broken or pickles code",
        "weights.npz": "read from .safetensors",
        "empty": "holds none of",
        "gone.bin": "no such file",
    }
    for name, message in messages.items():
        with pytest.raises(VividError, match=message) as caught:
            read_checkpoint(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(VividError, match=r"config\.json: is no JSON"):
        read_checkpoint(tmp_path)
