"""Teachers: what turns image embeddings, asked fields and their states into a loss per field."""

from vivid_monai.networks.language import FrozenLM, load_frozen_lm
from vivid_monai.networks.teacher.base import Teacher, TeacherOutput
from vivid_monai.networks.teacher.build import build_teacher
from vivid_monai.networks.teacher.none import StateClassifier
from vivid_monai.networks.teacher.phrases import PhraseTeacher
from vivid_monai.networks.teacher.published import PublishedTeacher
from vivid_monai.networks.teacher.short_slots import ShortSlotTeacher
from vivid_monai.networks.teacher.slots import SlotTeacher

__all__ = [
    "FrozenLM",
    "PhraseTeacher",
    "PublishedTeacher",
    "ShortSlotTeacher",
    "SlotTeacher",
    "StateClassifier",
    "Teacher",
    "TeacherOutput",
    "build_teacher",
    "load_frozen_lm",
]
