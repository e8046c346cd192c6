"""Pretrain the tiny teacher that comes with the package, or the small one, and write its card (torch 2.9 or newer).

    python scripts/train_tiny_teacher.py                  # about ten minutes on one idle CPU core
    python scripts/train_tiny_teacher.py --size small     # twice the parameters, to models/small_teacher
    python scripts/train_tiny_teacher.py --steps 20 --out try

A Llama and a byte-level BPE, both made from the texts of `tiny_teacher_text.py` alone, in the teachers' own layouts
(`tiny_teacher_tokens.py`). The same seed on the same machine with the same versions gives the same weights; elsewhere
they differ by rounding that training amplifies, so the numbers in the card are what to compare.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import transformers
from tiny_teacher_report import HELD_OUT_POPULATION, measure, write_card
from tiny_teacher_text import Texts, phrases
from tiny_teacher_tokens import NO_TARGET, allowed, batches, make_tokenizer
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vivid_monai.assets import tiny_teacher_path
from vivid_monai.engines.optimizer import Muon
from vivid_monai.networks.language import additive

POPULATION = 1_000_003
TOKENIZER_TEXTS = 4000


@dataclass(frozen=True)
class Size:
    """A teacher's size; `synonyms`: how often its texts use them, with whole clinical phrases in the vocabulary."""

    out: Path
    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    steps: int
    synonyms: float = 0.0


SIZES = {
    "tiny": Size(tiny_teacher_path(), vocabulary=1024, width=128, inner=384, layers=5, heads=8, steps=3200),
    "small": Size(
        Path("models/small_teacher"),
        vocabulary=2048,
        width=192,
        inner=512,
        layers=5,
        heads=8,
        steps=3200,
        synonyms=0.4,
    ),
}


def make_model(tokenizer: PreTrainedTokenizerFast, size: Size) -> LlamaForCausalLM:
    """A Llama with tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.width,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            initializer_range=0.06,  # 0.02 is for wider models: here it learns at half the speed
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def predict(model: LlamaForCausalLM, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Logits float32 (N, vocabulary) at the places of a batch that have a target, and those places (N, 5)."""
    ids, targets, _, position, owner = batch.unbind(-1)
    mask = additive(allowed(owner)[:, None], model.dtype)
    hidden = model.model(input_ids=ids, attention_mask=mask, position_ids=position).last_hidden_state
    known = targets != NO_TARGET
    return model.lm_head(hidden[known]), batch[known]


def step_loss(model: LlamaForCausalLM, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Mean NLL of all tokens and of the state tokens, in nats. Both count: without the second, layout drowns states."""
    logits, places = predict(model, batch)
    _, targets, is_state, *_ = places.unbind(-1)
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    states = is_state.bool()
    return nll.mean(), nll[states].mean() if states.any() else nll.new_zeros(())


def make_optimizer(model: LlamaForCausalLM, rate: float) -> Muon:
    """Muon for the matrices of the layers, AdamW for embeddings and norms: in the same time, half the loss of AdamW."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return Muon(
        [
            {"params": matrices, "muon": True, "lr": rate, "weight_decay": 0.01},
            {"params": others, "lr": 3e-3, "betas": (0.9, 0.98), "weight_decay": 0.0},
        ]
    )


def train(model: LlamaForCausalLM, data: Iterator[Tensor], steps: int, rate: float) -> tuple[int, list[float]]:
    """Warm-up and cosine; returns tokens read and the state NLL of every step."""
    optimizer = make_optimizer(model, rate)
    warm = max(steps // 20, 1)

    def factor(step: int) -> float:
        return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.02)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    tokens, history = 0, []
    bar = tqdm(islice(data, steps), total=steps, desc="teacher", unit="step")
    for batch in bar:
        text_nll, state_nll = step_loss(model, batch)
        model.zero_grad()
        (text_nll + 2 * state_nll).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tokens += int((batch[..., 4] >= 0).sum())
        history.append(state_nll.item())
        bar.set_postfix(text=f"{text_nll.item():.3f}", state=f"{sum(history[-50:]) / len(history[-50:]):.3f}")
    return tokens, history


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain a small teacher and write its card.")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder (default: the package's; of small: models/small_teacher)")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the size's)")
    parser.add_argument("--batch", type=int, default=8, help="texts per step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=6e-3, help="Muon's peak learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and texts (default: %(default)s)")
    parser.add_argument(
        "--studies", type=int, default=400, help="held-out studies to measure on (default: %(default)s)"
    )
    args = parser.parse_args()
    size = SIZES[args.size]
    out, steps = args.out or size.out, args.steps or size.steps

    started = time.process_time()
    torch.set_num_threads(1)  # sums in one order: the same seed, the same weights
    torch.manual_seed(args.seed)
    samples = islice(Texts(args.seed, POPULATION, synonyms=size.synonyms), TOKENIZER_TEXTS)
    tokenizer = make_tokenizer(samples, size.vocabulary, phrases() if size.synonyms else ())
    model = make_model(tokenizer, size)
    texts = iter(Texts(args.seed + 1, POPULATION, synonyms=size.synonyms))
    tokens, history = train(model, batches(tokenizer, texts, args.batch), steps, args.rate)
    minutes = (time.process_time() - started) / 60

    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    synonyms = size.synonyms > 0
    numbers = measure(out, studies=args.studies, train_population=POPULATION, synonyms=synonyms)
    facts = {
        "parameters": f"{model.num_parameters():,}",
        "vocabulary": f"{len(tokenizer):,}",
        "seed": str(args.seed),
        "steps": f"{steps:,} of {args.batch} texts, {tokens:,} tokens, Muon, peak learning rate {args.rate:g}",
        "last training state NLL": f"{sum(history[-50:]) / len(history[-50:]):.3f}",
        "time": f"{minutes:.1f} minutes of one CPU core",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "populations": f"trained on reports of phantom population {POPULATION}, tested on {HELD_OUT_POPULATION}",
    }
    write_card(out / "README.md", args.size, facts, numbers, synonyms=synonyms)
    print((out / "README.md").read_text())


if __name__ == "__main__":
    main()
