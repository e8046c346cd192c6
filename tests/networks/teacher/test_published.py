import pytest
import torch

from tests.tolerance import close
from vivid_monai.errors import VividError
from vivid_monai.networks.teacher import PublishedTeacher
from vivid_monai.networks.teacher.text import PROMPT, published_pieces
from vivid_monai.ums.states import STATES as WORDS
from vivid_monai.ums.states import decode

pytestmark = pytest.mark.numeric
CLOSE = close(depth=2, scale=10)

FIELDS = ("Edema", "Pleural Effusion", "Support Devices")
STATES = torch.tensor([[1, 2, 0], [0, 0, 1], [2, 1, 2]])
ASKED = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


def target(row):
    findings = {f: decode(int(s)) for f, s, a in zip(FIELDS, STATES[row], ASKED[row], strict=True) if a}
    return "".join(piece.text for piece in published_pieces(findings))


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
def test_all_answerable_equals_the_loss_of_transformers(lm, embeddings, rows):
    teacher = PublishedTeacher(lm, FIELDS)
    output = teacher(embeddings[rows], STATES[rows], ASKED[rows])
    loss = output.nll.sum() / output.count.sum()
    images, prompt = embeddings.shape[1], lm.tokenizer(PROMPT).input_ids
    texts = [[*lm.tokenizer(PROMPT + target(row)).input_ids, lm.eos] for row in rows]
    assert all(text[: len(prompt)] == prompt for text in texts)
    longest = max(map(len, texts))
    ids, labels, mask = torch.zeros(3, len(rows), images + longest, dtype=torch.int64).unbind(0)
    labels.fill_(-100)
    for number, text in enumerate(texts):  # right padding, which needs no position ids
        ids[number, images : images + len(text)] = torch.tensor(text)
        labels[number, images + len(prompt) : images + len(text)] = torch.tensor(text[len(prompt) :])
        mask[number, : images + len(text)] = 1
    inputs = torch.cat([embeddings[rows], lm.embed(ids)[:, images:]], 1)
    expected = lm.model(inputs_embeds=inputs, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(loss, expected, **CLOSE)
    grads = [torch.autograd.grad(value, embeddings)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads, **CLOSE)
    assert grads[0][rows].abs().amax() > 1e-4


def asked_alone(lm, image, field, bos=()):
    chosen = []
    for word in WORDS:
        entry = f'{PROMPT}{{\n  "findings": {{\n    "{field}": {{\n      "state": "'
        before, ids = (lm.tokenizer(text, add_special_tokens=False).input_ids for text in (entry, entry + word))
        assert ids[: len(before)] == before
        inputs = torch.cat([lm.embed(list(bos)), image, lm.embed(before)])[None]
        chosen.append(lm.model(inputs_embeds=inputs).logits[0, -1, ids[len(before)]])
    return torch.stack(chosen).log_softmax(0).detach()


def test_log_probs_are_those_of_each_field_asked_alone(lm, embeddings):
    log_probs = PublishedTeacher(lm, FIELDS).eval()(embeddings, STATES, ASKED).log_probs
    for row, field in ASKED.nonzero().tolist():
        expected = asked_alone(lm, embeddings[row], FIELDS[field])
        torch.testing.assert_close(log_probs[row, field], expected, **CLOSE)


def test_one_field_is_a_teacher_too(make_lm, embeddings):
    teacher = PublishedTeacher(make_lm(), FIELDS[:1]).eval()
    alone = teacher(embeddings, STATES[:, :1], ASKED[:, :1]).log_probs
    among = PublishedTeacher(make_lm(), FIELDS).eval()(embeddings, STATES, ASKED).log_probs[:, :1]
    torch.testing.assert_close(alone, among, **CLOSE, equal_nan=True)


def test_log_probs_cost_nothing_in_training(make_lm, embeddings):
    teacher = PublishedTeacher(make_lm(), FIELDS).train()
    output = teacher(embeddings, STATES, ASKED)
    assert output.log_probs.shape == (3, 3, 3)
    assert output.log_probs.isnan().all()
    torch.testing.assert_close(output.nll, teacher.eval()(embeddings, STATES, ASKED).nll)


def test_a_field_not_asked_is_not_in_the_text(make_lm, embeddings):
    lm, seen = make_lm(), []
    embed = lm.embed
    lm.embed = lambda ids: (seen.append(ids), embed(ids))[1]
    PublishedTeacher(lm, FIELDS).train()(embeddings, STATES, ASKED)
    texts = [lm.tokenizer.decode(row) for row in seen[-1].tolist()]
    for text, asked in zip(texts, ASKED.tolist(), strict=True):
        assert [field in text for field in FIELDS] == asked
        assert lm.tokenizer.eos_token in text


def test_any_number_of_image_embeddings(make_lm):
    teacher = PublishedTeacher(make_lm(), FIELDS).eval()
    for count in (1, 205):
        output = teacher(torch.randn(3, count, 32), STATES, ASKED)
        assert output.nll.isfinite().all()


def test_a_text_too_long_for_the_model_is_never_cut(build_lm, tokenizer, embeddings):
    text = [*tokenizer(PROMPT + target(0)).input_ids, tokenizer.eos_token_id]
    needed = embeddings.shape[1] + len(text)
    fits = PublishedTeacher(build_lm(tokenizer, max_position_embeddings=needed), FIELDS)
    assert fits.train()(embeddings[:1], STATES[:1], ASKED[:1]).nll.isfinite().all()
    short = PublishedTeacher(build_lm(tokenizer, max_position_embeddings=needed - 1), FIELDS)
    with pytest.raises(VividError, match=f"needs {needed} positions but max_position_embeddings is {needed - 1}"):
        short(embeddings[:1], STATES[:1], ASKED[:1])


def test_a_model_with_bos_reads_it_before_the_image(bos_lm, embeddings, token_nll):
    bos = [bos_lm.tokenizer.bos_token_id]
    output = PublishedTeacher(bos_lm, FIELDS).eval()(embeddings, STATES, ASKED)
    ids = [*bos_lm.tokenizer(PROMPT + target(0), add_special_tokens=False).input_ids, bos_lm.tokenizer.eos_token_id]
    nll = token_nll(bos_lm, embeddings[0], ids, bos)[-int(output.count[0].sum()) :]
    torch.testing.assert_close(output.nll[0].sum(), nll.sum(), **CLOSE)
    expected = asked_alone(bos_lm, embeddings[0], FIELDS[1], bos)
    torch.testing.assert_close(output.log_probs[0, 1], expected, **CLOSE)


def test_a_tokenizer_without_eos_is_refused(request, build_lm):
    lm = build_lm(request.getfixturevalue("train_tokenizer")(split=True))
    with pytest.raises(VividError, match="no EOS token"):
        PublishedTeacher(lm, FIELDS)
