"""Traps for test images that a probe has already seen."""

from collections.abc import Iterable
from itertools import combinations

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features


def check_leakage(train: Features, validation: Features, test: Features) -> None:
    """Refuse features whose training, validation and test sides share a patient or an image.

    Images are told apart by their ids; the same picture under another id and another patient is not found here.

    Raises:
        VividError: naming up to three patients or images that are on two sides.
    """
    sides = {"training": train, "validation": validation, "test": test}
    for (first, a), (second, b) in combinations(sides.items(), 2):
        _check("image", a.ids, b.ids, f"the probe's {first} and {second} features")
        _check("patient", a.patients, b.patients, f"the probe's {first} and {second} features")


def _check(what: str, first: Iterable[str], second: Iterable[str], where: str) -> None:
    both = sorted(set(map(str, first)) & set(map(str, second)))
    if both:
        more = f" and {len(both) - 3} more" if len(both) > 3 else ""
        raise VividError(
            f"{len(both)} {what}{'s' * (len(both) > 1)} on both sides of {where}: {', '.join(both[:3])}{more}. What is "
            "tested must be unknown to the probe: prepare the data again with one split by patient"
        )
