from unittest.mock import patch

import pytest
import torch

from tests.tolerance import close
from vivid_monai.errors import VividError
from vivid_monai.networks.teacher import SlotTeacher, slots
from vivid_monai.networks.teacher.slots import branch_logits
from vivid_monai.networks.teacher.text import schema_text
from vivid_monai.ums.states import NULL

pytestmark = pytest.mark.numeric
CLOSE = close(depth=2, scale=10)

FIELDS = ("Edema", "Pleural Effusion", "Support Devices")
STATES = torch.tensor([[1, 2, 0], [0, NULL, 1], [2, 2, 2]])
ASKED = torch.tensor([[True, True, True], [True, True, False], [False, True, False]])


def gradient(output, embeddings):
    return torch.autograd.grad(output.nll.sum(), embeddings, retain_graph=True)[0]


class Uncached(SlotTeacher):
    """Reads the schema anew with every batch."""

    def forward(self, embeddings, states, asked):
        def logits(lm, context, *args, past, **kwargs):
            schema = lm.embed(self.schema_ids).expand(len(context), -1, -1)
            return branch_logits(lm, torch.cat([schema, context], 1), *args, **kwargs)

        with patch.object(slots, "branch_logits", logits):
            return super().forward(embeddings, states, asked)


def test_the_cached_schema_changes_nothing(lm, embeddings):
    cached, plain = SlotTeacher(lm, FIELDS), Uncached(lm, FIELDS)
    expected = plain(embeddings, STATES, ASKED)
    for _ in range(2):  # the second time from the cache
        output = cached(embeddings, STATES, ASKED)
        torch.testing.assert_close(output.nll, expected.nll, **CLOSE)
        torch.testing.assert_close(output.log_probs, expected.log_probs, **CLOSE, equal_nan=True)
        grads = gradient(output, embeddings), gradient(expected, embeddings)
        torch.testing.assert_close(*grads, **CLOSE)
        assert grads[0].abs().amax() > 1e-4


def test_the_schema_is_computed_once_and_anew_when_weights_move(make_lm, embeddings):
    lm, computed = make_lm(), []
    keys_values = lm.keys_values
    lm.keys_values = lambda ids: (computed.append(ids), keys_values(ids))[1]
    teacher = SlotTeacher(lm, FIELDS)
    before = teacher(embeddings, STATES, ASKED).nll
    teacher(embeddings[:2], STATES[:2], ASKED[:2])
    assert computed == [lm.tokenizer(schema_text(FIELDS)).input_ids]
    teacher.to(torch.bfloat16)
    in_bfloat16 = teacher(embeddings, STATES, ASKED).nll
    teacher.to(torch.float32)
    teacher(embeddings, STATES, ASKED)
    assert len(computed) == 3
    assert not in_bfloat16.equal(before)
    torch.testing.assert_close(in_bfloat16, before, rtol=0.1, atol=0.1)


def test_under_autocast_cached_equals_uncached(make_lm, embeddings):
    cached, plain = SlotTeacher(make_lm(), FIELDS), Uncached(make_lm(), FIELDS)
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = cached(embeddings, STATES, ASKED), plain(embeddings, STATES, ASKED)
    torch.testing.assert_close(output.nll, expected.nll, rtol=0.05, atol=0.05)
    assert output.nll.dtype == torch.float32
    assert not output.nll.equal(plain(embeddings, STATES, ASKED).nll)
    exact = SlotTeacher(make_lm(), FIELDS)(embeddings, STATES, ASKED).nll  # knows no keys of lower precision
    assert cached(embeddings, STATES, ASKED).nll.equal(exact)


def test_a_schema_cached_in_inference_mode_serves_training(make_lm, embeddings):
    teacher = SlotTeacher(make_lm(), FIELDS)
    with torch.inference_mode():
        teacher(embeddings, STATES, ASKED)
    assert gradient(teacher(embeddings, STATES, ASKED), embeddings).abs().amax() > 0


def test_permuting_the_fields_permutes_the_losses(lm, embeddings):
    teacher = SlotTeacher(lm, FIELDS)
    expected = teacher(embeddings, STATES, ASKED)
    order = [2, 0, 1]
    permuted = SlotTeacher(lm, [FIELDS[index] for index in order])
    output = permuted(embeddings, STATES[:, order], ASKED[:, order])
    torch.testing.assert_close(output.nll, expected.nll[:, order], **CLOSE)
    torch.testing.assert_close(output.log_probs, expected.log_probs[:, order], **CLOSE, equal_nan=True)
    torch.testing.assert_close(gradient(output, embeddings), gradient(expected, embeddings), **CLOSE)


def test_a_field_is_what_it_is_when_asked_alone(lm, embeddings):
    teacher = SlotTeacher(lm, FIELDS)
    together = teacher(embeddings, STATES, ASKED)
    for row, field in ASKED.nonzero().tolist():
        only = torch.zeros(1, 3, dtype=torch.bool).index_fill(1, torch.tensor([field]), True)
        alone = teacher(embeddings[[row]], STATES[[row]], only)
        torch.testing.assert_close(alone.nll[0, field], together.nll[row, field], **CLOSE)
        torch.testing.assert_close(alone.log_probs[0, field], together.log_probs[row, field], **CLOSE)


def test_a_model_with_bos_reads_it_before_the_schema(bos_lm, embeddings, token_nll):
    schema, slot = (
        bos_lm.tokenizer(text, add_special_tokens=False).input_ids for text in (schema_text(FIELDS), "\nEdema: present")
    )
    nll = token_nll(bos_lm, embeddings[0], slot, [bos_lm.tokenizer.bos_token_id, *schema])[-1]
    output = SlotTeacher(bos_lm, FIELDS)(embeddings, STATES, ASKED)
    torch.testing.assert_close(output.nll[0, 0], nll, **CLOSE)


def test_loss_is_on_every_token_of_the_state_word(make_lm, embeddings):
    lm = make_lm()
    output = SlotTeacher(lm, FIELDS)(embeddings, STATES, ASKED)
    length = len(lm.tokenizer(" uncertain").input_ids)
    assert length > 1
    assert output.count.tolist() == [[1, length, 1], [1, 0, 0], [0, length, 0]]


def test_a_sequence_too_long_for_the_model_is_never_cut(build_lm, tokenizer, embeddings):
    slot = tokenizer("\nPleural Effusion: uncertain").input_ids[:-1]  # the last token is only predicted
    needed = len(tokenizer(schema_text(FIELDS)).input_ids) + embeddings.shape[1] + len(slot)
    fits = SlotTeacher(build_lm(tokenizer, "gpt2", n_positions=needed), FIELDS)
    assert fits(embeddings, STATES, ASKED).nll.isfinite().all()
    short = SlotTeacher(build_lm(tokenizer, "gpt2", n_positions=needed - 1), FIELDS)
    with pytest.raises(VividError, match=f"needs {needed} positions but max_position_embeddings is {needed - 1}"):
        short(embeddings, STATES, ASKED)


def test_a_sliding_window_that_the_mask_would_replace_is_refused(build_lm, tokenizer, embeddings):
    more = {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 0}
    teacher = SlotTeacher(build_lm(tokenizer, "qwen2", **more), FIELDS)
    with pytest.raises(VividError, match="sliding_window is 40"):
        teacher(embeddings, STATES, ASKED)


def test_states_that_cannot_be_told_apart_are_refused(build_lm, merging_tokenizer):
    with pytest.raises(VividError, match="does not tell the states apart"):
        SlotTeacher(build_lm(merging_tokenizer), FIELDS)


def test_choosing_from_the_states_is_the_vocabularys_choice_with_all_other_words_set_aside(lm, embeddings):
    every, few = SlotTeacher(lm, FIELDS).eval(), SlotTeacher(lm, FIELDS, choose_from="states").eval()
    output, expected = few(embeddings, STATES, ASKED), every(embeddings, STATES, ASKED).log_probs
    torch.testing.assert_close(output.log_probs, expected, **CLOSE, equal_nan=True)
    answered = ASKED & (STATES != NULL)
    chosen = -expected.gather(2, STATES.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(output.nll, chosen.masked_fill(~answered, 0), **CLOSE)
    assert output.count.equal(answered.long())
    assert few.count(STATES, ASKED).equal(answered.sum(1))
    assert gradient(output, embeddings).abs().amax() > 1e-4


def test_only_the_states_rows_of_the_head_are_computed(make_lm, embeddings):
    lm = make_lm()
    shapes = []
    logits = lm.logits
    lm.logits = lambda *args, **more: (shapes.append((out := logits(*args, **more)).shape), out)[1]
    SlotTeacher(lm, FIELDS, choose_from="states")(embeddings, STATES, ASKED)
    SlotTeacher(lm, FIELDS)(embeddings, STATES, ASKED)
    assert shapes[0] == (ASKED.sum(), 3)
    assert shapes[1][1] == len(lm.tokenizer)


def test_what_to_choose_from_is_one_of_two(make_lm):
    with pytest.raises(VividError, match="choose_from must be vocabulary or states, got 'all'"):
        SlotTeacher(make_lm(), FIELDS, choose_from="all")
