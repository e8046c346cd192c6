"""Chest phantoms: radiograph-like images made from a seed, with labels, places and reports."""

from vivid_monai.data.phantom.folder import prepare
from vivid_monai.data.phantom.phantom import Phantom, Study, generate, read_study

__all__ = ["Phantom", "Study", "generate", "prepare", "read_study"]
