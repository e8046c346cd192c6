"""The tiny teacher loads offline, is small, splits text as the layouts need, and reads reports."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

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


@pytest.mark.parametrize(("layout", "least"), [("slots", 0.9), ("published", 0.85)])
def test_it_reads_reports_of_patients_it_has_not_seen(layout: str, least: float) -> None:
    teacher = build_teacher(fields=FIELDS, layout=layout).eval()
    right, others, total = 0, 0, 0
    told = [read_study(77, 12 * i) for i in range(24)]
    for one, other in zip(told, [*told[1:], told[0]], strict=True):
        truth = torch.tensor([[encode(one.states[name]) for name in FIELDS]])
        known = truth != NULL
        for report in (one.report, other.report):
            ids = teacher.lm.tokenizer(f" {report}" if layout == "slots" else report)["input_ids"]
            with torch.no_grad():
                log_probs = teacher(teacher.lm.embed([ids]), truth, torch.ones_like(known)).log_probs
            hits = int((log_probs.argmax(2) == truth)[known].sum())
            right, others = (right + hits, others) if report is one.report else (right, others + hits)
        total += int(known.sum())
    assert total > 100
    assert right / total > least
    assert others / total < right / total - 0.15
