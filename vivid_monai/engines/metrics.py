"""What validation measures: can the network state the findings, and does it look at the image to do so?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.metrics import Metric
from torch import Tensor

from vivid_monai.metrics.masked import counts, macro, masked_auroc, masked_average_precision
from vivid_monai.ums.states import ABSENT, NULL, PRESENT


class StateMetric(Metric):
    """Base of the metrics over all answers of a validation pass; gathers them from every process.

    Fed with the output of :class:`vivid_monai.engines.step.ValidationStep`.
    """

    def __init__(self, output_transform: Callable = lambda output: output) -> None:
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        self._log_probs: list[Tensor] = []
        self._states: list[Tensor] = []
        self._blank: Tensor | None = None

    def update(self, output: Mapping[str, Tensor]) -> None:
        self._log_probs.append(output["log_probs"].detach().cpu())
        self._states.append(output["states"].detach().cpu())
        self._blank = output["blank"].detach().cpu()

    def iteration_completed(self, engine: Any) -> None:
        # Ignite unpacks a mapping into (y_pred, y); these metrics want it whole.
        self.update(self._output_transform(engine.state.output))

    def answers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``log_probs`` (N, F, 3), ``states`` (N, F), ``blank`` (1, F, 3) of the whole pass, over all processes."""
        if not self._log_probs or self._blank is None:
            raise RuntimeError("the validation pass saw no batch, so there is nothing to measure")
        # The gathered order is by rank; that is enough: the measures below take the pairs (answer, state) as a set.
        parts: Any = [(torch.cat(self._log_probs), torch.cat(self._states))]
        if idist.get_world_size() > 1:
            parts = idist.all_gather(parts[0])
        log_probs, states = (torch.cat([part[i] for part in parts]).numpy() for i in (0, 1))
        return log_probs.astype(np.float64), states, self._blank.numpy().astype(np.float64)


class MacroAUROC(StateMetric):
    """Macro AUROC of present against absent over the fields with enough of both.

    Uncertain and unanswerable states are left out. NaN when no field qualifies.

    Args:
        min_present, min_absent: what a field needs of each to be counted.
    """

    def __init__(self, *, min_present: int = 10, min_absent: int = 10) -> None:
        super().__init__()
        self.min_present, self.min_absent = min_present, min_absent

    def compute(self) -> float:
        log_probs, states, _ = self.answers()
        n_present, n_absent = counts(states)
        value, _ = macro(
            masked_auroc(present_score(log_probs), states),
            n_present,
            n_absent,
            min_present=self.min_present,
            min_absent=self.min_absent,
        )
        return float(value)


class FieldMetrics(StateMetric):
    """AUROC and AP of each field, by name: ``auroc/Edema``, ``ap/Edema``; NaN where a field has one class only."""

    def __init__(self, fields: Sequence[str]) -> None:
        super().__init__()
        self.fields = tuple(fields)

    def completed(self, engine: Any, name: str) -> None:
        super().completed(engine, name)
        del engine.state.metrics[name]  # the mapping itself: trackers want numbers, and each has its own name

    def compute(self) -> dict[str, float]:
        log_probs, states, _ = self.answers()
        score = present_score(log_probs)
        named = {"auroc": masked_auroc(score, states), "ap": masked_average_precision(score, states)}
        return {
            f"{name}/{field}": float(v) for name, vs in named.items() for field, v in zip(self.fields, vs, strict=True)
        }


class StateNLL(StateMetric):
    """Mean negative log-likelihood (nats) of the true state among the three, over the answerable fields.

    Args:
        image: ``"own"``, each record judged by its own image; ``"shuffled"``, by the image of another record;
            ``"blank"``, by an even grey image. A teacher whose loss uses the image has ``own`` clearly below the other
            two.
    """

    def __init__(self, image: str = "own") -> None:
        super().__init__()
        if image not in ("own", "shuffled", "blank"):
            raise ValueError(f"image must be own, shuffled or blank, got {image!r}")
        self.image = image

    def compute(self) -> float:
        log_probs, states, blank = self.answers()
        if self.image == "shuffled":
            log_probs = np.roll(log_probs, 1 + len(log_probs) // 2, axis=0)  # far away, so rarely the same patient
        elif self.image == "blank":
            log_probs = np.broadcast_to(blank, log_probs.shape)
        answerable = states != NULL
        if not answerable.any():
            return float("nan")
        chosen = np.take_along_axis(log_probs, np.where(answerable, states, 0)[..., None], axis=-1)[..., 0]
        return float(-chosen[answerable].mean())


def present_score(log_probs: np.ndarray) -> np.ndarray:
    """Log-odds of present against absent, (…, 3) → (…): the score that AUROC and AP rank by."""
    return log_probs[..., PRESENT] - log_probs[..., ABSENT]
