"""Arms of `vivid compare`: ways of making an encoder or a classifier, by their names in configs/arms.json or a file."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from vivid_monai.errors import VividError, did_you_mean
from vivid_monai.evaluation.workflows import named

ARMS, FINETUNING = "arms.json", "finetune.json"
START = "{start}"
"""In an encoder or knob of an arm: the start encoder of ``--starts``, for each of which there is such an arm."""


@dataclass(frozen=True)
class Arm:
    """One way of making an encoder: configs over configs/train.json, or an encoder that needs no training.

    Attributes:
        name: what it is called.
        says: what it is, in words.
        configs: overlays, later ones win.
        knobs: options of the training, before which those of ``--set`` yield.
        encoder: a spec of :func:`~vivid_monai.evaluation.encoders.load_encoder`, in place of all that.
        start: what the start encoder is called that it is made of; empty: it is made of none.
    """

    name: str
    says: str = ""
    configs: tuple[str, ...] = ()
    knobs: Mapping[str, Any] = field(default_factory=dict)
    encoder: str = ""
    start: str = ""

    @property
    def finetunes(self) -> bool:
        """Whether it ends in a classifier, which is tested as it is, and not in an encoder to probe."""
        return any(Path(one).name == FINETUNING for one in self.configs)


def read_arms(names: Sequence[str], configs: Path, starts: Mapping[str, str] | None = None) -> dict[str, Arm]:
    """Arms by their names, from the table in `configs` and from files of one's own.

    Args:
        names: of arms, and files.
        configs: where the table is.
        starts: name → spec of the encoders to start from; an arm with ``{start}`` in it becomes "ARM NAME" of each.

    Raises:
        VividError: an arm that is not known or given twice, or that needs a start encoder; starts that no arm takes; a
            file that is no table of arms.
    """
    if starts:
        named(starts)
    known, chosen = _table(configs / ARMS, configs), dict[str, Arm]()
    for name in names:
        own = _table(Path(name), configs) if name.endswith(".json") else {}
        if not own and name not in known:
            raise VividError(
                f"there is no arm {name!r}{did_you_mean(name, known)} Known: {', '.join(known)}; "
                "or give a .json file of your own"
            )
        for arm in _of_starts(own.values() or [known[name]], starts or {}):
            if arm.name in chosen or arm.name.startswith("untrained"):
                raise VividError(f"the arm {arm.name!r} is given twice, or has the name of the untrained twins")
            chosen[arm.name] = arm
    if starts and not any(arm.start for arm in chosen.values()):
        raise VividError(f"--starts {', '.join(starts)}: none of the arms takes a start encoder, as finetuned does")
    return chosen


def _of_starts(arms: Iterable[Arm], starts: Mapping[str, str]) -> Iterator[Arm]:
    """Arms, with one of each start encoder in place of those that are made of one."""
    for arm in arms:
        if START not in (words := json.dumps([arm.encoder, dict(arm.knobs)])):
            yield arm
        elif not starts:
            raise VividError(f"the arm {arm.name!r} needs an encoder to start from: --starts NAME=ENCODER …")
        else:
            for name, spec in starts.items():
                encoder, knobs = json.loads(words.replace(START, json.dumps(spec)[1:-1]))
                yield replace(arm, name=f"{arm.name} {name}", encoder=encoder, knobs=knobs, start=name)


def _table(path: Path, configs: Path) -> dict[str, Arm]:
    """The arms of a file; their configs lie beside it, or in `configs`."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VividError(
            f"{path}: no table of arms: {error}; configs/arms.json of `vivid init DIR` shows one"
        ) from error
    arms = {}
    for name, said in table.items() if isinstance(table, dict) else ():
        if not isinstance(said, dict) or (odd := said.keys() - {"says", "configs", "knobs", "encoder"}):
            what = f"has {', '.join(sorted(odd))}" if isinstance(said, dict) else "is no table"
            raise VividError(f"{path}: the arm {name!r} {what}; it takes says, configs, knobs and encoder")
        if ("encoder" in said) == ("configs" in said or "knobs" in said):
            raise VividError(f"{path}: the arm {name!r} needs either configs and knobs, or an encoder")
        overlays = tuple(_find(config, (path.parent, configs), path) for config in said.get("configs", ()))
        arms[name] = Arm(name, said.get("says", ""), overlays, said.get("knobs", {}), said.get("encoder", ""))
    if not arms:
        raise VividError(f"{path}: holds no arm; configs/arms.json shows how they are written")
    return arms


def _find(name: str, folders: Sequence[Path], where: Path) -> str:
    for folder in folders:
        if (folder / name).is_file():
            return str(folder / name)
    raise VividError(f"{where}: there is no {name} beside it or in {folders[-1]}")


def tried(arm: Arm, tries: Mapping[str, str]) -> list[Arm]:
    """An arm with each of the settings to try, called "ARM, KEY=VALUE, …"; itself where it is not fine-tuned.

    Args:
        arm: any.
        tries: knob → its values, separated by commas; every one is tried with every one of the others.

    Raises:
        VividError: a value is empty or given twice.
    """
    values = {key: words.split(",") for key, words in tries.items()}
    if odd := [key for key, words in values.items() if not all(words) or len(set(words)) < len(words)]:
        raise VividError(f"--try {odd[0]}={tries[odd[0]]}: write KEY=VALUE,VALUE, each of the values once")
    if not values or not arm.finetunes:
        return [arm]
    settings = [dict(zip(values, one, strict=True)) for one in product(*values.values())]
    called = [", ".join(f"{key}={value}".replace("/", "_") for key, value in one.items()) for one in settings]
    return [
        replace(arm, name=f"{arm.name}, {name}", knobs={**arm.knobs, **one})
        for name, one in zip(called, settings, strict=True)
    ]


def pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """KEY=VALUE words as a mapping; a VividError names the option and the word that is none, or the key of two."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise VividError(f"{option} {word}: write KEY=VALUE")
        if key in found:
            raise VividError(f"{option} {word}: {key} is given twice")
        found[key] = value
    return found
