"""VIVID-Med: Vision Transformers for medical images, pretrained with a frozen language model as teacher."""

__version__ = "0.1.0"
