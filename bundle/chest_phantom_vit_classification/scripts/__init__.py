"""Files of vivid-monai: network, reading of images, findings."""
