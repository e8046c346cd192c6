"""The texts the tiny teacher is pretrained on: the schema, and the phantoms' reports with their states.

Nothing here was written by or about a person: reports come from `vivid_monai.phantom`, names and hierarchy from
the packaged label spaces, synonyms from `tiny_teacher_synonyms.json`, layouts from
`vivid_monai.networks.teacher.text`, so that training and teaching read the same form.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vivid_monai.networks.teacher.text import PROMPT, Piece, published_pieces, schema_text, slot_pieces
from vivid_monai.phantom import read_study
from vivid_monai.phantom.phantom import write_report
from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space
from vivid_monai.ums.states import STATES

PHANTOM = load_label_space("chexpert-12")
_SAID = {
    "present": ("There is {name}.", "Findings of {name}.", "{Name} is seen.", "{Name}."),
    "absent": ("No {name}.", "There is no {name}.", "No evidence of {name}."),
    "uncertain": ("Possible {name}.", "There may be {name}.", "{Name} cannot be excluded."),
}
States = dict[str, str | None]


class Synonyms(NamedTuple):
    """Other names of a concept, in lower case.

    `asked` fields are asked by. `heard` stand in sentences and in the glossary and are never the name of a field: by
    them it is measured how far synonyms are understood.
    """

    asked: list[str]
    heard: list[str]


SYNONYMS: dict[str, Synonyms] = {
    concept: Synonyms(**lists)
    for concept, lists in json.loads(Path(__file__).with_name("tiny_teacher_synonyms.json").read_text("utf-8")).items()
}


class Questions(NamedTuple):
    """A report, and what the layouts of slots ask of it.

    fields: those of the schema. answers: asked field → its state, or "null". short: as `short_slots`, else as `slots`.
    """

    fields: list[str]
    report: str
    answers: dict[str, str]
    short: bool


Text = list[Piece] | Questions


def written(text: Text) -> str:
    """A text as one string."""
    if not isinstance(text, Questions):
        return "".join(piece.text for piece in text)
    slots = [piece.text for name, state in text.answers.items() for piece in slot_pieces(name, state)]
    return f"{schema_text(text.fields)} {text.report}{''.join(slots)}"


def phrases() -> list[str]:
    """Names of all fields, their synonyms, and what sentences say of them, longest first; case does not matter."""
    spaces = [load_label_space(name) for name in available_label_spaces()]
    found = [name for space in spaces for field in space.fields for name in (field, *space.aliases[field])]
    found += [name for synonyms in SYNONYMS.values() for names in synonyms for name in names]
    found += [part for said in _SAID.values() for one in said for part in re.split(r"{name}|{Name}|\.", one)]
    return sorted({name.strip().lower() for name in found} - {""}, key=lambda name: (-len(name), name))


def title(name: str) -> str:
    """A name as label spaces write it, with a capital first."""
    return name[:1].upper() + name[1:]


class Texts:
    """An endless stream of training texts, and the studies to test on.

    Args:
        seed: of the choices; the reports are those of phantom population `population`.
        population: another one holds other patients; the default job's images are of population 0.
        synonyms: how often a field is called by another of its names, in questions and sentences (0 … 1).
    """

    def __init__(self, seed: int, population: int, *, synonyms: float = 0.0) -> None:
        self._random = random.Random(seed)
        self._share = synonyms
        self._population = population
        self._spaces = [load_label_space(name) for name in available_label_spaces()]
        self._index = 0

    def __iter__(self) -> Iterator[Text]:
        makers = (self._studied, self._published, self._named, self._compact, self._schema, self._glossary)
        weights = (46, 17, 26, 3, 4, 8 * self._share)
        while True:
            yield self._random.choices(makers, weights=weights)[0]()

    def study(self) -> tuple[str, States]:
        """The next report and its states.

        Half are studies as they come. In the others every state is equally likely and many fields are silent: there
        nothing can be guessed from what is common, so reading is learnt early.
        """
        # Neighbours often share a study; steps of up to four reach another one most of the time.
        self._index += self._random.randint(1, 4)
        told = read_study(self._population, self._index)
        if self._random.random() < 0.5:
            return told.report, told.states
        states: States = dict.fromkeys(told.states)
        for name in self._some(list(states), most=8):
            states[name] = self._random.choice(STATES)
        words = np.random.default_rng(self._random.getrandbits(64))
        return write_report(words, "AP" if told.visit.portable else "PA", states, told.drawn), states

    def _studied(self) -> Text:
        """A report, and some answerable fields in any order, now and then by other names."""
        report, states = self._part(*self.study())
        if self._random.random() < 0.7 * self._share:
            states = {self._called(PHANTOM, name): state for name, state in states.items()}
        answerable = [name for name, state in states.items() if state is not None] or [self._random.choice([*states])]
        asked = self._some(answerable, least=len(answerable) if self._random.random() < 0.75 else 1)
        fields = list(states) if self._random.random() < 0.7 else [*{*asked, *self._some(list(states))}]
        return self._questions(fields, report, {name: states[name] or "null" for name in asked})

    def _published(self) -> Text:
        """Report, prompt, and JSON of some fields in label-space order, as the published layout asks them."""
        report, states = self._part(*self.study())
        asked = set(self._some(list(states)) if self._random.random() < 0.6 else states)
        break_ = "\n" if self._random.random() < 0.5 else ""
        kept = {name: state for name, state in states.items() if name in asked}
        return [Piece(f"{report}{break_}{PROMPT}"), *published_pieces(kept)]

    def _compact(self) -> Text:
        """Report and all states in one line of JSON, with and without spaces."""
        report, states = self.study()
        tight = (",", ":") if self._random.random() < 0.5 else (", ", ": ")
        text = [Piece(f"{report}\n{{")]
        for number, (name, state) in enumerate(states.items()):
            quote = "" if state is None else '"'
            text.append(Piece(f"{tight[0] if number else ''}{json.dumps(name)}{tight[1]}{quote}"))
            text += [Piece(state or "null", name, is_state=True), Piece(quote)]
        return [*text, Piece("}")]

    def _named(self) -> Text:
        """Fields of any label space, said in plain sentences, and asked, by any of their names."""
        space = self._random.choice(self._spaces)
        asked = {name: self._random.choice(STATES) for name in self._some(list(space.fields), least=2, most=7)}
        said = [self._sentence(self._heard(space, name), state) for name, state in asked.items()]
        self._random.shuffle(said)
        fields = list(space.fields) if self._random.random() < 0.3 else self._with_others([*asked], space)
        called = {name: self._called(space, name) for name in fields}
        answers = {called[name]: state for name, state in asked.items()}
        return self._questions([*called.values()], " ".join(said), answers)

    def _questions(self, fields: list[str], report: str, answers: dict[str, str]) -> Questions:
        return Questions(fields, report, answers, short=self._random.random() < 0.5)

    def _sentence(self, name: str, state: str) -> str:
        return self._random.choice(_SAID[state]).format(name=name, Name=title(name))

    def _called(self, space: LabelSpace, name: str) -> str:
        """What a field is called in a question."""
        others = [*space.aliases[name], *map(title, self._synonyms(space, name).asked)]
        return self._random.choice(others) if others and self._random.random() < self._share else name

    def _heard(self, space: LabelSpace, name: str) -> str:
        """What a field is called in a sentence, in lower case."""
        others = [*space.aliases[name], *(one for names in self._synonyms(space, name) for one in names)]
        return (self._random.choice(others) if others and self._random.random() < self._share else name).lower()

    def _synonyms(self, space: LabelSpace, name: str) -> Synonyms:
        return SYNONYMS.get(space.concepts.get(name, ""), Synonyms([], []))

    def _glossary(self) -> Text:
        """What means the same, one concept a line."""
        space = self._random.choice(self._spaces)
        lines = []
        for name in self._some(list(space.fields), most=8):
            names = [name.lower(), *(one for names in self._synonyms(space, name) for one in names)]
            names = self._random.sample(names, min(len(names), 3))
            lines.append(f"{title(names[0])}: {', '.join(names[1:])}.")
        return [Piece("\n".join(lines))]

    def _schema(self) -> Text:
        """What the schema knows: the fields of a label space, and what is a kind of what."""
        space = self._random.choice(self._spaces)
        lines = [f"{space.name}: {space.description}", f"Fields: {', '.join(space.fields)}."]
        lines += [f"{child} is a kind of {parent}." for child, parent in space.parents.items()]
        for child, parent in self._random.sample(sorted(space.parents.items()), min(2, len(space.parents))):
            lines.append(f"If {child} is present, {parent} is present.")
        return [Piece("\n".join(lines))]

    def _part(self, report: str, states: States) -> tuple[str, States]:
        """The report whole, or only its impression or its findings, which hold fewer words and the same states."""
        findings, impression = report.split("\n", 1)
        roll = self._random.random()
        if roll < 0.45:
            return findings, states
        if roll < 0.55:
            return impression, {name: None if state == "absent" else state for name, state in states.items()}
        return report, states

    def _with_others(self, names: Sequence[str], space: LabelSpace) -> list[str]:
        others = [name for name in space.fields if name not in names]
        return [*names, *self._random.sample(others, self._random.randint(0, min(6, len(others))))]

    def _some(self, names: Sequence[str], *, least: int = 1, most: int | None = None) -> list[str]:
        """`least` to `most` (all) of the names, in any order."""
        most = min(most or len(names), len(names))
        return self._random.sample(list(names), self._random.randint(min(least, most), most))
