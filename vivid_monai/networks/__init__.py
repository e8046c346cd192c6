"""Backbones, their read-outs, objectives and files of weights."""

from vivid_monai.networks.library import LibraryBackbone

__all__ = ["LibraryBackbone"]
