"""The JSON Schemas of the package, and what they say about a piece of JSON."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from vivid_monai.errors import VividError

UMS_VERSION: Final = "1.0"
SCHEMA_FILES: Final = resources.files("vivid_monai.ums") / "schemas"


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One thing that is wrong: where (JSON pointer, RFC 6901), its kind, and a sentence for people."""

    pointer: str
    code: str
    message: str


def pointer(*parts: str | int) -> str:
    """Return the JSON pointer (RFC 6901) of a path: "~" and "/" inside a part are escaped; no part is the top, ""."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def parse_json(text: str, *, where: str = "JSON") -> Any:
    """Return the value of JSON text; NaN and infinities come through as floats, for the checks to find.

    Raises VividError, with ``where`` before it, on broken JSON and on an object that has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise VividError(f"{where}: key {twice!r} stands twice in one object; keep one")
        return out

    try:
        return json.loads(text, object_pairs_hook=unique)
    except VividError:
        raise
    except ValueError as error:
        raise VividError(f"{where}: not JSON: {error}") from error
    except RecursionError as error:
        raise VividError(f"{where}: not JSON of ours: nested too deeply") from error


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads((SCHEMA_FILES / name).read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def schema_violations(record: Any) -> list[Violation]:
    """Return everything in a record's JSON object that breaks the UMS schema, numbers that are not finite included."""
    return _violations(f"ums-{UMS_VERSION}.schema.json", record)


def label_space_violations(data: Any) -> list[Violation]:
    """Return everything in the JSON of a label space that breaks its schema."""
    return _violations("label-space-1.0.schema.json", data)


def _violations(name: str, data: Any) -> list[Violation]:
    numbers = set(_not_finite(data))
    broken = (v for error in _validator(name).iter_errors(data) for v in _sentences(error))
    # A number that is not finite is told once, as that, not also as out of range.
    told = {violation.pointer for violation in numbers}
    return sorted({*numbers, *(violation for violation in broken if violation.pointer not in told)})


def _not_finite(data: Any) -> Iterator[Violation]:
    # A stack instead of recursion: JSON may be nested more deeply than Python calls.
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), data)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack.extend(((*path, key), item) for key, item in value.items())
        elif isinstance(value, list):
            stack.extend(((*path, index), item) for index, item in enumerate(value))
        elif isinstance(value, int | float) and not is_finite(value):
            yield Violation(pointer(*path), "number", f"{_short(value)} is not a finite number")


def is_finite(value: float) -> bool:
    """Return whether a number is finite and fits a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _sentences(error: ValidationError) -> Iterator[Violation]:
    """Turn one schema error into violations, one for each part that is wrong, in words that stay short."""
    path, value, rule, kind = tuple(error.absolute_path), error.instance, error.validator_value, str(error.validator)
    if kind == "additionalProperties":
        known = error.schema["properties"]
        for key in value:
            if key not in known:
                message = f"unknown key {_short(key)}; known here: {', '.join(known)}"
                yield Violation(pointer(*path, key), "schema", message)
        return
    if kind == "required":
        yield from (Violation(pointer(*path), "schema", f"key {key!r} is missing") for key in rule if key not in value)
        return
    code, message = "schema", error.message
    if kind == "type":
        message = f"{_short(value)} is not of type {rule}"
    elif kind in ("enum", "const"):
        code = "enum"
        allowed = rule if kind == "enum" else [rule]
        message = f"{_short(value)} is not one of {', '.join(json.dumps(item) for item in allowed)}"
    elif kind in ("minimum", "maximum"):
        code = "range"
        message = f"{_short(value)} is {'below' if kind == 'minimum' else 'above'} {rule}"
    elif kind in ("minLength", "minItems"):
        message = "must not be empty; leave it out where there is nothing to say"
    elif kind == "pattern":
        message = f"{_short(value)} does not match {rule}"
    yield Violation(pointer(*path), code, message)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, dict | list) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}…"
