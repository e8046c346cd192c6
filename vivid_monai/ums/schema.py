"""The JSON Schemas of UMS records and label spaces, and validation against them."""

import json
import math
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any, Final, NamedTuple

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from vivid_monai.errors import VividError

UMS_VERSION: Final = "1.1"
SCHEMA_FILES: Final = resources.files("vivid_monai.ums") / "schemas"
_CODES = {"enum": "enum", "const": "enum", "minimum": "range", "maximum": "range"}


class Violation(NamedTuple):
    """One thing that is wrong: where (JSON pointer, RFC 6901), its kind, and a sentence for people."""

    pointer: str
    code: str
    message: str


def pointer(*parts: str | int) -> str:
    """Return the JSON pointer (RFC 6901) of a path: "~" and "/" inside a part are escaped; no part is the top, ""."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def parse_json(text: str, *, where: str = "JSON") -> Any:
    """Return the value of JSON text; NaN and infinities come through as floats, for the checks to find.

    Raises VividError, with ``where`` before it, on broken JSON, on an object that has a key twice, and on half of a
    surrogate pair, which JSON can say and no file can hold.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise VividError(f"{where}: key {twice!r} stands twice in one object; keep one")
        return out

    try:
        value = json.loads(text, object_pairs_hook=unique)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except VividError:
        raise
    except UnicodeEncodeError as error:
        raise VividError(f"{where}: holds half of a surrogate pair ({error.object[error.start]!r}), no text") from error
    except ValueError as error:
        raise VividError(f"{where}: not JSON: {error}") from error
    except RecursionError as error:
        raise VividError(f"{where}: not JSON of ours: nested too deeply") from error


@cache
def load_schema(path: tuple[str, ...] = (), *, name: str = f"ums-{UMS_VERSION}") -> dict[str, Any]:
    """Return a JSON Schema of the package: that of records, or "label-space-1.0". It is shared: do not change it.

    ``path``: the keys of a value, ("image", "height"), for the part of the schema that judges it.
    """
    schema = json.loads((SCHEMA_FILES / f"{name}.schema.json").read_text(encoding="utf-8"))
    for key in path:
        schema = schema["properties"][key]
    return schema


@cache
def _validator(path: tuple[str, ...], name: str) -> Draft202012Validator:
    return Draft202012Validator(load_schema(path, name=name))


def schema_violations(data: Any, at: tuple[str, ...] = (), *, schema: str = f"ums-{UMS_VERSION}") -> list[Violation]:
    """Return everything in a record's JSON object that breaks its schema, numbers that are not finite included.

    ``at``: the keys of a value of the record, ("image", "height"), where ``data`` is that value by itself.
    """
    numbers = set(_not_finite(data, at))
    try:
        broken = [v for error in _validator(at, schema).iter_errors(data) for v in _sentences(error, at)]
    except RecursionError:
        return [Violation(pointer(*at), "schema", "nested too deeply")]
    # A number that is not finite is one violation, not also one that is out of range.
    places = {violation.pointer for violation in numbers}
    return sorted({*numbers, *(violation for violation in broken if violation.pointer not in places)})


def _not_finite(data: Any, at: tuple[str, ...]) -> Iterator[Violation]:
    # A stack instead of recursion: JSON may be nested more deeply than Python calls.
    stack: list[tuple[tuple[str | int, ...], Any]] = [(at, data)]
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


def _sentences(error: ValidationError, at: tuple[str, ...]) -> Iterator[Violation]:
    """Turn one schema error into violations; the message is jsonschema's own, with the value cut short."""
    path, value = (*at, *error.absolute_path), error.instance
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        for key in value:
            if key not in known:
                yield Violation(
                    pointer(*path, key), "schema", f"unknown key {_short(key)}; known here: {', '.join(known)}"
                )
    else:
        # Messages that speak of the value begin with it.
        message = error.message.removeprefix(repr(value))
        message = error.message if message == error.message else f"{_short(value)}{message}"
        yield Violation(pointer(*path), _CODES.get(str(error.validator), "schema"), message)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, dict | list) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}…"
