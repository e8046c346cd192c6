"""The ways of pretraining that scripts/bench_pretrain.py holds against each other, on architectures of real size."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen2Config

from vivid_monai.networks.language import LanguageModel
from vivid_monai.networks.teacher import (
    PhraseTeacher,
    PublishedTeacher,
    ShortSlotTeacher,
    SlotTeacher,
    StateClassifier,
)
from vivid_monai.ums.label_space import load_label_space

LMS = {  # hidden size, MLP width, layers, heads, key-value heads, vocabulary
    "tiny": (64, 128, 2, 4, 2, 1_024),
    "100m": (768, 2048, 12, 12, 12, 151_936),
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2, 151_936),
    "qwen2.5-1.5b": (1536, 8960, 28, 12, 2, 151_936),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class WholeHead(LanguageModel):
    """An LM that computes the logits of every position, as a training loop without care for it does."""

    def logits(self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, at: Any, **_: Any) -> Tensor:
        inputs = {"inputs_embeds": inputs_embeds.to(self.dtype), "attention_mask": attention_mask}
        return self.model(**inputs, position_ids=position_ids, use_cache=False).logits[at].float()


class Way(NamedTuple):
    """One way of pretraining.

    Attributes:
        teacher: makes the teacher.
        patches: whether the ViT's tokens are passed on besides SPD's embeddings.
        every_field: whether fields that are not asked stand in the answer too, as null, as in the published code.
    """

    teacher: Callable[[], Any]
    patches: bool = False
    every_field: bool = False


def ways(lm: LanguageModel, fields: tuple[str, ...]) -> dict[str, Way]:
    """The ways by name, the baseline first."""
    whole = WholeHead(cast(PreTrainedModel, lm.model), lm.tokenizer, name=lm.name)
    half = lm.model.config.num_hidden_layers // 2
    return {
        "published": Way(lambda: PublishedTeacher(whole, fields), patches=True, every_field=True),
        "published, head where supervised": Way(lambda: PublishedTeacher(lm, fields), patches=True, every_field=True),
        "published, asked fields": Way(lambda: PublishedTeacher(lm, fields), patches=True),
        "published, asked fields, SPD only": Way(lambda: PublishedTeacher(lm, fields)),
        "slots + patches": Way(lambda: SlotTeacher(lm, fields), patches=True),
        "slots": Way(lambda: SlotTeacher(lm, fields)),
        "slots, three words": Way(lambda: SlotTeacher(lm, fields, choose_from="states")),
        "short slots": Way(lambda: ShortSlotTeacher(lm, fields)),
        f"short slots, {half} layers": Way(lambda: ShortSlotTeacher(cut(lm, half), fields)),
        "phrases": Way(lambda: PhraseTeacher(lm, fields)),
        "no LM": Way(lambda: StateClassifier(fields, 256)),
    }


def some_fields(n: int) -> tuple[str, ...]:
    """The 12 of CheXpert, and as many made ones as are wanted besides."""
    known = load_label_space("chexpert-12").fields
    return tuple([*known, *(f"Finding number {i}" for i in range(len(known), n))][:n])


def build_lm(args: argparse.Namespace) -> LanguageModel:
    hidden, width, layers, heads, key_value_heads, vocabulary = LMS[args.lm]
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, local_files_only=True)
    config = Qwen2Config(
        vocab_size=max(vocabulary, len(tokenizer)),
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
    return LanguageModel(model, tokenizer, name=args.lm)


def cut(lm: LanguageModel, layers: int) -> LanguageModel:
    """The same LM with its first layers only; the weights are shared."""
    config = Qwen2Config.from_dict({**lm.model.config.to_dict(), "num_hidden_layers": layers, "layer_types": None})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=lm.dtype, attn_implementation="sdpa")
    model.model.layers = lm.model.model.layers[:layers]
    model.model.embed_tokens, model.model.norm = lm.model.model.embed_tokens, lm.model.model.norm
    model.model.rotary_emb, model.lm_head = lm.model.model.rotary_emb, lm.model.lm_head
    return LanguageModel(model, lm.tokenizer, name=f"{lm.name}, {layers} layers")
