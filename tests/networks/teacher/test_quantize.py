"""A teacher in 8 or 4 bits: close to the whole one, and with a gradient."""

from pathlib import Path

import pytest
import torch

from vivid_monai.errors import VividError
from vivid_monai.networks import language as quantize
from vivid_monai.networks.teacher import ShortSlotTeacher, load_frozen_lm

FIELDS = ("Edema", "Pleural Effusion")
WIDTH = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, build_lm, tokenizer) -> Path:
    path = tmp_path_factory.mktemp("lm")
    sizes = {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 2, "initializer_range": 0.05}
    build_lm(tokenizer, **sizes).model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def asked(folder: Path, **how) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of every field, and its gradient."""
    embeddings = torch.randn(3, 2, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    teacher = ShortSlotTeacher(load_frozen_lm(folder, **how), FIELDS)
    states = torch.tensor([[0, 1], [2, 0], [1, 1]])
    nll = teacher(embeddings, states, states >= 0).nll
    (gradient,) = torch.autograd.grad(nll.sum(), embeddings)
    return nll.detach(), gradient


@pytest.mark.parametrize(("bits", "loss", "angle"), [(8, 0.02, 0.999), (4, 0.05, 0.95)])
def test_it_says_almost_what_the_whole_one_says(folder, bits, loss, angle):
    pytest.importorskip("bitsandbytes")
    exact, whole = asked(folder)
    rough, gradient = asked(folder, bits=bits)
    assert not rough.equal(exact)
    torch.testing.assert_close(rough, exact, atol=loss, rtol=0)
    assert torch.cosine_similarity(gradient.flatten(), whole.flatten(), dim=0) > angle


@pytest.mark.parametrize(("bits", "fewer"), [(8, 2), (4, 4)])
def test_its_layers_take_less_memory(folder, bits, fewer):
    pytest.importorskip("bitsandbytes")
    layers = [load_frozen_lm(folder, **how).model.model.layers for how in ({}, {"bits": bits})]
    whole, packed = (sum(p.numel() * p.element_size() for p in part.parameters()) for part in layers)
    assert packed < whole / fewer


def test_what_cannot_be_is_refused(folder, monkeypatch):
    with pytest.raises(VividError, match="bits must be 8, 4 or null, got 3"):
        load_frozen_lm(folder, bits=3)
    with pytest.raises(VividError, match="pretrained weights"):
        load_frozen_lm(folder, weights="random", bits=8)
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VividError, match=r"needs bitsandbytes and accelerate: pip install .*quantized"):
        load_frozen_lm(folder, bits=8)


def test_one_process_cannot_share_a_teacher(folder):
    with pytest.raises(VividError, match="torchrun"):
        load_frozen_lm(folder, shard=True)
