"""How fast a run is: images per second, the operations of a step, and the speed of a matrix product to compare with."""

import time
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


class Pace:
    """Trainer handler that counts the images of all processes, and the seconds of their steps, since :meth:`restart`.

    Waiting for data counts; what is done between epochs, such as validation, does not.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from here on."""
        self.images, self.seconds, self._since = 0, 0.0, time.perf_counter()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)

    @property
    def images_per_s(self) -> float:
        """NaN before the first step."""
        return self.images / self.seconds if self.seconds else float("nan")

    def _begin(self) -> None:
        self._since = time.perf_counter()

    def _add(self, engine: Engine) -> None:
        self.images += len(engine.state.batch["image"]) * idist.get_world_size()  # type: ignore[index, call-overload]
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now


def operations() -> FlopCounterMode:
    """torch's counter of floating-point operations, which prints nothing and knows the attention of CPUs, too."""
    aten = torch.ops.aten

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    cpu: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=cpu)


def product_rate(device: torch.device | str, dtype: torch.dtype, *, side: int | None = None) -> float:
    """FLOP per second of a square matrix product; the global random state is left as it was.

    Args:
        side: of the matrices; None: 8192 on a GPU, 1024 elsewhere, which takes a second at most.
    """
    device = torch.device(device)
    n, times = side or (8192 if device.type == "cuda" else 1024), 50 if device.type == "cuda" else 5
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, n, generator=generator).to(device, dtype)

    def seconds(products: int) -> float:
        started = time.perf_counter()
        for _ in range(products):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / products

    seconds(1)
    return 2 * n**3 / seconds(times)
