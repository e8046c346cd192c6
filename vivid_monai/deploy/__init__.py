"""Calibration, out-of-distribution detection, bundles, export formats, predictions, DICOM reports."""
