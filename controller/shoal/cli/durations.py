"""Option type for durations: "90s", "12h"."""

from typing import Any

import click

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class DurationType(click.ParamType):
    """Seconds from "90", "90s", "5m", "12h" or "30d"."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip()
        unit = _SECONDS.get(text[-1:], 0)
        try:
            seconds = float(text[:-1]) * unit if unit else float(text)
        except ValueError:
            self.fail(f"{value!r} is no duration; write 90s, 5m, 12h or 30d", param, ctx)
        return seconds


DURATION = DurationType()
