"""A finished ViT leaves home: calibration, what is not assessed, formats, bundle, predictions."""
