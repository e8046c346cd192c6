"""Chest phantoms: radiograph-like images made from a seed, with labels, places and reports."""

from vivid_monai.phantom.phantom import Phantom, Study, generate, read_study

__all__ = ["Phantom", "Study", "generate", "read_study"]
