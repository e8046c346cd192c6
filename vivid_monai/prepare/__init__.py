"""Data sets and label tables become one manifest."""
