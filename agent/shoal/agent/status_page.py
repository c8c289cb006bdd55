"""The status page: what `shoal-agent status` says, for a browser on site. One screen, no script."""

from html import escape

from shoal.agent.host import clock_skew
from shoal.agent.status import ModelStanding, Standing, ago

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


def page(standing: Standing) -> str:
    """HTML of the whole; it loads itself anew every ten seconds."""
    link = "connected" if standing.connected else "not connected"
    since = ago(standing.now_s - standing.connection_since_s)
    who = [
        f"site {_or_dash(standing.site)}",
        escape(standing.profile),
        f"ring {escape(standing.ring)}",
        f"agent {escape(standing.agent)}",
    ]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width"><meta http-equiv=refresh content=10>',
        f"<title>{escape(standing.device)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(standing.device)}</h1>",
        f"<p>{' · '.join(who)}</p>",
        f"<p>{link} for {since}, {standing.waiting} messages waiting</p>",
        _problems(standing),
        _models(standing),
        _feeds(standing),
        f"<p>{escape(standing.learning)}</p>" if standing.learning else "",
        _health(standing),
    ]
    return "\n".join(part for part in parts if part)


def _problems(standing: Standing) -> str:
    problems = standing.problems
    if not problems:
        return "<div class=good>Nothing is wrong.</div>"
    items = [
        f"<li>{escape(what)}" + (f"<br><b>Do:</b> {escape(hint)}" if hint else "")
        for what, hint in problems
    ]
    return f"<div class=bad><b>Wrong:</b><ul>{''.join(items)}</ul></div>"


def _models(standing: Standing) -> str:
    if not standing.models:
        return ""
    head = "<tr><th>model<th>serves<th>variant<th>since<th>requests<th>errors<th>update"
    rows = [_model(model, standing.now_s) for model in standing.models]
    return f"<table>{head}{''.join(rows)}</table>"


def _model(model: ModelStanding, now_s: float) -> str:
    since = ago(now_s - model.since_s) if model.release else ""
    update = f"{model.wanted} {model.state}" if model.wanted not in ("", model.release) else ""
    cells = [
        model.model, model.release or "nothing", model.variant, since,
        str(model.requests), str(model.errors), update,
    ]  # fmt: skip
    return "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells)


def _feeds(standing: Standing) -> str:
    if not standing.feeds:
        return ""
    rows = [
        f"<tr><td>{escape(feed.kind)} {escape(feed.name)}<td>{'up' if feed.up else 'down'}"
        f"<td>{feed.count}<td>{feed.bad}<td>{escape(feed.error)}"
        for feed in standing.feeds
    ]
    return f"<table><tr><th>feed<th><th>so far<th>bad<th>{''.join(rows)}</table>"


def _health(standing: Standing) -> str:
    told = [
        f"{text} {standing.health[name]:g}{unit}"
        for name, text, unit in (
            ("rss_mb", "memory", " MB"),
            ("cpu_pct", "CPU", " %"),
            ("temp_c", "chip", " °C"),
            ("disk_free_mb", "disk free", " MB"),
        )
        if standing.health.get(name, -1) >= 0
    ]
    if standing.clock:
        told.append(f"clock {clock_skew.told(standing.clock)} the controller's")
    pace = [f"at level “{escape(standing.level)}”"] if standing.level != "full" else []
    return f"<p>{' · '.join([*told, *pace])}</p>"


def _or_dash(text: str) -> str:
    return escape(text) or "–"
