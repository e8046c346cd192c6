"""Images: read, preprocess, augment."""
