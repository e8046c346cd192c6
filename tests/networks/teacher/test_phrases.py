import pytest
import torch

from tests.tolerance import close
from vivid_monai.networks.teacher import PhraseTeacher
from vivid_monai.networks.teacher.text import schema_text
from vivid_monai.ums.states import NULL
from vivid_monai.ums.states import STATES as WORDS

pytestmark = pytest.mark.numeric

FIELDS = ("Edema", "Pleural Effusion", "Support Devices")
STATES = torch.tensor([[1, 2, 0], [0, NULL, 1], [2, 2, 2]])
ASKED = torch.tensor([[True, True, True], [True, True, False], [False, True, False]])


@pytest.fixture
def teacher(make_lm):
    return PhraseTeacher(make_lm(), FIELDS)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def test_phrases_are_what_the_lm_makes_of_each_answer_after_the_schema(lm):
    teacher = PhraseTeacher(lm, FIELDS)
    schema = lm.tokenizer(schema_text(FIELDS)).input_ids
    rows = []
    for field in FIELDS:
        for state in WORDS:
            ids = lm.tokenizer(f"{schema_text(FIELDS)}\n{field}: {state}", return_tensors="pt").input_ids
            with torch.no_grad():
                hidden = lm.model(ids, output_hidden_states=True).hidden_states[-1][0]
            rows.append(hidden[len(schema) :].mean(0))
    phrases = torch.stack(rows).unflatten(0, (3, 3))
    names = phrases.mean(1)
    torch.testing.assert_close(teacher.states, unit(phrases - names[:, None]), **close(depth=2, scale=4))
    torch.testing.assert_close(teacher.names, unit(names - names.mean(0)), **close(depth=2, scale=4))


def test_each_field_attends_and_matches_for_itself(teacher, embeddings):
    teacher.bias.data.normal_()
    output = teacher(embeddings, STATES, ASKED)
    for row, field in ASKED.nonzero().tolist():
        z = unit(embeddings[row])
        attention = torch.softmax(8 * z @ teacher.names[field], 0)
        logits = 8 * teacher.states[field] @ (attention @ z) + teacher.bias[field]
        torch.testing.assert_close(output.log_probs[row, field], logits.log_softmax(0).detach())
        if (state := STATES[row, field]) != NULL:
            torch.testing.assert_close(output.nll[row, field], -logits.log_softmax(0)[state])
    answered = ASKED & (STATES != NULL)
    assert output.count.equal(answered.long())
    assert teacher.count(STATES, ASKED).equal(answered.sum(1))
    assert not output.nll[~answered].any()
    assert output.log_probs[~ASKED].isnan().all()


def test_the_lm_is_not_kept_and_three_things_are_trained(teacher, embeddings):
    assert set(teacher.state_dict()) == {"log_attention", "log_scale", "bias"}
    assert not hasattr(teacher, "lm")
    teacher(embeddings, STATES, ASKED).nll.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in teacher.parameters())
    assert embeddings.grad.abs().amax() > 1e-4


def test_an_unanswerable_field_has_no_gradient(teacher, embeddings):
    states = torch.full_like(STATES, NULL)
    states[0, 0] = 1
    teacher(embeddings, states, ASKED).nll.sum().backward()
    assert not embeddings.grad[1:].any()
    assert embeddings.grad[0].any()
    assert not teacher.bias.grad[1:].any()
