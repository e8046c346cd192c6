"""Probes: small classifiers on frozen features."""

from vivid_monai.evaluation.probes.attentive import AttentiveProbe
from vivid_monai.evaluation.probes.base import Probe
from vivid_monai.evaluation.probes.fit import fit_probe, load_probe, save_probe
from vivid_monai.evaluation.probes.linear import LinearProbe

__all__ = ["AttentiveProbe", "LinearProbe", "Probe", "fit_probe", "load_probe", "save_probe"]
