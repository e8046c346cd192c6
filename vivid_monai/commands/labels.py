"""``vivid labels``: list the label spaces, or show one."""

import argparse
from collections.abc import Iterator
from typing import Any

from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space


def register(subparsers: Any, *, summary: str = "") -> None:
    """Add the subcommand to the parser of ``vivid``."""
    parser = subparsers.add_parser(
        "labels",
        help=summary,
        description="List the label spaces of the package, or show one: its fields in order, other names, parents, "
        "sides, and the fields of other label spaces that mean the same.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME|FILE", help="a label space to show")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the list or the label space and return the exit status."""
    print("\n".join(_show(load_label_space(args.name)) if args.name else _list()))
    return 0


def _list() -> Iterator[str]:
    for name in available_label_spaces():
        space = load_label_space(name)
        yield f"{name:<16}  {len(space.fields):>2} fields  {space.description}"
    yield ""
    yield "Show one with: vivid labels NAME"


def _show(space: LabelSpace) -> Iterator[str]:
    yield f"{space.name}: {space.description}"
    yield f"Source: {space.source}"
    yield ""
    yield from _table(space)
    yield ""
    if space.exclusive:
        yield "Exclusive: at most one field is present."
    if space.sided:
        yield "Sided: images must not be mirrored."
    if space.no_finding:
        beside = ", ".join(f for f in space.fields if f in space.no_finding_compatible) or "nothing"
        yield f"Beside {space.no_finding}, present may be: {beside}."
    if space.none_label:
        yield f"Tables write {space.none_label!r} where every field is absent."
    for field, rating in space.ratings.items():
        yield (
            f"{field} is rated {rating.minimum:g} to {rating.maximum:g}: absent up to {rating.absent_at_most:g}, "
            f"present from {rating.present_at_least:g}, uncertain between."
        )
    for other in map(load_label_space, available_label_spaces()):
        if other.name != space.name and (mapping := space.mapping_to(other)):
            pairs = (here if here == there else f"{here} = {there}" for here, there in mapping.items())
            yield f"Shared with {other.name}: {', '.join(pairs)}."


def _table(space: LabelSpace) -> Iterator[str]:
    rows = [("", "field", "parent", "side", "also called")]
    for index, (field, label) in enumerate(zip(space.fields, space.labels, strict=True)):
        names = (name for name in (label, *space.aliases[field]) if name != field)
        side, parent = space.sides.get(field, ""), space.parents.get(field, "")
        rows.append((str(index), field, parent, side, ", ".join(names)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
