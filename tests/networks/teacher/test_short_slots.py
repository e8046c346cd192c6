import pytest
import torch

from tests.tolerance import close
from vivid_monai.errors import VividError
from vivid_monai.networks.teacher import ShortSlotTeacher, SlotTeacher
from vivid_monai.networks.teacher.text import read_answers, schema_text, slot_pieces
from vivid_monai.ums.states import NULL
from vivid_monai.ums.states import STATES as WORDS

pytestmark = pytest.mark.numeric
CLOSE = close(depth=2, scale=10)

FIELDS = ("Edema", "Pleural Effusion", "Support Devices")
STATES = torch.tensor([[1, 2, 0], [0, NULL, 1], [2, 2, 2]])
ASKED = torch.tensor([[True, True, True], [True, True, False], [False, True, False]])


def gradient(output, embeddings):
    return torch.autograd.grad(output.nll.sum(), embeddings, retain_graph=True)[0]


def read_one_after_another(lm, embeddings, states, asked):
    """What the layout says, read literally: a sequence of its own for every question, nothing cached, nothing shared.

    The image sees the schema alone, so what it says is read without a name; only its place leaves room for one.
    """
    tokenizer = lm.tokenizer
    schema = lm.bos + tokenizer(schema_text(FIELDS), add_special_tokens=False)["input_ids"]
    answers = [read_answers(tokenizer, {state: slot_pieces(field, state) for state in WORDS}) for field in FIELDS]
    longest = max(len(answer.prefix) - 1 for answer in answers)
    images = embeddings.shape[1]
    nll = torch.zeros(asked.shape)
    for row, field in asked.nonzero().tolist():
        *name, last = answers[field].prefix
        s, n = len(schema), len(name)
        inputs = torch.cat([lm.embed([schema + name]), embeddings[row : row + 1], lm.embed([[last]])], 1)
        length = inputs.shape[1]
        may_see = torch.ones(length, length, dtype=torch.bool).tril()
        may_see[s + n : s + n + images, s : s + n] = False
        mask = torch.zeros(length, length).masked_fill(~may_see, torch.finfo(torch.float32).min)
        position = torch.tensor([*range(s), *range(s + longest - n, s + longest + images + 1)])
        output = lm.model(inputs_embeds=inputs, attention_mask=mask[None, None], position_ids=position[None])
        scores = output.logits[0, -1, [word[0] for word in answers[field].words]].float()
        if states[row, field] != NULL:
            nll[row, field] = -scores.log_softmax(0)[states[row, field]]
    return nll


def test_it_equals_every_question_read_for_itself(lm, embeddings):
    teacher = ShortSlotTeacher(lm, FIELDS)
    expected = read_one_after_another(lm, embeddings, STATES, ASKED)
    wanted = torch.autograd.grad(expected.sum(), embeddings)[0]
    for _ in range(2):  # the second time from the cache
        output = teacher(embeddings, STATES, ASKED)
        torch.testing.assert_close(output.nll, expected, **CLOSE)
        torch.testing.assert_close(gradient(output, embeddings), wanted, **CLOSE)
    assert wanted.abs().amax() > 1e-4
    assert output.count.equal((ASKED & (STATES != NULL)).long())
    assert output.count.sum(1).equal(teacher.count(STATES, ASKED))


def test_log_probs_are_of_the_asked_fields_and_know_no_state(lm, embeddings):
    teacher = ShortSlotTeacher(lm, FIELDS)
    output = teacher(embeddings, STATES, ASKED)
    assert output.log_probs.isnan().all(-1).equal(~ASKED)
    torch.testing.assert_close(output.log_probs[ASKED].exp().sum(-1), torch.ones(int(ASKED.sum())))
    scored = ASKED & (STATES != NULL)
    own = output.log_probs[scored].gather(1, STATES[scored][:, None])[:, 0]
    torch.testing.assert_close(-own, output.nll[scored].detach())
    others = teacher(embeddings, torch.full_like(STATES, NULL), ASKED)
    torch.testing.assert_close(others.log_probs, output.log_probs, equal_nan=True)
    assert not others.count.any()
    assert not others.nll.any()


def test_a_field_is_what_it_is_when_asked_alone(lm, embeddings):
    teacher = ShortSlotTeacher(lm, FIELDS)
    together = teacher(embeddings, STATES, ASKED)
    for field in range(len(FIELDS)):
        only = torch.zeros_like(ASKED)
        only[:, field] = ASKED[:, field]
        alone = teacher(embeddings, STATES, only)
        torch.testing.assert_close(alone.nll[:, field], together.nll[:, field], **CLOSE)


def test_permuting_the_fields_permutes_the_losses(lm, embeddings):
    expected = ShortSlotTeacher(lm, FIELDS)(embeddings, STATES, ASKED)
    order = [2, 0, 1]
    permuted = ShortSlotTeacher(lm, [FIELDS[at] for at in order])(embeddings, STATES[:, order], ASKED[:, order])
    torch.testing.assert_close(permuted.nll, expected.nll[:, order], **CLOSE)
    torch.testing.assert_close(permuted.log_probs, expected.log_probs[:, order], **CLOSE, equal_nan=True)


def test_nothing_asked_costs_nothing(lm, embeddings):
    output = ShortSlotTeacher(lm, FIELDS)(embeddings, STATES, torch.zeros_like(ASKED))
    assert not output.nll.any()
    assert not output.count.any()
    assert output.log_probs.isnan().all()


def test_the_lm_computes_one_position_for_each_embedding_and_each_question(make_lm, embeddings):
    def positions(teacher):
        teacher(embeddings, STATES, ASKED)
        seen = []
        hook = teacher.lm.model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        teacher(embeddings, STATES, ASKED)
        hook.remove()
        return seen

    lm = make_lm()
    assert positions(ShortSlotTeacher(lm, FIELDS)) == [embeddings.shape[1] + len(FIELDS)]
    assert positions(SlotTeacher(lm, FIELDS))[0] > embeddings.shape[1] + 2 * len(FIELDS)


def test_names_are_read_once_and_anew_when_weights_move(make_lm, embeddings):
    lm, computed = make_lm(), []
    keys_values = lm.keys_values
    lm.keys_values = lambda *args, **kwargs: (computed.append(1), keys_values(*args, **kwargs))[1]
    teacher = ShortSlotTeacher(lm, FIELDS)
    before = teacher(embeddings, STATES, ASKED).nll
    teacher(embeddings[:2], STATES[:2], ASKED[:2])
    assert len(computed) == 1
    teacher.to(torch.bfloat16)
    in_bfloat16 = teacher(embeddings, STATES, ASKED).nll
    assert len(computed) == 2
    assert not in_bfloat16.equal(before)
    torch.testing.assert_close(in_bfloat16, before, rtol=0.1, atol=0.1)


def test_too_long_for_the_model_is_told(make_lm, embeddings):
    lm = make_lm()
    lm.model.config.max_position_embeddings = 20
    with pytest.raises(VividError, match="max_position_embeddings is 20"):
        ShortSlotTeacher(lm, FIELDS)(embeddings, STATES, ASKED)
