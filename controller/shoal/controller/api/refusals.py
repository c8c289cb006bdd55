"""What does not fit its struct, said by the field's name as a person writes it."""

import re
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec

from shoal.controller.federated.records import NAME_PATTERN
from shoal.errors import InputError

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")
#: Pattern -> what it asks for.
_PATTERNS = {
    NAME_PATTERN: "lower-case letters, digits and hyphens, 63 at most, no hyphen at either end"
}


def refused(what: str, error: msgspec.ValidationError, kind: Any) -> InputError:
    """
    what   "body", "query" or "form"; kind: the struct that it was to be

    >>> class Pace(msgspec.Struct, forbid_unknown_fields=True):
    ...     goal: int
    >>> try:
    ...     msgspec.convert({"gaol": 3}, Pace)
    ... except msgspec.ValidationError as error:
    ...     print(refused("body", error, Pace))
    body: unknown field 'gaol'; there are: goal
    """
    text, _, path = str(error).partition(" - at `$")
    steps = [step for step in path.rstrip("`").split(".") if step]
    where = ": ".join([what, *([".".join(steps)] if steps else [])])
    if found := _UNKNOWN.fullmatch(text):
        known = ", ".join(_fields(kind, steps))
        mend = f"there are: {known}" if known else ""
        return InputError(f"{where}: unknown field {found[1]!r}", mend)
    if found := _MISSING.fullmatch(text):
        return InputError(f"{where}: no {found[1]!r}, which is needed")
    for pattern, asked in _PATTERNS.items():
        if repr(pattern) in text:
            return InputError(f"{where}: not a name", f"write it with {asked}")
    return InputError(f"{where}: {text}")


def _fields(kind: Any, steps: list[str]) -> tuple[str, ...]:
    """Of the struct at the end of a path; none where the path leaves structs."""
    for step in steps:
        struct = next(_structs(kind), None)
        kind = get_type_hints(struct).get(step) if struct else None
    struct = next(_structs(kind), None)
    return struct.__struct_encode_fields__ if struct else ()


def _structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The type itself, or those of a union, that are structs."""
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            yield one
