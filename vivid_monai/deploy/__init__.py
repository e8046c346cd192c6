"""Calibration, out-of-distribution detection, bundles, export formats, predictions, DICOM reports."""

import os

# From 1.29 on, its builds for Linux tell their maker about sessions and models, and write an identity under the user's
# home. It is read when ONNX Runtime is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
