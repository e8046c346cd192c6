"""Teachers: what turns image embeddings, asked fields and their states into a loss per field."""

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from vivid_monai.assets import tiny_teacher_path
from vivid_monai.errors import VividError
from vivid_monai.networks.language import load_language_model
from vivid_monai.networks.teacher.base import Teacher, TeacherOutput
from vivid_monai.networks.teacher.classifiers import PhraseTeacher, StateClassifier
from vivid_monai.networks.teacher.published import PublishedTeacher
from vivid_monai.networks.teacher.slots import ShortSlotTeacher, SlotTeacher

__all__ = [
    "PhraseTeacher",
    "PublishedTeacher",
    "ShortSlotTeacher",
    "SlotTeacher",
    "StateClassifier",
    "Teacher",
    "TeacherOutput",
    "build_teacher",
]

LAYOUTS = {
    "short_slots": ShortSlotTeacher,
    "slots": SlotTeacher,
    "published": PublishedTeacher,
    "phrases": PhraseTeacher,
}


def build_teacher(
    *,
    fields: Sequence[str],
    kind: str = "lm",
    path: str | Path | None = None,
    layout: str = "short_slots",
    embed_dim: int = 256,
    **settings: Any,
) -> Teacher:
    """Build a teacher.

    Args:
        fields: names of the fields, in label-space order.
        kind: "lm" (a frozen causal LM), "random" (the same architecture with random weights) or "none" (no LM: a state
            classifier, trained).
        path: folder or hub name of the LM; None is the tiny teacher that comes with the package.
        layout: "short_slots", "slots", "published", or "phrases" (the LM reads the possible answers once and is not
            kept).
        embed_dim: width of the image embeddings for kind "none"; an LM dictates its own.
        settings: how the LM is held (`load_language_model`), and of the layout's own teacher, such as `choose_from` of
            "slots"; None leaves what it is by itself.

    Raises:
        VividError: for a wrong argument, or an LM that cannot be had.
    """
    if kind not in ("lm", "random", "none"):
        raise VividError(f"teacher kind must be lm, random or none, got {kind!r}")
    if layout not in LAYOUTS:
        raise VividError(f"teacher layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    settings = {name: value for name, value in settings.items() if value is not None}
    held = {name: settings.pop(name) for name in settings.keys() & signature(load_language_model).parameters.keys()}
    for name in settings.keys() - signature(LAYOUTS[layout]).parameters.keys():
        raise VividError(f"a teacher of layout {layout} has no setting {name}, got {settings[name]!r}")
    if kind == "none":
        return StateClassifier(fields, embed_dim)
    weights = "random" if kind == "random" else "pretrained"
    lm = load_language_model(tiny_teacher_path() if path is None else path, weights=weights, **held)
    return LAYOUTS[layout](lm, fields, **settings)
