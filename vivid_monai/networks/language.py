"""Language models: a causal LM and its tokenizer, from a folder or the Hugging Face hub, frozen or with adapters."""

import importlib.util
import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import cached_file

from vivid_monai.errors import VividError, first_line
from vivid_monai.logs import plain_bars

KeysValues = list[tuple[Tensor, Tensor]]
"""Per layer the keys and values (1, heads, length, head width) of a text shared by all images."""


class LanguageModel(nn.Module):
    """A transformers causal LM and its tokenizer, in eval mode, with the graph to its inputs kept.

    Its own weights are frozen, and no submodule: optimizers, checkpoints, DDP and `train()` never see them, `.to()`
    moves and casts them all the same. LoRA adapters (`add_adapters`) are trained, and registered under `adapters`.

    Attributes:
        embed_dim: width of the token embeddings.
        moves: how often the weights have been moved or cast.

    Args:
        model: any decoder-only causal LM that takes `position_ids` and honours 4-D attention masks, with sdpa or eager
            attention. That, and that it sees no future token, is verified here on three tokens.
        tokenizer: its fast tokenizer.
        name: what error messages call it.

    Raises:
        VividError: where the model is not such an LM or its tokenizer does not fit.
    """

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
        super().__init__()
        self.__dict__["model"] = model.eval()
        self.adapters = nn.ParameterDict()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad_("lora_" in key).requires_grad:
                self.adapters[key.replace(".", "/")] = parameter
        self.moves = 0
        self.tokenizer = tokenizer
        self.name = name
        known, self.embed_dim = self._embeddings.shape
        if len(tokenizer) > known:
            raise VividError(
                f"{name}: the tokenizer has {len(tokenizer)} tokens but the model only {known} embeddings; "
                "they are not of one model"
            )
        if (attention := model.config._attn_implementation) not in ("sdpa", "eager"):
            raise VividError(f"{name}: attn_implementation must be sdpa or eager, got {attention}")
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise VividError(f"{name}: {type(model).__name__} takes no position_ids, so fields cannot be kept apart")
        with torch.inference_mode(False), torch.enable_grad():
            self._verify()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.moves += 1
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the adapters (their dropout); the frozen rest stays in evaluation mode."""
        super().train(mode)
        if self.trainable:
            for name, module in self.model.named_modules():
                if "lora_" in name:
                    module.train(mode)
        return self

    @property
    def trainable(self) -> bool:
        """Whether it has adapters that are trained."""
        return any(parameter.requires_grad for parameter in self.adapters.values())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.dtype

    @property
    def _embeddings(self) -> Tensor:
        return cast(nn.Embedding, self.model.get_input_embeddings()).weight

    @property
    def embed_scale(self) -> float:
        """Root mean square of the token embeddings."""
        return self._embeddings.detach().float().square().mean().sqrt().item()

    @property
    def bos(self) -> list[int]:
        """The token this model expects before any text, if its tokenizer puts one."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][0] == bos else []

    @property
    def eos(self) -> int:
        """The token that ends a text."""
        if self.tokenizer.eos_token_id is None:
            raise VividError(f"{self.name}: the tokenizer has no EOS token; set eos_token in its tokenizer_config.json")
        return self.tokenizer.eos_token_id

    def embed(self, ids: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """Token embeddings (…, embed_dim) of int64 ids (…)."""
        return self.model.get_input_embeddings()(torch.as_tensor(ids, dtype=torch.int64, device=self.device))

    def check_length(self, positions: int, *, masked: int = 0) -> None:
        """Raise VividError where the model cannot hold a sequence; nothing is ever cut.

        Args:
            positions: how many positions it has.
            masked: its columns, where it brings its own attention mask, which takes the place of a sliding window.
        """
        config = self.model.config.get_text_config(decoder=True)
        needs = {"max_position_embeddings": positions, "sliding_window": masked, "attention_chunk_size": masked}
        for key, need in needs.items():
            limit = getattr(config, key, None)
            if limit is not None and need > limit:
                raise VividError(
                    f"{self.name}: the sequence needs {need} positions but {key} is {limit}; ask fewer fields, "
                    "pass fewer image embeddings, or take a model with a longer context"
                )

    def keys_values(
        self, ids: Sequence[int], *, positions: Tensor | None = None, allowed: Tensor | None = None
    ) -> KeysValues:
        """Keys and values of a text, with a gradient to adapters alone; `SharedText` keeps them.

        Args:
            ids: its tokens.
            positions: int64 (len(ids),); None: 0, 1, …
            allowed: bool (len(ids), len(ids)), who sees whom; None: all that come before.
        """
        cache: Any = DynamicCache()
        position_ids = (torch.arange(len(ids), device=self.device) if positions is None else positions)[None]
        seen = torch.ones_like(position_ids) if allowed is None else additive(allowed[None, None], self.dtype)
        inputs: dict[str, Any] = {"attention_mask": seen, "position_ids": position_ids, "past_key_values": cache}
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            self.model.base_model(inputs_embeds=self.embed([ids]), use_cache=True, **inputs)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def read(self, ids: Sequence[int]) -> Tensor:
        """Last hidden states (len(ids), embed_dim), float32, of a text by itself, without gradient."""
        with torch.no_grad():
            output = self.model.base_model(inputs_embeds=self.embed([ids]), use_cache=False)
        return output.last_hidden_state[0].float()

    def logits(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        at: tuple[Tensor, Tensor],
        past: KeysValues | None = None,
        *,
        words: Tensor | None = None,
    ) -> Tensor:
        """Next-token logits, float32 (N, vocabulary), at N positions.

        The hidden states are gathered right before the LM's head, inside the LM's own forward, so that whatever it does
        to the logits afterwards (scaling, soft-capping) still happens.

        Args:
            inputs_embeds: (B, L, embed_dim); cast to the LM's dtype.
            attention_mask: int (B, L), or additive floating (B, 1, L, past length + L).
            position_ids: int64 (B, L).
            at: rows and columns, int64 (N,) each, of the positions wanted.
            past: keys and values that precede every sequence.
            words: int64 (W,): only the logits of these tokens are computed, (N, W).
        """
        head = cast(nn.Linear, self.model.get_output_embeddings())

        def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0][at], *args[1:])

        inputs: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": False}
        if past is not None:
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(past):
                batch = (len(inputs_embeds), -1, -1, -1)
                cache.update(keys.expand(batch), values.expand(batch), layer)
            inputs |= {"use_cache": True, "past_key_values": cache}
        hook = head.register_forward_pre_hook(gather)
        if words is not None:
            rows = head.weight[words], None if head.bias is None else head.bias[words]
            head.__dict__["forward"] = lambda hidden: nn.functional.linear(hidden, *rows)
        try:
            return self.model(inputs_embeds=inputs_embeds.to(self.dtype), **inputs).logits.float()
        finally:
            hook.remove()
            head.__dict__.pop("forward", None)

    def _verify(self) -> None:
        """Let three tokens show who sees whom: a token unseen has a gradient of exactly 0, in any dtype."""
        kind = type(self.model).__name__
        positions = torch.arange(3, device=self.device)
        inputs = self.embed([[0, 1, 2]]).detach().requires_grad_()

        def seen(attention_mask: Tensor) -> list[list[bool]]:
            """Which of the three the first and the last one see."""
            at = (torch.zeros_like(positions[:2]), positions[::2])
            rows = self.logits(inputs, attention_mask, positions[None], at)
            gradients = [torch.autograd.grad(row[:8].sum(), inputs, retain_graph=True)[0][0] for row in rows]
            return [gradient.any(-1).tolist() for gradient in gradients]

        forbidden = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool, device=self.device)
        try:
            first, _ = seen(torch.ones_like(positions[None]))
            _, last = seen(additive(forbidden[None, None], self.dtype))
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise VividError(
                f"{self.name}: {kind} does not run with attn_implementation="
                f"{self.model.config._attn_implementation!r} (the other one may): {first_line(error)}"
            ) from error
        if any(first[1:]):
            raise VividError(f"{self.name}: {kind} sees future tokens; it is not a causal LM")
        if last != [True, False, True]:
            raise VividError(
                f"{self.name}: {kind} does not honour a 4-D attention mask, on which teachers rely to keep "
                "fields apart; choose a plain decoder such as Qwen2, Llama or GPT-2"
            )


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask (True: may see) as the additive mask that sdpa and eager attention both take."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def _quantization(name: str, bits: int, *, dtype: torch.dtype, device: str | torch.device) -> dict[str, Any]:
    """Keyword arguments that make `from_pretrained` quantise what it reads."""
    if bits not in (8, 4):
        raise VividError(f"{name}: bits must be 8, 4 or null, got {bits!r}")
    if missing := [package for package in ("bitsandbytes", "accelerate") if not importlib.util.find_spec(package)]:
        raise VividError(
            f"{name}: bits={bits} needs {' and '.join(missing)}: pip install -c constraints.txt -e '.[quantized]'"
        )
    # It warns at every product that activations are rounded, which is what 8 bits are.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype} if bits == 4 else {}
    config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4, **four)
    return {"quantization_config": config, "device_map": {"": device}}


def spread(lm: LanguageModel, device: torch.device) -> LanguageModel:
    """Spread an LM's decoder layers over all processes, in place, by FSDP2; what it computes stays the same.

    Every process keeps its part of each layer on `device` and gathers a layer while it runs. The embeddings, the final
    norm and the head stay whole on every process, as teachers read them directly. From then on all processes must run
    the LM equally often (`vivid_monai.engines.setup.InStep`). Layers move to `device` one by one, so the LM may be
    larger than the device while it is on the CPU.

    Raises:
        VividError: there is one process only, or the LM's class does not say what its layers are.
    """
    if not dist.is_initialized() or dist.get_world_size() < 2:
        raise VividError(
            f"{lm.name}: shard=True spreads it over several processes, and there is one; start them by torchrun with "
            "configs/multi_gpu_train.json"
        )
    kinds = set(lm.model._no_split_modules or ())
    layers = [module for module in lm.model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise VividError(f"{lm.name}: {type(lm.model).__name__} does not name its layers; it cannot be sharded")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    # The root, which holds nothing itself, lets one layer be gathered while another runs.
    fully_shard(lm.model.base_model, mesh=mesh, ignored_params=set(lm.model.parameters()) - inside)
    return lm.to(device)


def add_adapters(model: PreTrainedModel, settings: Mapping[str, Any], *, name: str, seed: int = 0) -> None:
    """Put LoRA adapters into a model, in place: its only parameters with a gradient, drawn by `seed` alone.

    Args:
        settings: arguments of `peft.LoraConfig`.
        name: what error messages call the model.

    Raises:
        VividError: peft is not installed, or does not take the settings.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise VividError(
            f"{name}: adapters need peft ({error}): pip install -c constraints.txt -e '.[adapters]'"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(LoraConfig(**settings), model)
        except (TypeError, ValueError, RuntimeError) as error:
            raise VividError(f"{name}: adapters={dict(settings)} cannot be added: {first_line(error)}") from error


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load_language_model(
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
    adapters: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Load a causal LM, frozen or with adapters to train. Code that comes with a model is never run.

    Args:
        path: a folder in the transformers format; or, where no such folder exists, a hub name, looked for in the hub's
            cache on this machine first.
        weights: "pretrained", or "random": the same architecture, freshly initialised.
        seed: of the random weights; the global random state is left alone.
        dtype: one of `DTYPES`.
        device: where to put it.
        attn_implementation: "sdpa" or "eager".
        layers: keep the first so many decoder layers only, before the final norm and the head; None: all.
        bits: quantise the linear layers while they are read. 8: LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339),
            weights by row and activations by token; 4: NF4 (Dettmers et al. 2023, arXiv:2305.14314), weights in blocks
            of 64, multiplied in `dtype`. Embeddings, norms and the head keep `dtype`, as teachers read them directly;
            the gradient to the inputs is that of the quantised weights. None: all in `dtype`.
        shard: spread the LM over the processes of the run, each of which reads all of it first; see `spread`.
        adapters: arguments of `peft.LoraConfig` (Hu et al. 2022, arXiv:2106.09685), such as `{"r": 8, "target_modules":
            ["q_proj", "v_proj"]}`; drawn by `seed`. At the start they change nothing. None: no adapters.

    Raises:
        VividError: for a wrong argument, and where the path or name is not a complete causal LM that can be had.
    """
    for option, value, known in (
        ("weights", weights, ("pretrained", "random")),
        ("dtype", dtype, DTYPES),
        ("attn_implementation", attn_implementation, ("sdpa", "eager")),
    ):
        if value not in known:
            raise VividError(f"{option} must be {' or '.join(known)}, got {value!r}")
    name = f"LM {path}"
    settings: dict[str, Any] = {"dtype": DTYPES[dtype], "attn_implementation": attn_implementation}
    if bits is not None:
        if weights == "random" or shard:
            raise VividError(f"{name}: bits={bits} is for pretrained weights that are whole on every process")
        settings |= _quantization(name, bits, dtype=DTYPES[dtype], device=device)
    if adapters is not None and shard:
        raise VividError(f"{name}: adapters are not trained in an LM that is spread (shard=True)")
    model, tokenizer = _find(
        path, partial(_read, seed=seed if weights == "random" else None, layers=layers, settings=settings)
    )
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights once a CPU reads without gradient; they give none ever after.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    if adapters is not None:
        add_adapters(model, adapters, name=name, seed=seed)
    try:
        if shard:
            return spread(LanguageModel(model, tokenizer, name=name), torch.device(device))
        nn.Module.to(model, torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise VividError(f"{name}: cannot be placed on device {device!r}: {first_line(error)}") from error
    return LanguageModel(model, tokenizer, name=name)


_Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def _find(path: str | Path, read: Callable[..., _Loaded]) -> _Loaded:
    """What `read` makes of a folder, of the hub's cache on this machine, or of the hub."""
    folder = Path(path).expanduser()
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise VividError(f"LM {folder}: not a folder with a config.json, as a transformers model has it")
        try:
            return read(str(folder), offline=True)
        except OSError as error:
            raise VividError(f"LM {folder}: {first_line(error)}") from error
    if not HUB_NAME.fullmatch(str(path)):
        raise VividError(
            f"LM {path}: no such folder; give that of a transformers model, or make the small teacher there: "
            f"python scripts/train_tiny_teacher.py --size small --out {path}"
        )
    with suppress(OSError):
        return read(str(path), offline=True)
    try:
        return read(str(path), offline=False)
    except OSError as error:
        raise VividError(
            f"LM {path}: no such folder, not in the hub's cache on this machine, and the hub does not give it "
            f"({first_line(error)}). Where there is a connection run "
            f"`hf download {path} --local-dir FOLDER`, copy FOLDER here and give its path instead of the name"
        ) from error


def _read(source: str, *, seed: int | None, layers: int | None, settings: dict[str, Any], offline: bool) -> _Loaded:
    """Model and tokenizer of a folder or hub name; with random weights where there is a seed. OSError: not there."""
    where: dict[str, Any] = {"local_files_only": offline, "trust_remote_code": False}
    plain_bars()
    try:
        config = AutoConfig.from_pretrained(source, **where)
        classes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
        expected = {classes} if isinstance(classes, str) else set(classes)
        found = set(config.architectures or expected)
        if not expected & found:
            raise VividError(
                f"LM {source}: a {config.model_type} model ({', '.join(sorted(found)) or 'no architecture named'}) is "
                "not a causal LM; choose one such as Qwen2ForCausalLM, LlamaForCausalLM or GPT2LMHeadModel"
            )
        if layers is not None:  # those of the file that are over are not read
            if not 1 <= layers <= config.num_hidden_layers:
                raise VividError(f"LM {source}: layers={layers}, but it has {config.num_hidden_layers}")
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
        if seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **settings)
        else:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, config=config, output_loading_info=True, **where, **settings
            )
            model, report = loaded
            # transformers fills gaps with random numbers and a warning; a model with gaps is none.
            if missing := sorted(report["missing_keys"]):
                names = ", ".join(missing[:5])
                raise VividError(f"LM {source}: the folder lacks weights: {names} ({len(missing)} in all)")
        try:
            cached_file(source, "tokenizer.json", local_files_only=offline)
        except OSError:
            return model, AutoTokenizer.from_pretrained(source, **where)
        # AutoTokenizer rebuilds the tokenizer of some model types by a class of its own and drops what tokenizer.json
        # says of splitting; the file itself is what the model was trained with.
        return model, PreTrainedTokenizerFast.from_pretrained(source, **where)
    except (VividError, OSError):
        raise
    except Exception as error:  # transformers, safetensors and tokenizers each raise their own kinds on a broken file
        raise VividError(f"LM {source}: cannot be read as a causal LM: {first_line(error)}") from error
