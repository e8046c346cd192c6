"""Chest phantoms: radiograph-like images made from a seed, with labels, places and reports."""

from vivid_monai.data.phantom.generate import Phantom, generate

__all__ = ["Phantom", "generate"]
