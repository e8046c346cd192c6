"""How well a tiny teacher reads reports it has not seen, by names it was never asked by, and the card that says so."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_teacher_text import PHANTOM, SYNONYMS, title
from torch import Tensor
from tqdm import tqdm

from vivid_monai.networks.teacher import build_teacher
from vivid_monai.networks.teacher.base import LMTeacher
from vivid_monai.networks.teacher.published import PublishedTeacher
from vivid_monai.phantom import read_study
from vivid_monai.ums.states import NULL, STATES, encode

HELD_OUT_POPULATION = 2_000_003
FIELDS = PHANTOM.fields
# One image of each block of twelve: no two share a patient.
_STRIDE = 12


@dataclass(frozen=True)
class Score:
    """Over all answerable fields: share of states right, mean NLL in nats."""

    accuracy: float
    nll: float


def measure(folder: Path, *, studies: int, train_population: int, synonyms: bool) -> dict[str, Score]:
    """Score the stored model as the teacher it will be, a report's token embeddings in the place of an image's.

    synonyms: also by the fields' other names, two of each kind.
    """
    told = [read_study(HELD_OUT_POPULATION, _STRIDE * i) for i in range(studies)]
    states = torch.tensor([[encode(one.states[name]) for name in FIELDS] for one in told])
    reports = [one.report for one in told]
    others = [*reports[1:], reports[0]]
    scores = {"report-blind prior: state frequencies per field": _prior(states, train_population)}
    for layout in ("short_slots", "slots", "published"):
        teacher = _teacher(folder, FIELDS, layout)
        for whose, texts in (("its own report", reports), ("another study's report", others)):
            scores[f"{layout}, {whose}"] = _score(_ask(teacher, texts), states)
    if not synonyms:
        return scores
    known, new = (
        [[title(SYNONYMS[PHANTOM.concepts[name]][kind][i]) for name in FIELDS] for i in range(2)] for kind in (0, 1)
    )
    exchanged = [[*names[6:], *names[:6]] for names in new]
    for which, namings, texts in (
        ("by synonyms it was asked by", known, reports),
        ("by synonyms it only heard", new, reports),
        ("by synonyms it only heard, another study's report", new, others),
        ("by synonyms it only heard, of other fields", exchanged, reports),
    ):
        answers = [_ask(_teacher(folder, names, "short_slots"), texts) for names in namings]
        scores[f"short_slots, {which}"] = _score(torch.cat(answers), states.repeat(len(namings), 1))
    return scores


def _teacher(folder: Path, fields: Sequence[str], layout: str) -> LMTeacher:
    teacher = build_teacher(fields=fields, path=folder, layout=layout).eval()
    assert isinstance(teacher, LMTeacher)
    return teacher


def _ask(teacher: LMTeacher, reports: Sequence[str]) -> Tensor:
    """Log-probabilities float32 (len(reports), F, 3) of the states."""
    nothing = torch.full((1, len(FIELDS)), NULL)
    every, answers = torch.ones_like(nothing, dtype=torch.bool), []
    before = "" if isinstance(teacher, PublishedTeacher) else " "
    with torch.no_grad():
        for report in tqdm(reports, type(teacher).__name__):
            ids = teacher.lm.tokenizer(before + report)["input_ids"]
            answers.append(teacher(teacher.lm.embed([ids]), nothing, every).log_probs)
    return torch.cat(answers)


def _score(log_probs: Tensor, states: Tensor) -> Score:
    known = states != NULL
    log_probs, truth = log_probs[known], states[known]
    right = (log_probs.argmax(1) == truth).float().mean()
    return Score(right.item(), -log_probs.gather(1, truth[:, None]).mean().item())


def _prior(states: Tensor, population: int) -> Score:
    """What can be known without reading: how often each state is told of each field, over 4,000 training studies."""
    counts: dict[str, Counter[str | None]] = {name: Counter() for name in FIELDS}
    for i in range(4000):
        for name, state in read_study(population, _STRIDE * i).states.items():
            counts[name][state] += 1
    table = torch.tensor([[counts[name][state] + 1.0 for state in STATES] for name in FIELDS])
    return _score((table / table.sum(1, keepdim=True)).log().expand(len(states), -1, -1), states)


def write_card(path: Path, name: str, facts: dict[str, str], scores: dict[str, Score], *, synonyms: bool) -> None:
    """Write the card of the model called `name`."""
    size = sum(file.stat().st_size for file in path.parent.iterdir() if file.name != path.name) / 2**20
    card = _CARD.format(
        name=name,
        size=f"{size:.1f}",
        synonyms=_SYNONYMS if synonyms else "",
        facts="\n".join(f"| {fact} | {value} |" for fact, value in facts.items()),
        scores="\n".join(f"| {row} | {s.accuracy:.3f} | {s.nll:.3f} |" for row, s in scores.items()),
    )
    path.write_text(card, encoding="utf-8")


_SYNONYMS = """
**Synonyms.** Its texts call fields by other names as well (`scripts/tiny_teacher_synonyms.json`), and a glossary says
what means the same. The last rows of the table ask by them: two for each field by which training asked, and two that
stood in sentences and glossary but never in a question; for control, by those of other fields.
"""
_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# The {name} teacher

A causal language model (Llama architecture, float16, {size} MiB with its tokenizer) that knows how chest findings,
their states and reports go together, and nothing else. It is the frozen teacher of `configs/teacher/{name}.json`, and
no medical model: every word it has read was generated by this project.

**Data.** Only generated text (`scripts/tiny_teacher_text.py`): templated reports of chest phantoms, as they come or
with states drawn evenly, each with its states in the slots of the teachers or as JSON; plain sentences and slots for
the fields of all packaged label spaces; and what those label spaces say about themselves. No report, image or label
of a person, no other text, no other model.
{synonyms}
**Made by** `python scripts/train_tiny_teacher.py --size {name}`, which also wrote this card. The same seed on the same
machine with the same versions gives the same weights; elsewhere rounding differs, and training amplifies it.

| | |
|---|---|
{facts}

**Held out.** Reports of patients that it has not read. It is asked for each answerable field alone, through the
teacher's own layouts, the report's tokens in the place of an image's embeddings; NLL in nats, over three states.

| | states right | NLL |
|---|---|---|
{scores}

**Tokenizer.** Byte-level BPE trained on the same text. `present`, `absent`, `uncertain` and `null` are one token each,
with a leading space and after a quote.
"""
