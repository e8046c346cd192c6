"""Language models from disk: whole, quantised, and everything that can be wrong."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, ViTConfig, ViTModel

from vivid_monai.errors import VividError
from vivid_monai.networks import language
from vivid_monai.networks.language import load_language_model
from vivid_monai.networks.teacher import ShortSlotTeacher


@pytest.fixture
def folder(tmp_path, make_lm, tokenizer):
    lm = make_lm()
    lm.model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def same(a, b):
    return all(x.equal(y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_a_folder_is_loaded_frozen(folder, make_lm, tokenizer):
    lm = load_language_model(folder)
    assert same(lm, make_lm())
    assert lm.embed_dim == 32
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert lm.tokenizer("Edema").input_ids == tokenizer("Edema").input_ids
    assert lm.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("arch", ["qwen2", "llama", "gpt2"])
def test_the_tokenizer_is_the_one_of_the_file(tmp_path, build_lm, merging_tokenizer, arch):
    lm = build_lm(merging_tokenizer, arch)
    lm.model.save_pretrained(tmp_path)
    merging_tokenizer.save_pretrained(tmp_path)
    loaded = load_language_model(tmp_path).tokenizer
    text = '{\n  "findings": {\n    "Edema": {\n      "state": null'
    assert loaded(text).input_ids == merging_tokenizer(text).input_ids
    assert loaded.eos_token_id == merging_tokenizer.eos_token_id


@pytest.mark.real_data
def test_a_tokenizer_of_vocabulary_and_merges(tmp_path, real_data, make_lm):
    shutil.copytree(real_data / "qwen2_tokenizer", tmp_path / "lm")
    config = json.loads((tmp_path / "lm" / "config.json").read_text())
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny = config | sizes | {"num_key_value_heads": 2, "layer_types": ["full_attention"], "max_window_layers": 1}
    (tmp_path / "lm" / "config.json").chmod(0o644)
    (tmp_path / "lm" / "config.json").write_text(json.dumps(tiny))
    lm = load_language_model(tmp_path / "lm", weights="random")
    assert lm.embed_dim == 16
    assert [lm.tokenizer.decode([i]) for i in lm.tokenizer('": {\n').input_ids] == ['":', " {\n"]


def test_dtype_device_and_attention_are_as_asked(folder):
    lm = load_language_model(str(folder), dtype="bfloat16", device="cpu", attn_implementation="eager")
    assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16}
    assert lm.device == torch.device("cpu")
    assert lm.model.config._attn_implementation == "eager"


def test_random_weights_follow_their_seed_and_leave_the_global_one(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (load_language_model(folder, weights="random", seed=seed) for seed in (1, 1, 2))
    assert torch.rand(3).equal(expected)
    assert same(first, again)
    assert not same(first, other)
    pretrained = load_language_model(folder)
    assert not same(first, pretrained)
    assert [p.shape for p in first.model.parameters()] == [p.shape for p in pretrained.model.parameters()]


def test_random_weights_need_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert load_language_model(folder, weights="random").embed_dim == 32
    with pytest.raises(VividError, match=r"model\.safetensors"):
        load_language_model(folder)


def test_missing_weights_are_named_not_invented(folder, make_lm):
    state = make_lm().model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, state_dict=state)
    with pytest.raises(VividError, match=r"lacks weights: model\.layers\.1\.mlp\.up_proj\.weight \(1 in all\)"):
        load_language_model(folder)


def test_a_truncated_file_is_one_clear_error(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(VividError, match=str(folder)):
        load_language_model(folder)


def test_weights_of_another_size_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(VividError, match=str(folder)):
        load_language_model(folder)


def bert(path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=50, **sizes)).save_pretrained(path)


def vit(path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=32, **sizes)).save_pretrained(path)


def nameless(path):
    path.mkdir()
    (path / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (bert, "bert model .* is not a causal LM"),
        (vit, "vit model .* is not a causal LM"),
        (nameless, "cannot be read as a causal LM"),
        (lambda path: path.mkdir(), r"not a folder with a config\.json"),
        (lambda path: path.write_text("weights"), r"not a folder with a config\.json"),
    ],
    ids=["bert", "vit", "config of nothing", "empty folder", "a file"],
)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_what_is_not_a_causal_lm_is_refused(tmp_path, make, complaint, weights):
    make(tmp_path / "it")
    with pytest.raises(VividError, match=complaint) as caught:
        load_language_model(tmp_path / "it", weights=weights)
    assert str(tmp_path / "it") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_in_the_folder_is_never_run(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(VividError, match="cannot be read as a causal LM"):
        load_language_model(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("offline")
def test_a_name_that_cannot_be_had_says_what_to_download_and_where():
    with pytest.raises(VividError, match=r"hf download Qwen/Qwen2\.5-1.5B-Instruct --local-dir FOLDER") as caught:
        load_language_model("Qwen/Qwen2.5-1.5B-Instruct")
    assert "give its path instead" in str(caught.value)


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such-folder", "a/b/c"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(path):
    with pytest.raises(VividError, match=rf"no such folder; give .* --out {path}$"):
        load_language_model(path)


@pytest.mark.parametrize(
    "wrong",
    [{"weights": "half"}, {"dtype": "int8"}, {"attn_implementation": "flash_attention_2"}, {"device": "gpu"}],
    ids=str,
)
def test_wrong_settings_are_refused(folder, wrong):
    with pytest.raises(VividError, match=next(iter(wrong))):
        load_language_model(folder, **wrong)


FIELDS = ("Edema", "Pleural Effusion")
WIDTH = 64


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory, build_lm, tokenizer) -> Path:
    path = tmp_path_factory.mktemp("lm")
    sizes = {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 2, "initializer_range": 0.05}
    build_lm(tokenizer, **sizes).model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def asked(folder: Path, **how) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of every field, and its gradient."""
    embeddings = torch.randn(3, 2, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    teacher = ShortSlotTeacher(load_language_model(folder, **how), FIELDS)
    states = torch.tensor([[0, 1], [2, 0], [1, 1]])
    nll = teacher(embeddings, states, states >= 0).nll
    (gradient,) = torch.autograd.grad(nll.sum(), embeddings)
    return nll.detach(), gradient


@pytest.mark.parametrize(("bits", "loss", "angle"), [(8, 0.02, 0.999), (4, 0.05, 0.95)])
def test_it_says_almost_what_the_whole_one_says(wide_folder, bits, loss, angle):
    pytest.importorskip("bitsandbytes")
    exact, whole = asked(wide_folder)
    rough, gradient = asked(wide_folder, bits=bits)
    assert not rough.equal(exact)
    torch.testing.assert_close(rough, exact, atol=loss, rtol=0)
    assert torch.cosine_similarity(gradient.flatten(), whole.flatten(), dim=0) > angle


@pytest.mark.parametrize(("bits", "fewer"), [(8, 2), (4, 4)])
def test_its_layers_take_less_memory(wide_folder, bits, fewer):
    pytest.importorskip("bitsandbytes")
    layers = [load_language_model(wide_folder, **how).model.model.layers for how in ({}, {"bits": bits})]
    whole, packed = (sum(p.numel() * p.element_size() for p in part.parameters()) for part in layers)
    assert packed < whole / fewer


def test_what_cannot_be_is_refused(wide_folder, monkeypatch):
    with pytest.raises(VividError, match="bits must be 8, 4 or null, got 3"):
        load_language_model(wide_folder, bits=3)
    with pytest.raises(VividError, match="pretrained weights"):
        load_language_model(wide_folder, weights="random", bits=8)
    monkeypatch.setattr(language.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VividError, match=r"needs bitsandbytes and accelerate: pip install .*quantized"):
        load_language_model(wide_folder, bits=8)


def test_one_process_cannot_share_a_teacher(wide_folder):
    with pytest.raises(VividError, match="torchrun"):
        load_language_model(wide_folder, shard=True)
