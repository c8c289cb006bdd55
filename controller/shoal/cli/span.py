"""Options that hold a span of time ("90s", "12h") or name=value pairs."""

from typing import Any

import click

from shoal.errors import SettingError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Span(click.ParamType):
    """Seconds from "90", "90s", "5m", "12h" or "30d"."""

    name = "span"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip()
        unit = _SECONDS.get(text[-1:], 0)
        try:
            seconds = float(text[:-1]) * unit if unit else float(text)
        except ValueError:
            self.fail(f"{value!r} is no span of time; write 90s, 5m, 12h or 30d", param, ctx)
        return seconds


SPAN = Span()


def pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """Options written as NAME=VALUE, as a dictionary.

    >>> pairs(("a=1", "b=x=y"), "--param")
    {'a': '1', 'b': 'x=y'}
    """
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise SettingError(f"{option} {text!r}", f"write it as {option} NAME=VALUE")
        found[name] = value
    return found
