"""Masking policies: what is done to each column of a table before any of it is stored.

A policy is a TOML document:

    others = "keep"              # columns without a rule: "keep", or "drop"

    [columns.patient]
    rule = "hash"

    [columns.age]
    rule = "bucket"
    width = 10
"""

import json
import math
import tomllib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from shoal.errors import SettingError
from shoal.validation_errors import setting_error

#: Characters of a policy.
MAX_POLICY = 1 << 18
_WHAT = "masking policy"
_Key = Annotated[str, msgspec.Meta(pattern="^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="rule"):
    """What is done to a column. optional: a table may be without it."""

    optional: bool = False


class Drop(Rule, frozen=True, kw_only=True, tag="drop"):
    """The column is not stored."""


class Keep(Rule, frozen=True, kw_only=True, tag="keep"):
    """The column is stored as it is: somebody has looked at it."""


class Hash(Rule, frozen=True, kw_only=True, tag="hash"):
    """HMAC-SHA-256 (RFC 2104) of the value, 32 hex digits. key: name of the controller's key."""

    key: _Key = "default"


class Generalise(Rule, frozen=True, kw_only=True, tag="generalise"):
    """A category instead of a value, by exactly one of three.

    prefix    the first characters, so many
    top       the most frequent values, so many, that at least `at_least` rows have
    map       value -> category: text, or numbers alone

    other     instead of all others; without it "other" for `top`, missing for `map`
    """

    prefix: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0
    top: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0
    at_least: Annotated[int, msgspec.Meta(ge=1)] = 5
    map: dict[str, str | float] = {}
    other: str | float | None = None


class Bucket(Rule, frozen=True, kw_only=True, tag="bucket"):
    """The lower edge of the bucket that a number is in.

    width   of all buckets, the first from 0; or
    edges   rising: what is below the first becomes the first, what is above the last the last
    """

    width: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    edges: list[float] = []


class Shift(Rule, frozen=True, kw_only=True, tag="shift"):
    """A date, moved by as many days as all others of its subject, so intervals stay.

    subject   column that names whom the row is about; it may have any rule
    days      the most that is moved, in either direction; never 0
    format    of strptime; "" for ISO 8601
    """

    subject: str
    days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] = 180
    format: str = ""
    key: _Key = "default"


AnyRule = Drop | Keep | Hash | Generalise | Bucket | Shift


class MaskingPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """columns: rules by column. others: what is done to columns without one."""

    columns: dict[str, AnyRule]
    others: Literal["keep", "drop"] = "keep"


def parse(text: str) -> MaskingPolicy:
    """The policy of a TOML document; SettingError names the column and what is wrong."""
    if len(text) > MAX_POLICY:
        raise SettingError(f"{_WHAT}: more than {MAX_POLICY} characters", "shorten its maps")
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingError(f"{_WHAT}: {error}", "write it as docs/privacy.md shows") from error
    try:
        policy = msgspec.convert(found, MaskingPolicy)
    except msgspec.ValidationError as error:
        raise setting_error(_WHAT, error, MaskingPolicy) from error
    if not any(not rule.optional for rule in policy.columns.values()):
        raise SettingError(
            f"{_WHAT}: no column has a rule that is not optional",
            'name at least one: [columns.email] rule = "drop"',
        )
    for name, rule in policy.columns.items():
        if problem := _problem(name, rule):
            raise SettingError(f"{_WHAT}: column {name!r}: {problem[0]}", problem[1])
    return policy


def to_toml(policy: MaskingPolicy) -> str:
    """The document of a policy, with defaults left out; `parse` reads it.

    >>> text = '[columns."a b"]\\nrule = "bucket"\\nwidth = 10\\n'
    >>> print(to_toml(parse(text)))
    others = "keep"
    <BLANKLINE>
    [columns."a b"]
    rule = "bucket"
    width = 10.0
    <BLANKLINE>
    """
    lines = [f'others = "{policy.others}"']
    for name, rule in policy.columns.items():
        lines += ["", f"[columns.{_quoted(name)}]", f'rule = "{kind_of(rule)}"']
        lines += [f"{key} = {_value(value)}" for key, value in _given(rule)]
    return "\n".join(lines) + "\n"


def kind_of(rule: AnyRule) -> str:
    """Its name in a policy: "drop", "hash", ..."""
    return str(rule.__struct_config__.tag)


def described(rule: AnyRule) -> str:
    """What a rule does, for a person.

    >>> described(Bucket(width=10)), described(Hash())
    ('buckets of 10', "keyed hash, key 'default'")
    """
    match rule:
        case Drop():
            return "not stored"
        case Keep():
            return "kept as it is"
        case Hash():
            return f"keyed hash, key {rule.key!r}"
        case Generalise(prefix=prefix) if prefix:
            return f"the first {prefix} characters"
        case Generalise(top=top) if top:
            return f"the {top} most frequent, of at least {rule.at_least} rows each"
        case Generalise():
            return f"categories by a map of {len(rule.map)}"
        case Bucket(width=width) if width:
            return f"buckets of {width:g}"
        case Bucket():
            return f"{len(rule.edges)} buckets, {rule.edges[0]:g} to {rule.edges[-1]:g}"
        case Shift():
            return f"dates moved by up to {rule.days} days, the same for each {rule.subject}"


def _problem(name: str, rule: AnyRule) -> tuple[str, str] | None:
    """What is wrong with a rule, and what to do."""
    if name != name.strip() or not name:
        return "spaces around the name", "columns are named without the spaces around them"
    if isinstance(rule, Generalise):
        ways = [way for way in ("prefix", "top", "map") if getattr(rule, way)]
        if len(ways) != 1:
            return "generalise by exactly one of prefix, top, map", "such as: prefix = 2"
        if not all(isinstance(v, str) or math.isfinite(v) for v in rule.map.values()):
            return "a category that is not finite", "write a number, or text"
    if isinstance(rule, Bucket):
        edges = rule.edges
        if bool(rule.width) == bool(edges) or not math.isfinite(rule.width):
            return "a bucket has a width, or edges", "such as: width = 10"
        if edges and (not all(map(math.isfinite, edges)) or sorted(set(edges)) != edges):
            return "edges that do not rise", "such as: edges = [0, 18, 65]"
    if isinstance(rule, Shift) and rule.subject == name:
        return "a date is not its own subject", "name the column of whom the row is about"
    return None


def _given(rule: AnyRule) -> Iterator[tuple[str, Any]]:
    defaults = dict(zip(rule.__struct_fields__[::-1], rule.__struct_defaults__[::-1], strict=False))
    for field in rule.__struct_fields__:
        value = getattr(rule, field)
        default = defaults.get(field, msgspec.NODEFAULT)
        if isinstance(value, list | dict):
            default = type(value)()
        if value != default:
            yield field, value


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_quoted(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """A basic string of TOML 1.0: JSON's escapes are among its own, but for DEL and surrogates."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
