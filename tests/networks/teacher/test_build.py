import pytest
import torch

from vivid_monai.errors import VividError
from vivid_monai.networks import teacher
from vivid_monai.networks.teacher import (
    PhraseTeacher,
    PublishedTeacher,
    ShortSlotTeacher,
    SlotTeacher,
    StateClassifier,
    build_teacher,
)

FIELDS = ["Edema", "Pleural Effusion"]


@pytest.fixture(autouse=True)
def folder(tmp_path, make_lm, tokenizer, monkeypatch):
    make_lm().model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(teacher, "tiny_teacher_path", lambda: tmp_path)
    return tmp_path


def answer(teacher):
    embeddings = torch.randn(2, 3, teacher.embed_dim, generator=torch.Generator().manual_seed(1))
    states = torch.tensor([[1, 0], [2, -1]])
    return teacher.eval()(embeddings, states, torch.ones(2, 2, dtype=torch.bool))


def test_the_tiny_teacher_in_short_slots_is_the_default(folder):
    teacher = build_teacher(fields=FIELDS)
    assert isinstance(teacher, ShortSlotTeacher)
    assert teacher.fields == ("Edema", "Pleural Effusion")
    assert answer(teacher).nll.equal(answer(build_teacher(fields=FIELDS, kind="lm", path=str(folder))).nll)


def test_random_differs_from_pretrained_and_follows_its_seed():
    lm, one, two = (build_teacher(fields=FIELDS, kind=kind, seed=7) for kind in ("lm", "random", "random"))
    assert answer(one).nll.equal(answer(two).nll)
    assert not answer(one).nll.equal(answer(lm).nll)


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("slots", {"choose_from": "states"}),
        ("published", {}),
    ],
)
def test_every_setting_reaches_its_place(layout, settings):
    held = {"dtype": "bfloat16", "device": "cpu", "attn_implementation": "eager"}
    teacher = build_teacher(fields=FIELDS, layout=layout, **held, **settings)
    assert isinstance(teacher, {"slots": SlotTeacher, "published": PublishedTeacher}[layout])
    assert teacher.lm.dtype == torch.bfloat16
    assert teacher.lm.model.config._attn_implementation == "eager"
    assert {name: getattr(teacher, name) for name in settings} == settings
    assert answer(teacher).log_probs.isfinite().all()


def test_a_setting_is_for_the_layout_that_has_it():
    assert isinstance(build_teacher(fields=FIELDS, layout="phrases", choose_from=None), PhraseTeacher)
    with pytest.raises(VividError, match="short_slots has no setting choose_from, got 'states'"):
        build_teacher(fields=FIELDS, choose_from="states")


def test_fewer_layers_are_the_first_ones(folder):
    whole, cut = build_teacher(fields=FIELDS), build_teacher(fields=FIELDS, layers=1)
    blocks = cut.lm.model.model.layers
    assert len(blocks) == 1 < len(whole.lm.model.model.layers)
    for name, tensor in blocks[0].state_dict().items():
        assert tensor.equal(whole.lm.model.model.layers[0].state_dict()[name])
    assert cut.lm.model.lm_head.weight.equal(whole.lm.model.lm_head.weight)
    assert not answer(cut).nll.equal(answer(whole).nll)
    assert len(build_teacher(fields=FIELDS, layers=1, kind="random").lm.model.model.layers) == 1
    for wrong in (0, 3):
        with pytest.raises(VividError, match=f"layers={wrong}, but it has 2"):
            build_teacher(fields=FIELDS, layers=wrong)


def test_none_needs_no_lm(folder):
    for file in folder.iterdir():
        file.unlink()
    teacher = build_teacher(fields=FIELDS, kind="none", embed_dim=16)
    assert isinstance(teacher, StateClassifier)
    assert answer(teacher).nll.shape == (2, 2)
    with pytest.raises(VividError, match=str(folder)):
        build_teacher(fields=FIELDS)


@pytest.mark.parametrize(
    "wrong", [{"kind": "gpt"}, {"layout": "free"}, {"choose_from": "both", "layout": "slots"}], ids=str
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(VividError, match=next(iter(wrong))):
        build_teacher(fields=FIELDS, **wrong)
