"""From a finished run to a bundle of the MONAI Model Zoo."""
