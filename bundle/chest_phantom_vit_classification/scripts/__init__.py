"""Reading of images and writing of answers, as in training."""
