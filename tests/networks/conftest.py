"""Small causal LMs with random weights, and a byte-level BPE that merges across the borders of pieces."""

import json
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from vivid_monai.networks.language import LanguageModel
from vivid_monai.networks.teacher.text import PROMPT, schema_text
from vivid_monai.ums.states import STATES

FIELDS = ("Enlarged Cardiomediastinum", "Edema", "Pleural Effusion", "Support Devices")
K = 3  # image embeddings


def train_tokenizer(*, split: bool, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE; without GPT-2's splitting (split=False) merges run across words, quotes, braces and lines."""
    words = [*FIELDS, "Pneumothorax", "Lung Opacity"]
    texts = [PROMPT, schema_text(words)]
    for state in (*STATES, None):
        texts += [json.dumps({"findings": {word: {"state": state} for word in words}}, indent=2)]
        texts += [f"\n{word}: {state}" for word in words]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=9,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(split=True, eos_token="<|end|>")


@pytest.fixture(scope="session")
def merging_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(split=False, eos_token="<|end|>")


@pytest.fixture(name="train_tokenizer", scope="session")
def train_tokenizer_fixture() -> Callable[..., PreTrainedTokenizerFast]:
    return train_tokenizer


def config(arch: str, vocab_size: int, **more: object) -> Qwen2Config | LlamaConfig | GPT2Config:
    if arch == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
        return GPT2Config(vocab_size=vocab_size, bos_token_id=None, eos_token_id=None, **(sizes | more))
    kind = {"qwen2": Qwen2Config, "llama": LlamaConfig}[arch]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    return kind(vocab_size=vocab_size, num_attention_heads=4, num_key_value_heads=2, **(sizes | more))


def random_lm(
    tokenizer: PreTrainedTokenizerFast,
    arch: str = "qwen2",
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    **more: object,
) -> LanguageModel:
    torch.manual_seed(0)
    made = config(arch, len(tokenizer), **({"initializer_range": 0.2} | more))
    model = AutoModelForCausalLM.from_config(made, attn_implementation=attention)
    return LanguageModel(model.to(dtype), tokenizer, name=arch)


@pytest.fixture(scope="session")
def build_lm() -> Callable[..., LanguageModel]:
    return random_lm


@pytest.fixture(scope="session")
def make_lm(tokenizer: PreTrainedTokenizerFast) -> Callable[..., LanguageModel]:
    return lambda *args, **kwargs: random_lm(tokenizer, *args, **kwargs)


@pytest.fixture(params=["qwen2-sdpa", "qwen2-eager", "llama-sdpa", "llama-eager", "gpt2-sdpa", "gpt2-eager"])
def lm(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    return random_lm(tokenizer, *request.param.split("-"))


def token_nll(lm: LanguageModel, image: torch.Tensor, ids: list[int], before: list[int] | None = None) -> torch.Tensor:
    """NLL (len(ids),) of a text after one image (K, D), by transformers alone: one row, no padding, no mask.

    The first id is predicted from the last image embedding; `before` is a text that precedes the image.
    """
    embed = lm.model.get_input_embeddings()
    lead = before or []
    inputs = torch.cat([embed(torch.tensor(lead, dtype=torch.int64)), image, embed(torch.tensor(ids))])[None]
    logits = lm.model(inputs_embeds=inputs).logits[0, len(lead) + len(image) - 1 : -1].float()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="none")


@pytest.fixture(name="token_nll", scope="session")
def token_nll_fixture() -> Callable[..., torch.Tensor]:
    return token_nll


@pytest.fixture(scope="session")
def bos_lm() -> LanguageModel:
    """An LM whose tokenizer begins every text with BOS, as Llama's does."""
    tokenizer = train_tokenizer(split=True, eos_token="<|end|>", bos_token="<|start|>")
    special = [("<|start|>", tokenizer.bos_token_id)]
    begin = TemplateProcessing(single="<|start|> $A", special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = begin
    return random_lm(tokenizer)


@pytest.fixture
def embeddings() -> torch.Tensor:
    return torch.randn(3, K, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
