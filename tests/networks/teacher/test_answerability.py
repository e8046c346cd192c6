"""What is not asked or cannot be answered leaves no trace, in any layout."""

import pytest
import torch

from tests.tolerance import close
from vivid_monai.networks.teacher import PublishedTeacher, SlotTeacher, StateClassifier
from vivid_monai.ums.states import NULL

pytestmark = pytest.mark.numeric
CLOSE = close(depth=2, scale=10)

FIELDS = ("Edema", "Pleural Effusion", "Support Devices")
LM_TEACHERS = {"published": PublishedTeacher, "slots": SlotTeacher}


@pytest.fixture(params=["published", "slots", "none"])
def teacher(request, make_lm):
    if request.param == "none":
        return StateClassifier(FIELDS, 32).eval()
    return LM_TEACHERS[request.param](make_lm(), FIELDS).eval()


def gradient(output, embeddings):
    return torch.autograd.grad(output.nll.sum(), embeddings, retain_graph=True)[0]


STATES = torch.tensor([[1, NULL, 0], [NULL, 2, 1], [0, 0, NULL]])
ASKED = torch.tensor([[True, True, True], [True, True, False], [True, False, True]])


def test_only_asked_fields_with_a_state_are_scored(teacher, embeddings):
    output = teacher(embeddings, STATES, ASKED)
    answered = ASKED & (STATES != NULL)
    assert output.count[:, :3].bool().equal(answered)
    assert (output.nll[:, :3] > 0).equal(answered)
    assert output.nll[:, :3][~answered].eq(0).all()
    assert output.nll.dtype == torch.float32
    assert output.count.dtype == torch.int64
    assert teacher.count(STATES, ASKED).equal(output.count.sum(1))
    assert teacher.count(STATES, ASKED).dtype == torch.int64


@pytest.mark.parametrize(
    ("states", "asked"),
    [([NULL, NULL, NULL], [True, True, True]), ([1, 2, 0], [False] * 3), ([NULL, 1, NULL], [True, False, True])],
    ids=["all null", "none asked", "null or not asked"],
)
def test_nothing_answerable_gives_exactly_zero_gradient(teacher, embeddings, states, asked):
    states = torch.stack([torch.tensor(states), STATES[0], torch.tensor(states)])
    asked = torch.stack([torch.tensor(asked), ASKED[0], torch.tensor(asked)])
    output = teacher(embeddings, states, asked)
    per_image = gradient(output, embeddings).abs().amax((1, 2))
    assert output.count.sum(1).bool().tolist() == [False, True, False]
    assert per_image[0] == per_image[2] == 0
    assert per_image[1] > 0


def test_a_whole_batch_of_nothing_still_has_a_graph(teacher, embeddings):
    output = teacher(embeddings, torch.full((3, 3), NULL), torch.zeros(3, 3, dtype=torch.bool))
    assert gradient(output, embeddings).eq(0).all()
    assert output.log_probs.isnan().all()


def test_a_field_without_an_answer_gives_zero_gradient_while_others_teach(teacher, embeddings):
    output = teacher(embeddings, STATES, ASKED)
    for field, unanswered in enumerate((~ASKED | (STATES == NULL)).T):
        grad = torch.autograd.grad(output.nll[:, field].sum(), embeddings, retain_graph=True)[0]
        assert grad[unanswered].eq(0).all()
        assert grad[~unanswered].abs().amax((1, 2)).gt(0).all()


def test_the_state_of_a_field_not_asked_changes_nothing(teacher, embeddings):
    before = teacher(embeddings, STATES, ASKED)
    for state in (NULL, 0, 1, 2):
        after = teacher(embeddings, STATES.masked_fill(~ASKED, state), ASKED)
        assert after.nll.equal(before.nll)
        assert after.count.equal(before.count)
        torch.testing.assert_close(after.log_probs, before.log_probs, rtol=0, atol=0, equal_nan=True)
        assert gradient(after, embeddings).equal(gradient(before, embeddings))


def test_log_probs_know_no_true_state(teacher, embeddings):
    asked = torch.ones(3, 3, dtype=torch.bool)
    unknown = teacher(embeddings, torch.full((3, 3), NULL), asked).log_probs
    assert not unknown.requires_grad
    torch.testing.assert_close(unknown.exp().sum(-1), torch.ones(3, 3))
    for states in (STATES, STATES.flip(0), STATES.flip(1), torch.full((3, 3), 2)):
        torch.testing.assert_close(teacher(embeddings, states, asked).log_probs, unknown, **CLOSE)


def test_log_probs_do_not_depend_on_what_else_is_asked(teacher, embeddings):
    everything = teacher(embeddings, STATES, torch.ones(3, 3, dtype=torch.bool)).log_probs
    for field in range(3):
        asked = torch.zeros(3, 3, dtype=torch.bool).index_fill(1, torch.tensor([field]), True)
        alone = teacher(embeddings, STATES, asked).log_probs
        torch.testing.assert_close(alone[:, field], everything[:, field], **CLOSE)
        assert alone.isnan().any(-1).equal(~asked)


def test_log_probs_depend_on_the_image(teacher, embeddings):
    if isinstance(teacher, StateClassifier):
        teacher.weight.data.normal_()
    asked = torch.ones(3, 3, dtype=torch.bool)
    first, second, _ = teacher(embeddings, STATES, asked).log_probs
    assert (first - second).abs().amin() > 1e-4


def test_without_gradients(teacher, embeddings):
    expected = teacher(embeddings, STATES, ASKED)
    with torch.no_grad():
        output = teacher(embeddings, STATES, ASKED)
    assert not output.nll.requires_grad
    torch.testing.assert_close(output.nll, expected.nll.detach())


@pytest.mark.parametrize("layout", LM_TEACHERS.values())
def test_in_bfloat16(layout, make_lm, embeddings):
    expected = layout(make_lm(), FIELDS).eval()(embeddings, STATES, ASKED)
    teacher = layout(make_lm(dtype=torch.bfloat16), FIELDS).eval()
    output = teacher(embeddings, STATES, ASKED)
    assert output.nll.dtype == output.log_probs.dtype == torch.float32
    assert output.count.equal(expected.count)
    torch.testing.assert_close(output.nll, expected.nll, rtol=0.1, atol=0.1)
    torch.testing.assert_close(output.log_probs, expected.log_probs, rtol=0.2, atol=0.2, equal_nan=True)
    grad = gradient(output, embeddings)
    assert grad.dtype == torch.float32
    cosine = torch.cosine_similarity(grad.flatten(), gradient(expected, embeddings).flatten(), dim=0)
    assert cosine > 0.99
