"""Get a causal LM and its tokenizer from a folder or the Hugging Face hub."""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import cached_file

from vivid_monai.errors import VividError
from vivid_monai.networks.teacher.frozen_lm import FrozenLM
from vivid_monai.networks.teacher.quantize import keep_gradients, quantization
from vivid_monai.networks.teacher.shard import spread

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load_frozen_lm(
    path: str | Path,
    *,
    weights: str = "pretrained",
    seed: int = 0,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
    layers: int | None = None,
    bits: int | None = None,
    shard: bool = False,
) -> FrozenLM:
    """Load a causal LM, frozen. Code that comes with a model is never run.

    Args:
        path: a folder in the transformers format; or, where no such folder exists, a hub name, looked for in the hub's
            cache on this machine first.
        weights: "pretrained", or "random": the same architecture, freshly initialised.
        seed: of the random weights; the global random state is left alone.
        dtype: one of `DTYPES`.
        device: where to put it.
        attn_implementation: "sdpa" or "eager".
        layers: keep the first so many decoder layers only, before the final norm and the head; None: all.
        bits: 8 or 4: quantise the linear layers while they are read, see `quantize`; None: all in `dtype`.
        shard: spread the LM over the processes of the run, each of which reads all of it first; see `spread`.

    Raises:
        VividError: for a wrong argument, and where the path or name is not a complete causal LM that can be had.
    """
    if weights not in ("pretrained", "random"):
        raise VividError(f"weights must be pretrained or random, got {weights!r}")
    if dtype not in DTYPES:
        raise VividError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if attn_implementation not in ("sdpa", "eager"):
        raise VividError(f"attn_implementation must be sdpa or eager, got {attn_implementation!r}")
    settings: dict[str, Any] = {"dtype": DTYPES[dtype], "attn_implementation": attn_implementation}
    settings["trust_remote_code"] = False
    if bits is not None:
        if weights == "random" or shard:
            raise VividError(f"teacher {path}: bits={bits} is for pretrained weights that are whole on every process")
        settings |= quantization(f"teacher {path}", bits, dtype=DTYPES[dtype], device=device)
    folder = Path(path).expanduser()
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise VividError(f"teacher {folder}: not a folder with a config.json, as a transformers model has it")
        model, tokenizer = _read(str(folder), weights, seed, settings, layers, offline=True)
    else:
        model, tokenizer = _from_hub(str(path), weights, seed, settings, layers)
    keep_gradients(model)
    try:
        if shard:
            return spread(FrozenLM(model, tokenizer, name=f"teacher {path}"), torch.device(device))
        torch.nn.Module.to(model, torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise VividError(f"teacher {path}: cannot be placed on device {device!r}: {_first_line(error)}") from error
    return FrozenLM(model, tokenizer, name=f"teacher {path}")


def _from_hub(
    name: str, weights: str, seed: int, settings: dict[str, Any], layers: int | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not HUB_NAME.fullmatch(name):
        raise VividError(f"teacher {name}: no such folder")
    try:
        return _read(name, weights, seed, settings, layers, offline=True)
    except _NotThereError:
        pass
    try:
        return _read(name, weights, seed, settings, layers, offline=False)
    except _NotThereError as error:
        raise VividError(
            f"teacher {name}: no such folder, not in the hub's cache on this machine, and the hub does not give it "
            f"({_first_line(error.__cause__ or error)}). Where there is a connection run "
            f"`hf download {name} --local-dir FOLDER`, copy FOLDER here and give its path instead of the name"
        ) from error


class _NotThereError(VividError):
    """A file of the model could not be had."""


def _read(
    source: str, weights: str, seed: int, settings: dict[str, Any], layers: int | None, *, offline: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    where = {"local_files_only": offline, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **where)
        _check_causal(source, config)
        if layers is not None:
            _cut(source, config, layers)
        if weights == "random":
            model = _initialise(config, seed, settings)
        else:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, config=config, local_files_only=offline, output_loading_info=True, **settings
            )
            model, report = loaded
            # transformers fills gaps with random numbers and a warning; a teacher with gaps is no teacher.
            if missing := sorted(report["missing_keys"]):
                names = ", ".join(missing[:5])
                raise VividError(f"teacher {source}: the folder lacks weights: {names} ({len(missing)} in all)")
        return model, _read_tokenizer(source, where)
    except VividError:
        raise
    except OSError as error:
        raise _NotThereError(f"teacher {source}: {_first_line(error)}") from error
    except Exception as error:  # transformers, safetensors and tokenizers each raise their own kinds on a broken file
        raise VividError(f"teacher {source}: cannot be read as a causal LM: {_first_line(error)}") from error


def _read_tokenizer(source: str, where: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        cached_file(source, "tokenizer.json", local_files_only=where["local_files_only"])
    except OSError:
        return AutoTokenizer.from_pretrained(source, **where)
    # AutoTokenizer rebuilds the tokenizer of some model types by a class of its own and drops what tokenizer.json says
    # of splitting; the file itself is what the model was trained with.
    return PreTrainedTokenizerFast.from_pretrained(source, **where)


def _check_causal(source: str, config: Any) -> None:
    classes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    expected = {classes} if isinstance(classes, str) else set(classes)
    found = set(config.architectures or expected)
    if not expected or not found & expected:
        raise VividError(
            f"teacher {source}: a {config.model_type} model ({', '.join(sorted(found)) or 'no architecture named'}) is "
            "not a causal LM; choose one such as Qwen2ForCausalLM, LlamaForCausalLM or GPT2LMHeadModel"
        )


def _cut(source: str, config: Any, layers: int) -> None:
    """Let a configuration say that there are fewer layers; those of the file that are over are not read."""
    if not 1 <= layers <= config.num_hidden_layers:
        raise VividError(f"teacher {source}: layers={layers}, but it has {config.num_hidden_layers}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def _initialise(config: Any, seed: int, settings: dict[str, Any]) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, **settings)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
