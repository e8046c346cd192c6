"""The bundle's evaluation workflow: encoders by name, a task, and a folder for everything about the result."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder, VividEncoder, load_encoder
from vivid_monai.evaluation.evaluate import Evaluated, evaluate
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.output import finish, print_output
from vivid_monai.evaluation.results import Results
from vivid_monai.evaluation.task import Task

Specs = str | Sequence[str] | Mapping[str, str | Sequence[str]]


class Evaluation:
    """What ``configs/evaluate.json`` runs.

    Args:
        task: images and fields.
        store: where features come from.
        encoder: a spec of :func:`~vivid_monai.evaluation.encoders.load_encoder`; several of them, one per seed (as many
            pretraining runs of one recipe); or name → spec or specs, to compare encoders on the same images.
        baseline: "untrained" adds the first encoder's network as it is before any training, where it is one of ours;
            "none" adds nothing; anything else is the spec of an encoder to add.
        pool: which of an encoder's tokens make the features; None: each encoder's default.
        output_dir: where results go.
        n_examples: test images that the page shows with the attention maps of SPD; 0 for none.
        seeds, options: as of :func:`~vivid_monai.evaluation.evaluate.evaluate`.
    """

    def __init__(
        self,
        task: Task,
        store: FeatureStore,
        encoder: Specs,
        *,
        output_dir: str | Path,
        baseline: str = "none",
        pool: str | None = None,
        n_examples: int = 6,
        seeds: Sequence[int] = (0,),
        **options: Any,
    ) -> None:
        self.task, self.store, self.output_dir = task, store, Path(output_dir)
        self.specs = named(encoder)
        self.baseline, self.pool, self.n_examples = baseline, pool, n_examples
        self.seeds, self.options = list(seeds), options

    def run(self) -> Results:
        """Evaluate, write everything, print the table and where it lies."""
        encoders = self._encoders()
        evaluated = evaluate(encoders, self.task, self.store, seeds=self.seeds, **self.options)
        return self._finish(encoders, evaluated)

    def _encoders(self) -> dict[str, list[Encoder]]:
        longest = max(len(specs) for specs in self.specs.values())
        if longest > 1 and self.seeds == [0]:
            self.seeds = list(range(longest))
        encoders = {name: [load_encoder(spec, pool=self.pool) for spec in specs] for name, specs in self.specs.items()}
        first_specs, first = next(zip(self.specs.values(), encoders.values(), strict=True))
        if self.baseline == "untrained":
            if isinstance(first[0], VividEncoder):
                encoders["untrained"] = [
                    load_encoder(f"untrained:{spec}", pool=self.pool, seed=seed)
                    for spec, seed in zip(first_specs, self.seeds, strict=False)
                ]
            else:
                print(
                    "No untrained baseline: it is made for this package's own encoders only; name one with --baseline "
                    "SPEC, or say --baseline none",
                    file=sys.stderr,
                )
        elif self.baseline != "none":
            encoders["baseline"] = [load_encoder(self.baseline, pool=self.pool)]
        return encoders

    def _finish(self, encoders: Mapping[str, Sequence[Encoder]], evaluated: Evaluated) -> Results:
        shown = next(iter(encoders.values()))[0]
        spec = next(iter(self.specs.values()))[0]
        spd = Path(spec).with_name("spd.safetensors")
        results = finish(
            evaluated,
            self.task,
            self.output_dir,
            shown=shown,
            spd=spd if spd.is_file() else None,
            n_examples=self.n_examples,
        )
        print_output(results, self.output_dir)
        return results


def named(encoder: Specs) -> dict[str, list[str]]:
    """Specs by name: ``"x.safetensors"`` → ``{"encoder": ["x.safetensors"]}``.

    Raises:
        VividError: nothing to evaluate, or a name that predictions.csv could not hold.
    """
    by_name = encoder if isinstance(encoder, Mapping) else {"encoder": encoder}
    specs = {name: [one] if isinstance(one, str) else list(one) for name, one in by_name.items()}
    if not specs or not all(one and all(one) for one in specs.values()):
        raise VividError("there is no encoder: give --encoder PATH, or a name and a path for each of several")
    if taken := {"untrained", "baseline"} & specs.keys():
        raise VividError(f"the name {taken.pop()!r} is taken by what --baseline adds: call this encoder otherwise")
    if wrong := [name for name in specs if not name.strip() or set("@:/") & set(name)]:
        raise VividError(f"{wrong[0]!r} cannot name an encoder: leave out @, : and /")
    return specs
