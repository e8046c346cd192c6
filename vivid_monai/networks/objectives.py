"""Objectives: the terms of a training loss over a backbone's tokens, with the metrics of their validation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.metrics import Metric
from torch import Tensor, nn
from torch.nn import functional as F

from vivid_monai.errors import VividError
from vivid_monai.metrics.masked import counts, macro, masked_auroc, masked_average_precision
from vivid_monai.networks.pooling import choose_pool, pool_tokens, pooled_width
from vivid_monai.networks.projector import Projector
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.teacher.base import Teacher
from vivid_monai.ums.states import ABSENT, NULL, PRESENT, UNCERTAIN

Batch = Mapping[str, Any]


class Objective(nn.Module, ABC):
    """Named terms of the training loss, each a sum and a count. What it registers is exactly what it trains.

    The loss of a step is Σ weight · sum / count over the terms, where sum and count are those of the whole step: all
    its micro-batches and all processes. So a step has the same gradient however it is cut.

    Args:
        dim: width of the tokens.
        weights: of each term, by its name, at least 0.

    Attributes:
        whole_batch: the terms compare images with each other. `forward` then gets the tokens and targets of all
            processes, with gradients, and micro-batches are refused.
    """

    whole_batch = False

    def __init__(self, dim: int, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.dim, self.weights = dim, dict(weights)
        if wrong := {name: weight for name, weight in self.weights.items() if not weight >= 0}:
            raise VividError(f"the weight of a term of the loss cannot be negative, got {wrong}")

    @abstractmethod
    def forward(self, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sum of each term, float32 (), over the images of a batch.

        Args:
            tokens: (B, T, dim), of the backbone.
            batch: the collated targets of the B images, on the device of the tokens.
        """

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Count of each term, number () on the batch's device: what its sum is divided by. Needs no forward."""

    def predict(self, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Answers for a validation batch and what they are measured by, (B, …) each; they depend on no target."""
        return {}

    def metrics(self, pick: Callable[[Any], Mapping[str, Any]]) -> dict[str, Metric]:
        """Ignite metrics of a validation pass, the key metric first.

        Args:
            pick: takes the evaluator's output to what `predict` returned for the batch, under "blank" for one image
                that is an even grey, and under "dataset" the name of each image's data set, where it is known.
        """
        return {}


class StateObjective(Objective):
    """A teacher is asked for the states of findings, given tokens read by SPD (VIVID-Med, arXiv:2603.09109).

    Terms: ``nll``, nats of the true states, per supervised token; ``penalty``, the overlap of SPD's attention maps,
    per image.

    Args:
        spd, projector, teacher: the parts, each as wide as its neighbour.
        orthogonality: weight λ of the penalty; the paper's is 0.01.
        pass_patches: give the teacher all tokens after SPD's embeddings, through the same projector, as the published
            layout does.
        min_present, min_absent: what a field needs of each to count in the validation's macro AUROC.

    Raises:
        VividError: two neighbours differ in width, or the weight is negative.
    """

    def __init__(
        self,
        spd: SPD,
        projector: Projector,
        teacher: Teacher,
        *,
        orthogonality: float = 0.01,
        pass_patches: bool = False,
        min_present: int = 10,
        min_absent: int = 10,
    ) -> None:
        super().__init__(spd.dim, {"nll": 1.0, "penalty": orthogonality})
        for name, width in {"dim": spd.dim, "out_dim": teacher.embed_dim}.items():
            if (own := getattr(projector, name)) != width:
                raise VividError(f"projector.{name}={own} must be {width}, the width of its neighbour")
        self.spd, self.projector, self.teacher = spd, projector, teacher
        self.pass_patches, self._enough = pass_patches, (min_present, min_absent)

    def forward(self, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        embeddings, penalty = self._read(tokens)
        answer = self.teacher(embeddings, batch["states"], batch["asked"])
        return {"nll": answer.nll.float().sum(), "penalty": penalty.float().sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        supervised = self.teacher.count(batch["states"], batch["asked"]).sum()
        return {"nll": supervised, "penalty": supervised.new_full((), len(batch["states"]))}

    def predict(self, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Asked about every field: ``log_probs`` float32 (B, F, 3) over the states; ``states`` int64 (B, F)."""
        states = batch["states"]
        answer = self.teacher(self._read(tokens)[0], states, torch.ones_like(states, dtype=torch.bool))
        return {"log_probs": answer.log_probs.float(), "states": states}

    def metrics(self, pick: Callable[[Any], Mapping[str, Any]]) -> dict[str, Metric]:
        return {"macro_auroc": StateMetrics(self.teacher.fields, *self._enough, pick=pick)}

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile SPD and projector in place. Not the teacher: its sequences are of another length with every batch."""
        for part in (self.spd, self.projector):
            part.compile(*args, **kwargs)

    def _read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        spd = self.spd(tokens)
        embeddings = torch.cat((spd.embeddings, tokens), dim=1) if self.pass_patches else spd.embeddings
        return self.projector(embeddings), spd.penalty


class FindingsBCE(Objective):
    """Cross-entropy of each asked finding on pooled tokens of any backbone: the plain supervised baseline.

    Term ``bce``, nats per finding that is asked and present or absent; uncertain and unanswerable ones are left out.
    With ``uncertain="state"`` the term is ``nll``, and uncertain ones count: a finding has a logit for each of its
    three states. Present against absent is the difference of two, so that the head remains one map to one logit each.

    Args:
        fields: names of the findings.
        dim: width of the tokens.
        pool: how tokens become features, as of :class:`~vivid_monai.networks.classifier.Classifier`.
        prefix: tokens before those of the backbone's grid.
        spd: what the pool "spd" reads the tokens through; trained with the head.
        min_present, min_absent: what a field needs of each to count in the validation's macro AUROC.
        uncertain: "ignored" or "state".
        start: the head to start from, features → a logit for each finding; None: zeros.
        state_weights: float (F, 3), what a term of each state counts; None: 1 each. See :func:`balanced`.

    Raises:
        VividError: another word for uncertain, a start that does not fit the features and the fields.
    """

    state_weights: Tensor | None

    def __init__(
        self,
        fields: Sequence[str],
        dim: int,
        *,
        pool: str | None = None,
        prefix: int = 1,
        spd: SPD | None = None,
        min_present: int = 10,
        min_absent: int = 10,
        uncertain: str = "ignored",
        start: nn.Linear | None = None,
        state_weights: Tensor | None = None,
    ) -> None:
        if uncertain not in ("ignored", "state"):
            raise VividError(f"uncertain={uncertain!r} must be ignored or state")
        self.three = uncertain == "state"
        super().__init__(dim, {"nll" if self.three else "bce": 1.0})
        self.fields, self.prefix, self._enough = tuple(fields), prefix, (min_present, min_absent)
        self.pool = choose_pool(pool, cls=prefix > 0, patches=True, pooled=pool == "pooled", spd=spd is not None)
        self.spd = spd if self.pool == "spd" else None
        width, n = pooled_width(dim, self.pool, spd), len(self.fields)
        self.head = nn.Linear(width, 3 * n if self.three else n)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("state_weights", state_weights, persistent=False)
        if start is not None:
            if (start.in_features, start.out_features) != (width, n):
                raise VividError(
                    f"a head from {start.in_features} features to {start.out_features} findings is no start: there "
                    f"are {width} features ({self.pool}) and {n} findings"
                )
            with torch.no_grad():
                for own, given in zip(self.head.parameters(), start.parameters(), strict=True):
                    if self.three:
                        states = own.view(n, 3, *own.shape[1:])
                        states[:, PRESENT], states[:, ABSENT] = given / 2, -given / 2
                    else:
                        own.copy_(given)

    def forward(self, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        states, weight = batch["states"], self._known(batch).float()
        if self.state_weights is not None:
            weight = weight * self.state_weights.expand(len(states), -1, -1).gather(2, _index(states))[..., 0]
        logits = self._logits(tokens)
        if self.three:
            return {"nll": -(logits.log_softmax(-1).gather(2, _index(states))[..., 0] * weight).sum()}
        target = (states == PRESENT).float()
        return {"bce": F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {term: self._known(batch).sum() for term in self.weights}

    def predict(self, tokens: Tensor, batch: Batch) -> dict[str, Tensor]:
        """As :meth:`StateObjective.predict`; an ignored uncertain has no probability, and counts as not answerable."""
        logits, states = self._logits(tokens), batch["states"]
        if self.three:
            return {"log_probs": logits.log_softmax(-1), "states": states}
        log_probs = logits.new_full((*logits.shape, 3), -torch.inf)
        log_probs[..., PRESENT], log_probs[..., ABSENT] = F.logsigmoid(logits), F.logsigmoid(-logits)
        return {"log_probs": log_probs, "states": states.masked_fill(states == UNCERTAIN, NULL)}

    def metrics(self, pick: Callable[[Any], Mapping[str, Any]]) -> dict[str, Metric]:
        return {"macro_auroc": StateMetrics(self.fields, *self._enough, pick=pick)}

    def present(self) -> tuple[Tensor, Tensor]:
        """The head as weight (F, D) and bias (F,) of one logit for each finding: present against absent."""
        weight, bias = self.head.weight.detach(), self.head.bias.detach()
        if not self.three:
            return weight, bias
        weights, biases = weight.unflatten(0, (-1, 3)), bias.unflatten(0, (-1, 3))
        return weights[:, PRESENT] - weights[:, ABSENT], biases[:, PRESENT] - biases[:, ABSENT]

    def _logits(self, tokens: Tensor) -> Tensor:
        pooled = self.spd.pool(tokens) if self.spd else pool_tokens(tokens, self.pool, prefix=self.prefix)
        logits = self.head(pooled).float()
        return logits.unflatten(-1, (-1, 3)) if self.three else logits

    def _known(self, batch: Batch) -> Tensor:
        states = batch["states"]
        return batch["asked"] & (states != NULL if self.three else (states == PRESENT) | (states == ABSENT))


def _index(states: Tensor) -> Tensor:
    """States (B, F) as an index (B, F, 1); that of no state is any."""
    return states.clamp(min=0)[..., None]


def balanced(states: np.ndarray, *, uncertain: str = "ignored") -> Tensor:
    """Weights by which each state of a field counts as much as the others, 1 on average (scikit-learn's "balanced").

    Args:
        states: of the training images, (N, F).
        uncertain: as of :class:`FindingsBCE`.

    Returns:
        float32 (F, 3): for each of the k states that a field has, its number of answers / (k · those of this state).
    """
    n = np.stack([(states == code).sum(0) for code in (ABSENT, PRESENT, UNCERTAIN)], axis=1).astype(np.float64)
    n[:, UNCERTAIN] *= uncertain == "state"
    k = (n > 0).sum(1, keepdims=True)
    weights = np.divide(n.sum(1, keepdims=True), k * n, out=np.ones_like(n), where=n > 0)
    return torch.tensor(weights, dtype=torch.float32)


class StateMetrics(Metric):
    """What is measured of the states that a network gives to the fields of all images of a validation pass.

    Adds to the evaluator's metrics, all gathered over the processes: ``macro_auroc``, present against absent, over the
    fields with enough of both; ``nll_own``, ``nll_shuffled`` and ``nll_blank``, nats of the true state among the three,
    judged by the image itself, by that of another record, and by an even grey: a network that looks at images has
    the first clearly below the others; ``auroc/FIELD`` and ``ap/FIELD``; and where the images are of several data sets
    ``macro_auroc/DATASET``, on the images of each alone. NaN where nothing can be measured.

    Args:
        fields: their names.
        min_present, min_absent: what a field needs of each to count in the macro AUROC.
        pick: takes the evaluator's output to ``log_probs``, ``states``, ``blank`` and ``dataset`` as
            :class:`Objective` says.
    """

    def __init__(
        self,
        fields: Sequence[str],
        min_present: int,
        min_absent: int,
        *,
        pick: Callable[[Any], Mapping[str, Any]] = lambda output: output,
    ) -> None:
        super().__init__(output_transform=pick)
        self.fields, self.min_present, self.min_absent = tuple(fields), min_present, min_absent

    def reset(self) -> None:
        self._log_probs: list[Tensor] = []
        self._states: list[Tensor] = []
        self._datasets: list[str] = []
        self._blank: Tensor | None = None

    def update(self, output: Mapping[str, Any]) -> None:
        self._log_probs.append(output["log_probs"].detach().cpu())
        self._states.append(output["states"].detach().cpu())
        self._datasets += output.get("dataset", ())
        self._blank = output["blank"]["log_probs"].detach().cpu()

    def iteration_completed(self, engine: Any) -> None:
        self.update(self._output_transform(engine.state.output))  # Ignite would unpack a mapping into (y_pred, y)

    def completed(self, engine: Any, name: str) -> None:
        prefix = name.removesuffix("macro_auroc")  # of one objective among several
        engine.state.metrics |= {f"{prefix}{key}": value for key, value in self.compute().items()}

    def compute(self) -> dict[str, float]:
        if not self._log_probs or self._blank is None:
            raise RuntimeError("the validation pass saw no batch, so there is nothing to measure")
        # The gathered order is by rank; that is enough: the measures below take the pairs (answer, state) as a set.
        parts: Any = idist.all_gather((torch.cat(self._log_probs), torch.cat(self._states), self._datasets))
        *tensors, names = zip(*parts, strict=True)
        log_probs, states = (torch.cat(part).numpy() for part in tensors)
        datasets = np.array([name for part in names for name in part], dtype=object)
        log_probs, n = log_probs.astype(np.float64), len(states)
        score = log_probs[..., PRESENT] - log_probs[..., ABSENT]
        auroc, precision = masked_auroc(score, states), masked_average_precision(score, states)
        enough = {"min_present": self.min_present, "min_absent": self.min_absent}
        # Far away, so rarely of the same patient, and never itself.
        shuffled = np.roll(log_probs, 1 + n // 2 if n > 2 else 1, axis=0)
        blank = np.broadcast_to(self._blank.numpy().astype(np.float64), log_probs.shape)
        alone = {}
        for name in sorted(set(datasets)) if len(set(datasets)) > 1 else ():
            own = datasets == name
            alone[f"macro_auroc/{name}"] = macro(masked_auroc(score[own], states[own]), *counts(states[own]), **enough)
        return {
            "macro_auroc": macro(auroc, *counts(states), **enough),
            "nll_own": _mean_nll(log_probs, states),
            "nll_shuffled": _mean_nll(shuffled, states) if n > 1 else float("nan"),
            "nll_blank": _mean_nll(blank, states),
            **{f"auroc/{field}": float(value) for field, value in zip(self.fields, auroc, strict=True)},
            **{f"ap/{field}": float(value) for field, value in zip(self.fields, precision, strict=True)},
            **alone,
        }


def _mean_nll(log_probs: np.ndarray, states: np.ndarray) -> float:
    """Mean negative log-likelihood (nats) of the states (N, F) that are answerable, by (N, F, 3); NaN where none is."""
    answerable = states != NULL
    return float(-log_probs[answerable, states[answerable]].mean()) if answerable.any() else float("nan")
