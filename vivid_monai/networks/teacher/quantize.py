"""The linear layers of a frozen LM in 8 or 4 bits, by bitsandbytes."""

import importlib.util
import logging
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from vivid_monai.errors import VividError


def quantization(name: str, bits: int, *, dtype: torch.dtype, device: str | torch.device) -> dict[str, Any]:
    """Keyword arguments that make `from_pretrained` quantise what it reads.

    8 bits: LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339), weights by row and activations by token. 4 bits: NF4
    (Dettmers et al. 2023, arXiv:2305.14314), weights in blocks of 64, multiplied in `dtype`. Embeddings, norms and the
    head keep `dtype`, as teachers read them directly. The gradient to the inputs is that of the quantised weights.

    Raises:
        VividError: other bits, or the libraries are not installed.
    """
    if bits not in (8, 4):
        raise VividError(f"{name}: bits must be 8, 4 or null, got {bits!r}")
    if missing := [package for package in ("bitsandbytes", "accelerate") if not importlib.util.find_spec(package)]:
        raise VividError(
            f"{name}: bits={bits} needs {' and '.join(missing)}: pip install -c constraints.txt -e '.[quantized]'"
        )
    # It warns at every product that activations are rounded, which is what 8 bits are.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": device}}


def keep_gradients(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference, which it does once a CPU reads without gradient.

    The repacked weights give no gradient ever after; the schema's keys and values are such a reading.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
