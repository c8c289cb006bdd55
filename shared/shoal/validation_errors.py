"""Validation errors of msgspec as a field path, a message and a hint."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec

from shoal.errors import SettingError, ShoalError

_WHERE = re.compile(r"(.*) - at `(?:key in )?\$\.?(.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_CHOICE = re.compile(r"Invalid enum value (.*)")


class FieldError(NamedTuple):
    """One invalid field.

    where   path such as "device.ring"; "" for the whole document
    hint    the names that exist instead; "" where unknown
    """

    where: str
    what: str
    hint: str = ""


@contextmanager
def decode_errors_as(error: Callable[[Exception], ShoalError]) -> Iterator[None]:
    """Translate the errors of msgspec for damaged or hostile bytes.

    error   makes the error to raise of msgspec's

    >>> with decode_errors_as(lambda cause: SettingError(f"pipeline: {cause}")):
    ...     msgspec.json.decode(b"{", type=dict)
    Traceback (most recent call last):
    shoal.errors.SettingError: pipeline: Input data was truncated
    """
    try:
        yield
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise error(cause) from cause


def field_error(error: msgspec.ValidationError, kind: Any) -> FieldError:
    """Explain a validation error.

    kind   the struct that was decoded

    >>> class Pace(msgspec.Struct, forbid_unknown_fields=True):
    ...     goal: int
    >>> class Plan(msgspec.Struct):
    ...     pace: Pace
    >>> try:
    ...     msgspec.convert({"pace": {"gaol": 3}}, Plan)
    ... except msgspec.ValidationError as error:
    ...     field_error(error, Plan)
    FieldError(where='pace', what="unknown field 'gaol'", hint='there are: goal')
    """
    found = _WHERE.fullmatch(str(error))
    what, where = found.groups() if found else (str(error), "")
    wanted = _at(kind, where.split(".") if where else [])
    if unknown := _UNKNOWN.fullmatch(what):
        return FieldError(where, f"unknown field {unknown[1]!r}", _listing(_fields(wanted)))
    if missing := _MISSING.fullmatch(what):
        return FieldError(where, f"no {missing[1]!r}, which is needed")
    if choice := _CHOICE.fullmatch(what):
        return FieldError(where, f"no {choice[1]}", _listing(_choices(wanted)))
    return FieldError(where, what)


def setting_error(
    what: str, error: msgspec.ValidationError, kind: Any, within: str = ""
) -> SettingError:
    """SettingError for an invalid file.

    what     the file
    within   path of the part that was decoded as `kind`, such as "sources.pump"
    """
    found = field_error(error, kind)
    where = ".".join(filter(None, (within, found.where)))
    return SettingError(": ".join(filter(None, (what, where, found.what))), found.hint)


def _listing(names: tuple[str, ...]) -> str:
    return f"there are: {', '.join(names)}" if names else ""


def _at(kind: Any, steps: list[str]) -> Any:
    """The type at the end of a path; None where the path leaves structs."""
    for step in steps:
        struct = next(_structs(kind), None)
        kind = get_type_hints(struct).get(step) if struct else None
    return kind


def _fields(kind: Any) -> tuple[str, ...]:
    struct = next(_structs(kind), None)
    return struct.__struct_encode_fields__ if struct else ()


def _structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """Structs of a type: itself, or the members of a union."""
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            yield one


def _choices(kind: Any) -> tuple[str, ...]:
    """Values of a Literal or an Enum, or of those in a union."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(str(one.value) for one in kind)
    within = get_args(kind)
    if all(isinstance(one, str) for one in within):
        return within
    return tuple(choice for one in within for choice in _choices(one))
