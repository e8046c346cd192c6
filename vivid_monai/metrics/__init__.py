"""Metrics on labels with gaps, and their intervals over patients."""
