"""Image encoders of any origin behind one interface: images → features, with their own preprocessing."""

from vivid_monai.evaluation.encoders.base import Encoder, TokenEncoder, VividEncoder, for_task
from vivid_monai.evaluation.encoders.load import load_encoder

__all__ = ["Encoder", "TokenEncoder", "VividEncoder", "for_task", "load_encoder"]
