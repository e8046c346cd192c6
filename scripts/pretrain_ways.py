"""The ways of pretraining that scripts/bench_pretrain.py holds against each other, on architectures of real size."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from vivid_monai.networks.teacher import FrozenLM, PhraseTeacher, PublishedTeacher, SlotTeacher, StateClassifier
from vivid_monai.ums.label_space import load_label_space

LMS = {  # hidden size, MLP width, layers, heads, key-value heads
    "100m": (768, 2048, 12, 12, 12),
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": (1536, 8960, 28, 12, 2),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def ways(lm: FrozenLM, fields: tuple[str, ...]) -> dict[str, tuple[Callable[[], Any], bool]]:
    """Name → what makes its teacher, and whether the ViT's tokens are passed on besides SPD's embeddings."""
    half = lm.model.config.num_hidden_layers // 2
    return {
        "published": (lambda: PublishedTeacher(lm, fields), True),
        "published, SPD only": (lambda: PublishedTeacher(lm, fields), False),
        "slots + patches": (lambda: SlotTeacher(lm, fields), True),
        "slots, schema not cached": (lambda: SlotTeacher(lm, fields, cache_schema=False), False),
        "slots": (lambda: SlotTeacher(lm, fields), False),
        "slots, three words": (lambda: SlotTeacher(lm, fields, choose_from="states"), False),
        f"slots, three words, {half} layers": (lambda: SlotTeacher(cut(lm, half), fields, choose_from="states"), False),
        "phrases": (lambda: PhraseTeacher(lm, fields), False),
        "no LM": (lambda: StateClassifier(fields, 256), False),
    }


def some_fields(n: int) -> tuple[str, ...]:
    """The 12 of CheXpert, and as many made ones as are wanted besides."""
    known = load_label_space("chexpert-12").fields
    return tuple([*known, *(f"Finding number {i}" for i in range(len(known), n))][:n])


def build_lm(args: argparse.Namespace) -> FrozenLM:
    hidden, width, layers, heads, key_value_heads = LMS[args.lm]
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, local_files_only=True)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[args.dtype], attn_implementation="sdpa")
    return FrozenLM(model, tokenizer, name=args.lm)


def cut(lm: FrozenLM, layers: int) -> FrozenLM:
    """The same LM with its first layers only; the weights are shared."""
    config = Qwen2Config.from_dict({**lm.model.config.to_dict(), "num_hidden_layers": layers, "layer_types": None})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=lm.dtype, attn_implementation="sdpa")
    model.model.layers = lm.model.model.layers[:layers]
    model.model.embed_tokens, model.model.norm = lm.model.model.embed_tokens, lm.model.model.norm
    model.model.rotary_emb, model.lm_head = lm.model.model.rotary_emb, lm.model.lm_head
    return FrozenLM(model, lm.tokenizer, name=f"{lm.name}, {layers} layers")
