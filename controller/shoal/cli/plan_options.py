"""Command-line options of `shoal rollout start` and `shoal round plan` as plans for the API."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shoal.errors import SettingError

_SELECT = {"ring", "site", "profile", "line", "label"}
_GATE = {
    "percent": "percent",
    "threshold": "threshold_pct",
    "min": "min_executed",
    "disagree": "max_disagree_pct",
}
#: Default stages of a rollout: canary devices first, all others after.
DEFAULT_STAGES = ("canary:ring=canary", "everyone")
#: Default stages where no device is in the canary ring.
STAGES_WITHOUT_CANARIES = ("everyone",)


def stages(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Stage plans from `--stage` options, each "NAME:key=value,key=value".

    >>> stages(("first:ring=canary,threshold=1",))
    [{'name': 'first', 'select': {'ring': 'canary'}, 'threshold_pct': 1.0}]
    """
    return [_stage(text) for text in texts]


def gates(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Behaviour gates from `--gate` options, each "METRIC:key=value,key=value".

    >>> gates(("errors:tolerance=1.5", "latency"))
    [{'metric': 'errors', 'tolerance': 1.5}, {'metric': 'latency'}]
    """
    return [_behaviour_gate(text) for text in texts]


def read_plan(path: Path | None) -> dict[str, Any]:
    """A federated plan from a TOML file, {} without one; SettingError for a malformed file."""
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        hint = "docs/federated/running.md has a complete example"
        raise SettingError(f"{path}: {error}", hint) from error


def pairs(option: str, texts: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE,KEY=VALUE, with TOML values parsed; other values are text.

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


def override(plan: dict[str, Any], section: str, values: dict[str, Any]) -> None:
    """Set the given values (not None) in a section of the plan."""
    given = {name: value for name, value in values.items() if value is not None}
    if given:
        plan[section] = {**plan.get(section, {}), **given}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _stage(text: str) -> dict[str, Any]:
    name, _, rest = text.partition(":")
    plan: dict[str, Any] = {"name": name, "select": {}}
    for pair in filter(None, rest.split(",")):
        key, sign, value = pair.partition("=")
        if not sign or key not in _SELECT | set(_GATE):
            raise SettingError(
                f"--stage {text!r}: {pair!r}",
                "NAME:key=value,... with ring, site, profile, line, label, percent, threshold, "
                "min, disagree",
            )
        if key in _SELECT:
            plan["select"][key] = value
        else:
            _set_number(plan, text, key, value)
    return plan


def _behaviour_gate(text: str) -> dict[str, Any]:
    metric, _, rest = text.partition(":")
    keys = {"tolerance": "tolerance", "acceptable": "acceptable_pct"}
    found: dict[str, Any] = {"metric": metric}
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        try:
            found[keys[key]] = float(value)
        except (KeyError, ValueError):
            raise SettingError(
                f"--gate {text!r}: {pair!r}",
                "METRIC:key=number,... with tolerance (times as frequent) and acceptable (percent)",
            ) from None
    return found


def _set_number(plan: dict[str, Any], text: str, key: str, value: str) -> None:
    try:
        number = int(value) if key == "min" else float(value)
    except ValueError:
        raise SettingError(f"--stage {text!r}: {key} {value!r}", "give a number") from None
    target = plan["select"] if key == "percent" else plan
    target[_GATE[key]] = number
