"""How `--stage` options become a rollout plan."""

from typing import Any

from shoal.errors import SettingError

_SELECT = {"ring", "site", "profile", "label"}
_GATE = {
    "percent": "percent",
    "threshold": "threshold_pct",
    "min": "min_executed",
    "disagree": "max_disagree_pct",
}
#: Canary devices first, everybody else after: what a rollout does unless told otherwise.
DEFAULT = ("canary:ring=canary", "everyone")
#: ... and where no device is a canary.
WITHOUT_CANARIES = ("everyone",)


def parse(texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """Stage plans of `texts`, each "NAME:key=value,key=value".

    >>> parse(("first:ring=canary,threshold=1",))
    [{'name': 'first', 'select': {'ring': 'canary'}, 'threshold_pct': 1.0}]
    """
    return [_stage(text) for text in texts]


def _stage(text: str) -> dict[str, Any]:
    name, _, rest = text.partition(":")
    plan: dict[str, Any] = {"name": name, "select": {}}
    for pair in filter(None, rest.split(",")):
        key, sign, value = pair.partition("=")
        if not sign or key not in _SELECT | set(_GATE):
            raise SettingError(
                f"--stage {text!r}: {pair!r}",
                "NAME:key=value,... with ring, site, profile, label, percent, threshold, min, "
                "disagree",
            )
        if key in _SELECT:
            plan["select"][key] = value
        else:
            _put(plan, text, key, value)
    return plan


def _put(plan: dict[str, Any], text: str, key: str, value: str) -> None:
    try:
        number = int(value) if key == "min" else float(value)
    except ValueError:
        raise SettingError(f"--stage {text!r}: {key} {value!r}", "give a number") from None
    place = plan["select"] if key == "percent" else plan
    place[_GATE[key]] = number
