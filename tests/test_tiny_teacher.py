"""The tiny teacher loads offline, is small, splits text as the layouts need, and reads reports; how it is made."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import train_tiny_teacher
from tiny_teacher_text import SYNONYMS, Questions, Texts, phrases, written
from tiny_teacher_tokens import batches, lay_out, make_tokenizer
from train_tiny_teacher import POPULATION, predict

from vivid_monai.assets import tiny_teacher_path
from vivid_monai.networks.teacher import build_teacher
from vivid_monai.networks.teacher.text import published_pieces, slot_pieces
from vivid_monai.phantom import read_study
from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.states import NULL, STATES, encode

FIELDS = load_label_space("chexpert-12").fields
WORDS = (*STATES, "null")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny_teacher_path())


def test_it_is_small_and_a_plain_model_with_a_card() -> None:
    folder = tiny_teacher_path()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5 * 2**20
    assert "no medical model" in (folder / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is LlamaForCausalLM
    assert not list(folder.glob("*.py"))
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_it_loads_without_a_network() -> None:
    program = (
        "import socket; socket.socket.connect = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"AutoModelForCausalLM.from_pretrained({str(tiny_teacher_path())!r})\n"
        f"AutoTokenizer.from_pretrained({str(tiny_teacher_path())!r})\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_its_tokenizer_knows_all_text_and_ends_it(tokenizer) -> None:
    assert tokenizer.is_fast
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    for text in ("Größe: 3 µm, naïve ≥ 2\n\tend ", read_study(0, 0).report, "心臓"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_state_is_one_token_of_its_own_in_both_layouts(tokenizer) -> None:
    for before, after in (("Edema: ", "\n"), ('"state": "', '"\n'), ('{"Edema": "', '", "'), ('{"Edema":"', '","')):
        firsts = []
        for word in WORDS:
            encoded = tokenizer(before + word + after, return_offsets_mapping=True)
            spans = encoded["offset_mapping"]
            inside = [i for i, (start, end) in enumerate(spans) if start < len(before + word) and end > len(before)]
            assert len(inside) == 1, (before, word)
            assert tokenizer.decode([encoded["input_ids"][inside[0]]]).strip() == word
            firsts.append(encoded["input_ids"][inside[0]])
        assert len(set(firsts)) == len(WORDS)


def test_texts_of_the_layouts_are_short(tokenizer) -> None:
    slots = ["".join(piece.text for piece in slot_pieces(name, "present")) for name in FIELDS]
    assert max(len(tokenizer(text)["input_ids"]) for text in slots) <= 8
    published = "".join(piece.text for piece in published_pieces(dict.fromkeys(FIELDS, "absent")))
    assert len(tokenizer(published)["input_ids"]) < 200


@pytest.mark.parametrize(("layout", "least"), [("short_slots", 0.9), ("slots", 0.9), ("published", 0.85)])
def test_it_reads_reports_of_patients_it_has_not_seen(layout: str, least: float) -> None:
    teacher = build_teacher(fields=FIELDS, layout=layout).eval()
    right, others, total = 0, 0, 0
    told = [read_study(77, 12 * i) for i in range(24)]
    for one, other in zip(told, [*told[1:], told[0]], strict=True):
        truth = torch.tensor([[encode(one.states[name]) for name in FIELDS]])
        known = truth != NULL
        for report in (one.report, other.report):
            ids = teacher.lm.tokenizer(report if layout == "published" else f" {report}")["input_ids"]
            with torch.no_grad():
                log_probs = teacher(teacher.lm.embed([ids]), truth, torch.ones_like(known)).log_probs
            hits = int((log_probs.argmax(2) == truth)[known].sum())
            right, others = (right + hits, others) if report is one.report else (right, others + hits)
        total += int(known.sum())
    assert total > 100
    assert right / total > least
    assert others / total < right / total - 0.15


@pytest.mark.parametrize("short", [True, False])
def test_training_reads_a_report_as_its_teacher_does(short: bool) -> None:
    teacher = build_teacher(fields=FIELDS, layout="short_slots" if short else "slots").eval()
    study = read_study(77, 24)
    answers = {name: study.states[name] or "null" for name in reversed(FIELDS[3:9])}
    texts = [Questions([*FIELDS], study.report, answers, short), Questions([*FIELDS], "No edema.", answers, short)]
    made = batches(teacher.lm.tokenizer, iter([*texts, *[texts[1]] * 30]), 2)
    batch = next(made)
    while batch[..., 4].min() >= 0:  # one that is filled up
        batch = next(made)
    with torch.no_grad():
        logits, places = predict(teacher.lm.model, batch)
        for row, text in enumerate(sorted(texts, key=lambda text: len(text.report))):
            ids = teacher.lm.tokenizer(f" {text.report}")["input_ids"]
            nothing = torch.full((1, len(FIELDS)), NULL)
            expected = teacher(teacher.lm.embed([ids]), nothing, torch.ones_like(nothing, dtype=torch.bool)).log_probs
            per_row = (batch[..., 1] >= 0).sum(1).tolist()
            mine, at = logits.split(per_row)[row], places.split(per_row)[row]
            mine = mine[at[:, 2] == 1][:, [teacher.lm.tokenizer(f" {state}")["input_ids"][0] for state in STATES]]
            wanted = torch.stack([expected[0, FIELDS.index(name)] for name in answers])
            torch.testing.assert_close(mine.log_softmax(1), wanted, rtol=1e-3, atol=1e-3)


def test_every_text_predicts_its_states_and_its_end(tokenizer) -> None:
    texts = [*islice(Texts(5, POPULATION, synonyms=0.5), 60)]
    for text in texts:
        places = lay_out(tokenizer, text)
        told = [tokenizer.decode([place.target]).strip() for place in places if place.is_state]
        if isinstance(text, Questions):
            assert told == list(text.answers.values())
        else:
            assert told == [piece.text for piece in text if piece.is_state]
            assert [place.id for place in places] == tokenizer(written(text))["input_ids"]
            assert places[-1].target == tokenizer.eos_token_id
    assert {text.short for text in texts if isinstance(text, Questions)} == {True, False}


def test_synonyms_mean_one_field_and_some_are_never_asked() -> None:
    space = load_label_space("chexpert-12")
    lists = [SYNONYMS[space.concepts[name]] for name in FIELDS]
    assert all(len(names.heard) == 2 <= len(names.asked) for names in lists)
    every = [name for names in lists for name in (*names.asked, *names.heard)]
    assert len(set(every)) == len(every)
    heard = {name for names in lists for name in names.heard}
    texts = list(islice(Texts(3, POPULATION, synonyms=0.5), 2500))
    asked = {name.lower() for text in texts if isinstance(text, Questions) for name in text.fields}
    assert len(asked.intersection(every)) > 40
    assert not asked & heard
    assert all(any(name in written(text).lower() for text in texts) for name in heard)


def test_a_vocabulary_of_phrases_has_them_whole() -> None:
    tokenizer = make_tokenizer(islice(Texts(0, POPULATION, synonyms=0.5), 1500), 2048, phrases())
    for text in (
        " blunting of the costophrenic angle",
        " Pleural Effusion",
        " cannot be excluded",
        "Broken rib",
        " null",
    ):
        assert len(tokenizer(text)["input_ids"]) == 1, text
    text = "No broken ribs; Größe: 3 µm\n\tnaïve "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_small_one_is_made_and_taken(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(train_tiny_teacher, "TOKENIZER_TEXTS", 300)
    monkeypatch.setattr(sys, "argv", ["train", "--size=small", "--steps=2", "--studies=2", f"--out={tmp_path}"])
    train_tiny_teacher.main()
    teacher = build_teacher(fields=FIELDS, path=tmp_path)
    assert teacher.embed_dim == 192
    assert 2e6 < teacher.lm.model.num_parameters() < 3e6
    card = (tmp_path / "README.md").read_text()
    assert "by synonyms it only heard, of other fields" in card
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 6 * 2**20
