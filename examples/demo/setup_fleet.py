"""Step 1: a controller with its broker, and six agents that join with a token."""

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from demo import table
from demo.context import Context
from demo.processes import free_ports
from demo.scenario import Station
from shoal.cli import account
from shoal.cli.account import Account
from shoal.cli.api import Api, at
from shoal.cli.exit_codes import FailedError

WINDOW_S = 1.0
BASELINE_WINDOWS = 12
#: Requests a second, and rows in each.
_RATE_HZ, _BATCH = 10.0, 10


def set_up(context: Context) -> None:
    progress = context.progress
    with progress.step(1, "Set up: broker, controller, six devices"):
        first = _init(context)
        context.serve()
        _sign_in(context, first)
        progress.report(
            f"controller, console and broker run; console at [bold]{context.url}[/bold]"
        )
        _enrol(context)
        for station in context.scenario.stations:
            context.run_agent(station.name)
        _all_online(context)


def _init(context: Context) -> dict[str, Any]:
    port, artifacts, mqtt = free_ports(3)
    output = context.processes.output(
        "init", "shoal.controller", "init", "--folder", str(context.controller_folder),
        "--port", str(port), "--artifacts-port", str(artifacts), "--mqtt-port", str(mqtt),
        "--window-s", str(WINDOW_S), "--baseline-windows", str(BASELINE_WINDOWS),
        "--cycle", "none", "--json",
    )  # fmt: skip
    first: dict[str, Any] = msgspec.json.decode(output)
    settings = context.controller_folder / "controller.toml"
    change_toml(settings, {"fleet": {"jitter_s": 0.1, "offline_s": 150.0}})
    return first


def _sign_in(context: Context, first: dict[str, Any]) -> None:
    """As `shoal login`: pin the CA by its fingerprint, then request a token."""
    ca = (context.controller_folder / "pki" / "ca.pem").read_text()
    if account.root_fingerprint(ca) != first["ca_fingerprint"]:
        raise FailedError("step 1: init printed the fingerprint of another CA")
    context.url, context.user, context.password = first["url"], "admin", first["admin_password"]
    anonymous = Api(Account(url=context.url, ca=ca), trust_environment=False)
    context.progress.wait_for(
        "the controller starts", 60, lambda: anonymous.response("/readyz").is_success,
        lambda: anonymous.response("/readyz").text,
    )  # fmt: skip
    request = {
        "user": context.user, "password": context.password, "name": "shoal demo", "ttl_s": 86_400,
    }  # fmt: skip
    made = anonymous.post(at("tokens"), request)
    token = Account(url=context.url, token=made["secret"], ca=ca)
    context.api = Api(token, trust_environment=False)


def _enrol(context: Context) -> None:
    """Enrol all devices in parallel, with one token per site."""
    fleet = context.scenario.stations
    request = {"rings": ["stable", "canary"], "uses": 2, "ttl_s": 600}
    tokens = {
        site: context.api.post(at("join-tokens"), request | {"site": site})["secret"]
        for site in dict.fromkeys(station.site for station in fleet)
    }
    for station in fleet:
        context.csv(station.name).parent.mkdir(parents=True, exist_ok=True)
        table.write(context.scenario.streams[station.name], context.csv(station.name))
    context.processes.run_all(
        {f"enroll-{s.name}": _enrolment(context, s, tokens[s.site]) for s in fleet}, 60
    )
    for station in fleet:
        _configure(context, station)


def _enrolment(context: Context, station: Station, token: str) -> list[str]:
    return [
        "shoal.agent", "enroll", "--folder", str(context.agent_folder(station.name)),
        "--controller", context.url, "--token", token, "--name", station.name,
        "--ring", station.ring, "--profile", station.profile, "--line", "line-1",
        "--source", f"replay:{context.csv(station.name)}",
    ]  # fmt: skip


def _configure(context: Context, station: Station) -> None:
    source = {"label": context.scenario.label, "rate_hz": _RATE_HZ, "batch": _BATCH}
    update = {"observe_s": station.observe_s, "max_kbps": station.max_kbps}
    path = context.agent_folder(station.name) / "agent.toml"
    change_toml(path, {"source": source, "update": update})


def _all_online(context: Context) -> None:
    fleet = context.scenario.stations

    def look() -> bool:
        return all(context.device(station.name)["online"] for station in fleet)

    def seen() -> str:
        away = [s.name for s in fleet if not context.device(s.name)["online"]]
        return f"offline: {', '.join(away)}"

    context.progress.wait_for("all six devices come online", 60, look, seen)
    for station in fleet:
        device = context.device(station.name)
        context.progress.report(
            f"{device['name']} is online: site {device['site']}, ring {device['ring']}, "
            f"profile {device['profile']}"
        )


def change_toml(path: Path, tables: dict[str, dict[str, Any]]) -> None:
    """Set values in a TOML file of flat tables; other values stay, comments do not."""
    whole = tomllib.loads(path.read_text()) if path.exists() else {}
    for name, values in tables.items():
        whole[name] = whole.get(name, {}) | values
    path.write_text(_toml(whole))


def _toml(whole: dict[str, Any]) -> str:
    """TOML of scalars and flat tables; a value's JSON is its TOML."""
    flat = [f"{k} = {json.dumps(v)}" for k, v in whole.items() if not isinstance(v, dict)]
    for name, values in whole.items():
        if isinstance(values, dict):
            inner = {k: v for k, v in values.items() if not isinstance(v, dict)}
            flat += ["", f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in inner.items())]
            for key, deeper in values.items():
                if isinstance(deeper, dict):
                    pairs = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in deeper.items()]
                    flat += ["", f"[{name}.{key}]", *pairs]
    return "\n".join(flat) + "\n"
