"""The texts the tiny teacher is pretrained on: the schema, and the phantoms' reports with their states.

Nothing here was written by or about a person: reports come from `vivid_monai.phantom`, names and hierarchy from
the packaged label spaces, layouts from `vivid_monai.networks.teacher.text`, so that training and teaching read the same
form.
"""

import json
import random
from collections.abc import Iterator, Sequence

import numpy as np

from vivid_monai.networks.teacher.text import PROMPT, Piece, published_pieces, schema_text, slot_pieces
from vivid_monai.phantom import read_study
from vivid_monai.phantom.phantom import write_report
from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space
from vivid_monai.ums.states import STATES

_SAID = {
    "present": ("There is {name}.", "Findings of {name}.", "{Name} is seen.", "{Name}."),
    "absent": ("No {name}.", "There is no {name}.", "No evidence of {name}."),
    "uncertain": ("Possible {name}.", "There may be {name}.", "{Name} cannot be excluded."),
}
Text = list[Piece]
States = dict[str, str | None]


class Texts:
    """An endless stream of training texts, and the studies to test on.

    Args:
        seed: of the choices; the reports are those of phantom population `population`.
        population: another one holds other patients; the default job's images are of population 0.
    """

    def __init__(self, seed: int, population: int) -> None:
        self._random = random.Random(seed)
        self._population = population
        self._spaces = [load_label_space(name) for name in available_label_spaces()]
        self._index = 0

    def __iter__(self) -> Iterator[Text]:
        makers = (self._slots, self._published, self._named, self._compact, self._schema)
        while True:
            yield self._random.choices(makers, weights=(45, 17, 30, 4, 4))[0]()

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

    def _slots(self) -> Text:
        """Schema, report, and some answerable fields in any order, as the layout of slots asks them."""
        report, states = self._part(*self.study())
        answerable = [name for name, state in states.items() if state is not None] or [self._random.choice([*states])]
        asked = self._some(answerable, least=len(answerable) if self._random.random() < 0.75 else 1)
        fields = list(states) if self._random.random() < 0.7 else [*{*asked, *self._some(list(states))}]
        text = [Piece(f"{schema_text(fields)} {report}")]
        for name in asked:
            text += slot_pieces(name, states[name] or "null")
        return text

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
        """Fields of any label space, called by their names in plain sentences, as slots."""
        space = self._random.choice(self._spaces)
        asked = self._some(list(space.fields), least=2, most=7)
        states = {name: self._random.choice(STATES) for name in asked}
        said = [self._sentence(name, state) for name, state in states.items()]
        self._random.shuffle(said)
        fields = list(space.fields) if self._random.random() < 0.3 else self._with_others(asked, space)
        text = [Piece(f"{schema_text(fields)} {' '.join(said)}")]
        for name, state in states.items():
            text += slot_pieces(name, state)
        return text

    def _sentence(self, name: str, state: str) -> str:
        lower = name.lower()
        return self._random.choice(_SAID[state]).format(name=lower, Name=lower[:1].upper() + lower[1:])

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
