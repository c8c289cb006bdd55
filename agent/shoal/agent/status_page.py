"""The status page: `shoal-agent status` as HTML, for a browser on site. One screen, no script."""

from html import escape

from shoal.agent.host import clock_skew
from shoal.agent.status import DeviceStatus, ModelStatus, ago

_STYLE = """
body{font:16px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:52rem;padding:0 1rem;
color:#1c2430;background:#fff}h1{font-size:1.4rem;margin:0}p{margin:.3rem 0}
table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{text-align:left;padding:.35rem .6rem;
border-bottom:1px solid #ccd3dc;vertical-align:top}th{font-weight:600}
.good,.bad{padding:.6rem .8rem;border-left:.4rem solid;margin:1rem 0}
.good{border-color:#1a7f37;background:#eaf6ec}
.bad{border-color:#b3261e;background:#fdeeed}.bad li{margin:.3rem 0}
@media(prefers-color-scheme:dark){body{color:#e6e9ee;background:#14181f}th,td{border-color:#3a4350}
.good{background:#12301b}.bad{background:#3b1917}}
"""


def page(status: DeviceStatus) -> str:
    """The page as HTML; it reloads itself every ten seconds."""
    link = "connected" if status.connected else "not connected"
    since = ago(status.now_s - status.connection_since_s)
    who = [
        f"site {_or_dash(status.site)}",
        escape(status.profile),
        f"ring {escape(status.ring)}",
        f"agent {escape(status.agent)}",
    ]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width"><meta http-equiv=refresh content=10>',
        f"<title>{escape(status.device)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(status.device)}</h1>",
        f"<p>{' · '.join(who)}</p>",
        f"<p>{link} for {since}, {status.waiting} messages waiting</p>",
        _problems(status),
        _models(status),
        _feeds(status),
        f"<p>{escape(status.learning)}</p>" if status.learning else "",
        _health(status),
    ]
    return "\n".join(part for part in parts if part)


def _problems(status: DeviceStatus) -> str:
    problems = status.problems
    if not problems:
        return "<div class=good>Nothing is wrong.</div>"
    items = [
        f"<li>{escape(what)}" + (f"<br><b>Do:</b> {escape(hint)}" if hint else "")
        for what, hint in problems
    ]
    return f"<div class=bad><b>Wrong:</b><ul>{''.join(items)}</ul></div>"


def _models(status: DeviceStatus) -> str:
    if not status.models:
        return ""
    head = "<tr><th>model<th>serves<th>variant<th>since<th>requests<th>errors<th>update"
    rows = [_model(model, status.now_s) for model in status.models]
    return f"<table>{head}{''.join(rows)}</table>"


def _model(model: ModelStatus, now_s: float) -> str:
    since = ago(now_s - model.since_s) if model.release else ""
    update = f"{model.wanted} {model.state}" if model.wanted not in ("", model.release) else ""
    cells = [
        model.model, model.release or "nothing", model.variant, since,
        str(model.requests), str(model.errors), update,
    ]  # fmt: skip
    return "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells)


def _feeds(status: DeviceStatus) -> str:
    if not status.feeds:
        return ""
    rows = [
        f"<tr><td>{escape(feed.kind)} {escape(feed.name)}<td>{'up' if feed.up else 'down'}"
        f"<td>{feed.count}<td>{feed.bad}<td>{escape(feed.error)}"
        for feed in status.feeds
    ]
    return f"<table><tr><th>feed<th><th>so far<th>bad<th>{''.join(rows)}</table>"


def _health(status: DeviceStatus) -> str:
    parts = [
        f"{text} {status.health[name]:g}{unit}"
        for name, text, unit in (
            ("rss_mb", "memory", " MB"),
            ("cpu_pct", "CPU", " %"),
            ("temp_c", "chip", " °C"),
            ("disk_free_mb", "disk free", " MB"),
        )
        if status.health.get(name, -1) >= 0
    ]
    if status.clock:
        parts.append(f"clock {clock_skew.describe(status.clock)} the controller's")
    level = [f"at level “{escape(status.level)}”"] if status.level != "full" else []
    return f"<p>{' · '.join([*parts, *level])}</p>"


def _or_dash(text: str) -> str:
    return escape(text) or "–"
