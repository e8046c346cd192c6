import json
import sys

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    MambaConfig,
)

from tests.tolerance import close
from vivid_monai.errors import VividError
from vivid_monai.networks.language import LanguageModel, add_adapters, load_language_model
from vivid_monai.networks.teacher import PublishedTeacher, ShortSlotTeacher, SlotTeacher
from vivid_monai.networks.teacher.text import PROMPT

pytestmark = pytest.mark.numeric

FIELDS = ("Edema", "Pleural Effusion")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.fixture(params=[SlotTeacher, PublishedTeacher])
def teacher(request, make_lm):
    return request.param(make_lm(), FIELDS)


class Student(nn.Module):
    """What a pretrainer is to its teacher."""

    def __init__(self, teacher):
        super().__init__()
        self.projector = nn.Linear(8, teacher.embed_dim)
        self.teacher = teacher


def test_the_lm_is_in_neither_parameters_nor_checkpoint_nor_buffers(teacher):
    student = Student(teacher)
    assert [name for name, _ in student.named_parameters()] == ["projector.weight", "projector.bias"]
    assert list(student.state_dict()) == ["projector.weight", "projector.bias"]
    assert not list(student.buffers())
    student.load_state_dict(student.state_dict(), strict=True)


def test_the_lm_moves_and_casts_with_its_owner(teacher):
    student = Student(teacher)
    student.to(torch.bfloat16)
    assert teacher.lm.dtype == torch.bfloat16
    assert {p.dtype for p in teacher.lm.model.parameters()} == {torch.bfloat16}
    student.to("meta")
    assert teacher.lm.device.type == "meta"


def test_training_leaves_the_lm_in_eval_mode_and_without_gradients(teacher, embeddings):
    student = Student(teacher).train()
    student.requires_grad_(True)
    states = torch.tensor([[0, 1]] * 3)
    teacher(embeddings, states, states >= 0).nll.sum().backward()
    assert teacher.training
    assert not any(module.training for module in teacher.lm.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.lm.model.parameters())
    assert embeddings.grad.abs().amax((1, 2)).gt(0).all()


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        (Gemma2Config(vocab_size=393, final_logit_softcapping=2.0, **SIZES), "eager"),
        (CohereConfig(vocab_size=393, logit_scale=0.5, **{k: v for k, v in SIZES.items() if k != "head_dim"}), "sdpa"),
        (
            GraniteConfig(vocab_size=393, logits_scaling=3.0, **{k: v for k, v in SIZES.items() if k != "head_dim"}),
            "sdpa",
        ),
    ],
    ids=["soft-capped", "scaled up", "scaled down"],
)
@pytest.mark.parametrize("layout", [SlotTeacher, PublishedTeacher])
def test_what_a_model_does_to_its_logits_still_happens(config, attention, layout, tokenizer, embeddings, token_nll):
    torch.manual_seed(0)
    assert len(tokenizer) <= config.vocab_size
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    lm = LanguageModel(model, tokenizer, name="capped")
    teacher = layout(lm, FIELDS[:1])
    states = torch.ones(1, 1, dtype=torch.int64)
    nll = teacher(embeddings[:1], states, states > 0).nll.sum()
    if layout is SlotTeacher:
        expected = token_nll(lm, embeddings[0], tokenizer("\nEdema: present").input_ids, teacher.schema_ids)[-1]
    else:
        text = PROMPT + json.dumps({"findings": {"Edema": {"state": "present"}}}, indent=2)
        expected = token_nll(lm, embeddings[0], [*tokenizer(text).input_ids, lm.eos])
        expected = expected[-int(teacher.count(states, states > 0)) :].sum()
    torch.testing.assert_close(nll, expected, **close(depth=2, scale=10))


def test_only_supervised_positions_reach_the_head(teacher, embeddings):
    rows = []
    hook = teacher.lm.model.lm_head.register_forward_hook(lambda _, args, out: rows.append(tuple(out.shape[:-1])))
    states = torch.tensor([[0, 2]] * 3)
    count = teacher(embeddings, states, states >= 0).count.sum()
    hook.remove()
    assert rows == [(count,)]
    assert not teacher.lm.model.lm_head._forward_pre_hooks


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (
            BertLMHeadModel(
                BertConfig(
                    vocab_size=400,
                    **{
                        k: v
                        for k, v in SIZES.items()
                        if k in ("hidden_size", "num_hidden_layers", "num_attention_heads")
                    },
                )
            ),
            "sees future tokens",
        ),
        (
            AutoModelForCausalLM.from_config(BloomConfig(vocab_size=400, hidden_size=32, n_layer=1, n_head=4)),
            "position_ids",
        ),
        (
            AutoModelForCausalLM.from_config(MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1)),
            "position_ids|4-D",
        ),
    ],
    ids=["bidirectional", "no positions", "recurrent"],
)
def test_a_model_that_cannot_be_a_teacher_is_refused(model, complaint, tokenizer):
    with pytest.raises(VividError, match=complaint):
        LanguageModel(model, tokenizer, name="teacher x")


def test_a_model_that_ignores_the_mask_is_refused(make_lm, tokenizer):
    model = make_lm().model
    forward = model.model.forward
    model.model.forward = lambda *args, attention_mask, **kwargs: forward(*args, **kwargs)
    with pytest.raises(VividError, match="4-D attention mask"):
        LanguageModel(model, tokenizer, name="teacher x")


def test_a_model_that_does_not_run_names_the_other_attention(make_lm, tokenizer):
    model = make_lm().model

    def forward(**kwargs):
        raise ValueError("no softcap here")

    model.model.forward = forward
    with pytest.raises(VividError, match=r"attn_implementation='sdpa' .*: no softcap here"):
        LanguageModel(model, tokenizer, name="teacher x")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_can_be_built_where_gradients_are_off(make_lm, mode):
    lm = make_lm()
    with mode():
        assert LanguageModel(lm.model, lm.tokenizer, name="teacher x").embed_dim == 32


def test_a_tokenizer_of_another_model_is_refused(make_lm, tokenizer):
    lm = make_lm()
    lm.model.resize_token_embeddings(300)
    with pytest.raises(VividError, match=f"{len(tokenizer)} tokens but the model only 300"):
        LanguageModel(lm.model, tokenizer, name="teacher x")


LORA = {"r": 2, "lora_alpha": 8, "lora_dropout": 0.5, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("layout", [ShortSlotTeacher, SlotTeacher, PublishedTeacher])
def test_adapters_are_what_is_trained_saved_and_nothing_else(layout, make_lm, embeddings):
    pytest.importorskip("peft")
    frozen, lm = make_lm(), make_lm()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    add_adapters(lm.model, LORA, name="LM x", seed=3)
    assert torch.rand(3).equal(expected)
    student = Student(layout(LanguageModel(lm.model, lm.tokenizer, name="LM x"), FIELDS))
    teacher = student.teacher
    adapters = {name: p for name, p in student.named_parameters() if not name.startswith("projector")}
    assert len(adapters) == 2 * 2 * 2  # layers, targets, A and B
    assert all("lora_" in name and parameter.requires_grad for name, parameter in adapters.items())
    assert set(adapters) < set(student.state_dict())
    assert sum(p.requires_grad for p in teacher.lm.model.parameters()) == len(adapters)

    states = torch.tensor([[0, 1], [2, -1], [1, 1]])
    arguments = (embeddings, states, torch.ones_like(states, dtype=torch.bool))
    before = layout(frozen, FIELDS)(*arguments).nll
    teacher.eval()
    torch.testing.assert_close(teacher(*arguments).nll, before, **close(depth=2, scale=10))  # B starts at 0
    student.train()
    assert {m.training for name, m in teacher.lm.model.named_modules() if name.endswith("lora_dropout")} == {True}
    assert not teacher.lm.model.training
    student.eval()

    optimizer = torch.optim.SGD(adapters.values(), lr=0.01)
    losses = []
    for _ in range(3):  # texts before the image are read with the adapters of their step
        loss = teacher(*arguments).nll.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    assert all(p.grad is None for name, p in teacher.lm.model.named_parameters() if "lora_" not in name)

    again = make_lm()
    add_adapters(again.model, LORA, name="LM x", seed=4)
    other = Student(layout(LanguageModel(again.model, again.tokenizer, name="LM x"), FIELDS)).eval()
    assert not other.teacher(*arguments).nll.equal(teacher(*arguments).nll)
    other.load_state_dict(student.state_dict())
    assert other.teacher(*arguments).nll.equal(teacher(*arguments).nll)


def test_adapters_come_with_loading_or_are_refused_in_one_line(make_lm, tokenizer, tmp_path, monkeypatch):
    make_lm().model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(VividError, match=r"adapters need peft .*\[adapters\]"):
        load_language_model(tmp_path, adapters=LORA)
    monkeypatch.undo()
    pytest.importorskip("peft")
    assert load_language_model(tmp_path, adapters=LORA).trainable
    assert not load_language_model(tmp_path).trainable
    for wrong in ({"r": 2, "target_modules": ["no_such_layer"]}, {"rank": 2}):
        with pytest.raises(VividError, match="cannot be added"):
            load_language_model(tmp_path, adapters=wrong)
