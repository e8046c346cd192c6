"""Pretrain the tiny teacher that comes with the package, and write its card. Needs torch 2.9 or newer.

    python scripts/train_tiny_teacher.py            # eight to ten minutes on one CPU core
    python scripts/train_tiny_teacher.py --steps 20 --out try

A Llama of about a million parameters and a byte-level BPE, both made from the texts of `tiny_teacher_text.py` alone.
The same seed on the same machine with the same versions gives the same weights; elsewhere they differ by rounding that
training amplifies, so the numbers in the card are what to compare.
"""

import argparse
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import transformers
from tiny_teacher_report import HELD_OUT_POPULATION, measure, write_card
from tiny_teacher_text import Text, Texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vivid_monai.assets import tiny_teacher_path
from vivid_monai.networks.teacher.text import tokenize

POPULATION = 1_000_003
EOS, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 1024
TOKENIZER_TEXTS = 4000


def make_tokenizer(texts: Iterator[Text]) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text can be written in it, and nothing is ever unknown."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(("".join(p.text for p in text) for text in islice(texts, TOKENIZER_TEXTS)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False, model_max_length=2048
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=5,
            num_attention_heads=8,
            num_key_value_heads=8,
            initializer_range=0.06,  # 0.02 is for wider models: here it learns at half the speed
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batches(tokenizer: PreTrainedTokenizerFast, texts: Iterator[Text], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids int64 (B, L) and weights float32 (B, L): 0 padding, 1 text, 2 states.

    Texts of similar length go together, taken from a pool of 16 batches, so that little is computed on padding.
    """
    order = torch.Generator().manual_seed(0)
    while True:
        pool = []
        for text in islice(texts, 16 * size):
            tokens = tokenize(tokenizer, text)
            ids = [token.id for token in tokens] + [tokenizer.eos_token_id]
            pool.append((ids, [2.0 if token.is_state else 1.0 for token in tokens] + [1.0]))
        pool.sort(key=lambda text: len(text[0]))
        for at in torch.randperm(16, generator=order).tolist():
            part = pool[at * size : (at + 1) * size]
            width = max(len(ids) for ids, _ in part)
            filled = [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in part]
            yield torch.tensor(filled), torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in part])


def step_loss(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean NLL of all tokens and of the state tokens, in nats. Both count: without the second, layout drowns states."""
    logits = model(input_ids=ids, attention_mask=(weights > 0).long()).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    kinds = weights[:, 1:]
    return nll[kinds > 0].mean(), nll[kinds == 2].mean() if (kinds == 2).any() else nll.new_zeros(())


def make_optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms: in the same time, half the loss of AdamW."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    model: LlamaForCausalLM, data: Iterator[tuple[Tensor, Tensor]], steps: int, rate: float
) -> tuple[int, list[float]]:
    """Warm-up and cosine; returns tokens read and the state NLL of every step."""
    optimizers = make_optimizers(model, rate)
    warm = max(steps // 20, 1)

    def factor(step: int) -> float:
        return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.02)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    tokens, history = 0, []
    bar = tqdm(islice(data, steps), total=steps, desc="tiny teacher", unit="step")
    for ids, weights in bar:
        text_nll, state_nll = step_loss(model, ids, weights)
        model.zero_grad()
        (text_nll + 2 * state_nll).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        tokens += int((weights > 0).sum())
        history.append(state_nll.item())
        bar.set_postfix(text=f"{text_nll.item():.3f}", state=f"{sum(history[-50:]) / len(history[-50:]):.3f}")
    return tokens, history


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the tiny teacher and write its card.")
    parser.add_argument("--out", type=Path, default=tiny_teacher_path(), help="folder (default: the package's)")
    parser.add_argument("--steps", type=int, default=2600, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="texts per step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=6e-3, help="Muon's peak learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and texts (default: %(default)s)")
    parser.add_argument(
        "--studies", type=int, default=400, help="held-out studies to measure on (default: %(default)s)"
    )
    args = parser.parse_args()

    started = time.process_time()
    torch.set_num_threads(1)  # sums in one order: the same seed, the same weights
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(iter(Texts(args.seed, POPULATION)))
    model = make_model(tokenizer)
    texts = iter(Texts(args.seed + 1, POPULATION))
    tokens, history = train(model, batches(tokenizer, texts, args.batch), args.steps, args.rate)
    minutes = (time.process_time() - started) / 60

    args.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    numbers = measure(args.out, studies=args.studies, train_population=POPULATION)
    facts = {
        "parameters": f"{model.num_parameters():,}",
        "vocabulary": f"{len(tokenizer):,}",
        "seed": str(args.seed),
        "steps": f"{args.steps:,} of {args.batch} texts, {tokens:,} tokens, Muon, peak learning rate {args.rate:g}",
        "last training state NLL": f"{sum(history[-50:]) / len(history[-50:]):.3f}",
        "time": f"{minutes:.1f} minutes of one CPU core",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "populations": f"trained on reports of phantom population {POPULATION}, tested on {HELD_OUT_POPULATION}",
    }
    write_card(args.out / "README.md", facts, numbers)
    print((args.out / "README.md").read_text())


if __name__ == "__main__":
    main()
