"""Step 1: a controller with its broker, and six agents that join with a token."""

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from demo import table
from demo.processes import free_ports
from demo.scenario import Station
from demo.world import World
from shoal.cli import account
from shoal.cli.account import Account
from shoal.cli.api import Api, at
from shoal.cli.exit_codes import FailedError

WINDOW_S = 1.0
BASELINE_WINDOWS = 12
#: Requests a second, and rows in each.
_RATE_HZ, _BATCH = 10.0, 10


def set_up(world: World) -> None:
    story = world.story
    with story.step(1, "Set up: broker, controller, six devices"):
        first = _init(world)
        world.serve()
        _sign_in(world, first)
        story.tell(f"controller, console and broker answer; console at [bold]{world.url}[/bold]")
        _enrol(world)
        for station in world.scenario.stations:
            world.run_agent(station.name)
        _all_online(world)


def _init(world: World) -> dict[str, Any]:
    port, artifacts, mqtt = free_ports(3)
    told = world.processes.output(
        "init", "shoal.controller", "init", "--folder", str(world.controller_folder),
        "--port", str(port), "--artifacts-port", str(artifacts), "--mqtt-port", str(mqtt),
        "--window-s", str(WINDOW_S), "--baseline-windows", str(BASELINE_WINDOWS), "--json",
    )  # fmt: skip
    first: dict[str, Any] = msgspec.json.decode(told)
    settings = world.controller_folder / "controller.toml"
    change_toml(settings, {"fleet": {"jitter_s": 0.1, "offline_s": 150.0}})
    return first


def _sign_in(world: World, first: dict[str, Any]) -> None:
    """As `shoal login` does it: pin the CA by its fingerprint, then ask for a token."""
    ca = (world.controller_folder / "pki" / "ca.pem").read_text()
    if account.root_fingerprint(ca) != first["ca_fingerprint"]:
        raise FailedError("step 1: init named another CA than it made")
    world.url, world.user, world.password = first["url"], "admin", first["admin_password"]
    anonymous = Api(Account(url=world.url, ca=ca), trust_environment=False)
    world.story.until(
        "the controller starts", 60, lambda: anonymous.response("/readyz").is_success,
        lambda: anonymous.response("/readyz").text,
    )  # fmt: skip
    asked = {
        "user": world.user, "password": world.password, "name": "shoal demo", "ttl_s": 86_400,
    }  # fmt: skip
    made = anonymous.post(at("tokens"), asked)
    token = Account(url=world.url, token=made["secret"], ca=ca)
    world.api = Api(token, trust_environment=False)


def _enrol(world: World) -> None:
    """One token a site, one certificate a device; all six side by side."""
    fleet = world.scenario.stations
    asked = {"rings": ["stable", "canary"], "uses": 2, "ttl_s": 600}
    tokens = {
        site: world.api.post(at("join-tokens"), asked | {"site": site})["secret"]
        for site in dict.fromkeys(station.site for station in fleet)
    }
    for station in fleet:
        world.csv(station.name).parent.mkdir(parents=True, exist_ok=True)
        table.write(world.scenario.streams[station.name], world.csv(station.name))
    world.processes.run_all(
        {f"enroll-{s.name}": _enrolment(world, s, tokens[s.site]) for s in fleet}, 60
    )
    for station in fleet:
        _configure(world, station)


def _enrolment(world: World, station: Station, token: str) -> list[str]:
    return [
        "shoal.agent", "enroll", "--folder", str(world.agent_folder(station.name)),
        "--controller", world.url, "--token", token, "--name", station.name,
        "--ring", station.ring, "--profile", station.profile, "--line", "line-1",
        "--source", f"replay:{world.csv(station.name)}",
    ]  # fmt: skip


def _configure(world: World, station: Station) -> None:
    source = {"label": world.scenario.label, "rate_hz": _RATE_HZ, "batch": _BATCH}
    update = {"observe_s": station.observe_s, "max_kbps": station.max_kbps}
    path = world.agent_folder(station.name) / "agent.toml"
    change_toml(path, {"source": source, "update": update})


def _all_online(world: World) -> None:
    fleet = world.scenario.stations

    def look() -> bool:
        return all(world.device(station.name)["online"] for station in fleet)

    def seen() -> str:
        away = [s.name for s in fleet if not world.device(s.name)["online"]]
        return f"offline: {', '.join(away)}"

    world.story.until("all six devices come online", 60, look, seen)
    for station in fleet:
        device = world.device(station.name)
        world.story.tell(
            f"{device['name']} is online: site {device['site']}, ring {device['ring']}, "
            f"profile {device['profile']}"
        )


def change_toml(path: Path, tables: dict[str, dict[str, Any]]) -> None:
    """Set values in a TOML file of flat tables; everything else in it stays, comments do not."""
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
