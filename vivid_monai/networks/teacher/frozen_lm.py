"""A frozen causal LM that reads embeddings and is asked for logits at chosen positions only."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from vivid_monai.errors import VividError

KeysValues = list[tuple[Tensor, Tensor]]
"""Per layer the keys and values (1, heads, length, head width) of a text shared by all images."""


class FrozenLM(nn.Module):
    """A transformers causal LM and its tokenizer, frozen, in eval mode, with the graph to its inputs kept.

    The LM is no submodule: optimizers, checkpoints, DDP and `train()` never see it. `.to()` moves and casts it all the
    same.

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
        self.__dict__["model"] = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.name = name
        if len(tokenizer) > (known := self._embeddings.shape[0]):
            raise VividError(
                f"{name}: the tokenizer has {len(tokenizer)} tokens but the model only {known} embeddings; "
                "they are not of one model"
            )
        if (attention := model.config._attn_implementation) not in ("sdpa", "eager"):
            raise VividError(f"{name}: attn_implementation must be sdpa or eager, got {attention}")
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise VividError(f"{name}: {type(model).__name__} takes no position_ids, so it cannot serve as a teacher")
        with torch.inference_mode(False), torch.enable_grad():
            self._verify()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)

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
    def embed_dim(self) -> int:
        """Width of the token embeddings."""
        return self._embeddings.shape[1]

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
        """Keys and values of a text, without gradient.

        Args:
            ids: its tokens.
            positions: int64 (len(ids),); None: 0, 1, …
            allowed: bool (len(ids), len(ids)), who sees whom; None: all that come before.
        """
        cache: Any = DynamicCache()
        position_ids = (torch.arange(len(ids), device=self.device) if positions is None else positions)[None]
        seen = torch.ones_like(position_ids) if allowed is None else additive(allowed[None, None], self.dtype)
        with torch.no_grad():
            self.model.base_model(
                inputs_embeds=self.embed([ids]),
                attention_mask=seen,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
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

        extra: dict[str, Any] = {"use_cache": False}
        if past is not None:
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(past):
                batch = (len(inputs_embeds), -1, -1, -1)
                cache.update(keys.expand(batch), values.expand(batch), layer)
            extra = {"use_cache": True, "past_key_values": cache}
        hook = head.register_forward_pre_hook(gather)
        if words is not None:
            rows = head.weight[words], None if head.bias is None else head.bias[words]
            head.__dict__["forward"] = lambda hidden: nn.functional.linear(hidden, *rows)
        try:
            output = self.model(
                inputs_embeds=inputs_embeds.to(self.dtype),
                attention_mask=attention_mask,
                position_ids=position_ids,
                **extra,
            )
        finally:
            hook.remove()
            head.__dict__.pop("forward", None)
        return output.logits.float()

    def _verify(self) -> None:
        """Let three tokens show who sees whom: a token unseen has a gradient of exactly 0, in any dtype."""
        kind = type(self.model).__name__
        forbidden = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool, device=self.device)
        try:
            first, _ = self._seen(torch.ones(1, 3, dtype=torch.int64, device=self.device))
            _, last = self._seen(additive(forbidden[None, None], self.dtype))
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise VividError(
                f"{self.name}: {kind} does not run as a teacher with "
                f"attn_implementation={self.model.config._attn_implementation!r} (the other one may): {error}"
            ) from error
        if first[1:].any():
            raise VividError(f"{self.name}: {kind} sees future tokens; it is not a causal LM")
        if last.tolist() != [True, False, True]:
            raise VividError(
                f"{self.name}: {kind} does not honour a 4-D attention mask, on which the teacher relies to keep "
                "fields apart; choose a plain decoder such as Qwen2, Llama or GPT-2"
            )

    def _seen(self, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Which of three tokens the first and the last one see, bool (3,) each."""
        positions = torch.arange(3, device=self.device)
        inputs = self.embed([[0, 1, 2]]).detach().clone().requires_grad_()
        at = (torch.zeros_like(positions[:2]), positions[::2])
        first, last = (
            torch.autograd.grad(row[:8].sum(), inputs, retain_graph=True)[0][0].any(-1)
            for row in self.logits(inputs, attention_mask, positions[None], at)
        )
        return first, last


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask (True: may see) as the additive mask that sdpa and eager attention both take."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
