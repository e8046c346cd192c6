"""Image encoders of any origin behind one interface: images → features, with their own preprocessing."""

from vivid_monai.evaluation.encoders.base import Encoder
from vivid_monai.evaluation.encoders.for_task import for_task
from vivid_monai.evaluation.encoders.load import load_encoder
from vivid_monai.evaluation.encoders.vivid import VividEncoder

__all__ = ["Encoder", "VividEncoder", "for_task", "load_encoder"]
