"""How the options of `shoal round plan` become a federated task; docs/federated/running.md."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shoal.errors import SettingError


def read_plan(path: Path | None) -> dict[str, Any]:
    """A plan from a TOML file, {} without one; SettingError says what is wrong with the file."""
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{path}: {error}", "docs/federated/running.md has a whole one") from (
            error
        )


def pairs(option: str, texts: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE,KEY=VALUE as TOML values, where they are any; text otherwise.

    >>> pairs("--privacy", ["where=central,clip=2.0", "noise=1"])
    {'where': 'central', 'clip': 2.0, 'noise': 1}
    """
    found: dict[str, Any] = {}
    for text in (part for whole in texts for part in whole.split(",") if part):
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise SettingError(f"{option} {text!r}", f"write it as {option} KEY=VALUE,KEY=VALUE")
        found[key] = _value(value)
    return found


def over(plan: dict[str, Any], part: str, values: dict[str, Any]) -> None:
    """Put values over those of a part of the plan; nothing where there are none."""
    given = {name: value for name, value in values.items() if value is not None}
    if given:
        plan[part] = {**plan.get(part, {}), **given}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
