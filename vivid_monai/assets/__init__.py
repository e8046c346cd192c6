"""Files that come with the package."""

from pathlib import Path


def tiny_teacher_path() -> Path:
    """The folder of the tiny teacher: a causal LM in the transformers format, with its tokenizer and its card."""
    return Path(__file__).parent / "tiny_teacher"
