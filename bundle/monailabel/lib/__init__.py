"""A bundle of VIVID-Med in MONAI Label: findings instead of masks."""
