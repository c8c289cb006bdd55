"""`init`: creates a controller's folder, with settings, keys, certificates and repositories.

Every step keeps what exists, so an interrupted `init` can be run again.
"""

import ipaddress
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shoal.address import is_ipv6
from shoal.controller.fleet.io.ca import Authority
from shoal.controller.host import settings
from shoal.controller.host.io.files import private_folder, write_durable
from shoal.controller.host.settings import Drift, Fleet, Network, Settings
from shoal.controller.releases.download_urls import KEY_BYTES
from shoal.controller.releases.io.signing import Signer
from shoal.durable import SECRET
from shoal.errors import SettingError
from shoal.mqtt import broker_address

LOOPBACK = ("localhost", "127.0.0.1")
_DNS_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
#: Bound if a name was given: "::" takes IPv4 too.
EVERYWHERE, EVERYWHERE_6 = "0.0.0.0", "::"  # noqa: S104


class InitOptions(NamedTuple):
    """Options of `init`; None and empty for the default.

    names    of this machine in the network; devices use the first
    host     to bind; without it: loopback, or all addresses when `names` has more than that
    """

    names: Sequence[str] = ()
    host: str | None = None
    port: int | None = None
    artifacts: int | None = None
    mqtt: int | None = None
    broker: str = ""
    window_s: float | None = None
    baseline_windows: int | None = None
    cycle: str = ""


def make_folder(folder: Path, options: InitOptions, now: float) -> Settings:
    """Settings file, device CA, signing keys and empty repositories in `folder`.

    SettingError for an invalid option, StorageError if a write fails.
    """
    wanted = _settings(options)
    private_folder(folder)
    path = folder / "controller.toml"
    if not path.exists():
        write_durable(path, as_toml(wanted).encode())
    made = settings.load(folder)
    if not (folder / "pki" / "controller.crt").exists():
        Authority.create(folder / "pki", names=made.network.names, now=now)
    capability = private_folder(folder / "keys") / "capability.key"
    if not capability.exists():
        write_durable(capability, secrets.token_bytes(KEY_BYTES), SECRET)
    Signer.create(folder)
    for name in ("blobs", "broker", "log"):
        private_folder(folder / name)
    return made


def as_toml(wanted: Settings) -> str:
    """Text of controller.toml, with every setting."""
    network, fleet, drift, alerts = wanted.network, wanted.fleet, wanted.drift, wanted.alerts
    return f"""# Settings of this Shoal controller. Read when `serve` starts.

[network]
# address that all three listeners bind: 127.0.0.1 for this machine alone, 0.0.0.0 for all
host = {_toml(network.host)}
# names and addresses of this machine in its own certificate; devices use the first
names = {_toml(network.names)}
port = {network.port}        # API and console, HTTPS
artifacts = {network.artifacts}   # artifact server, HTTPS
mqtt = {network.mqtt}        # embedded broker, MQTT over TLS
broker = {_toml(network.broker)}         # "" for the embedded one, else mqtts://host:port
# PEM files for API and console, when their certificate is not from Shoal's own CA
tls_certificate = {_toml(network.tls_certificate)}
tls_key = {_toml(network.tls_key)}
# further host names that are answered, such as that of a reverse proxy: ["shoal.example.org"]
hosts = {_toml(network.hosts)}
# addresses of reverse proxies whose X-Forwarded-For, -Host and -Proto are believed: ["10.0.0.7"]
trusted_proxies = {_toml(network.trusted_proxies)}
open_metrics = {_toml(network.open_metrics)}   # true: /metrics without a token

[fleet]
window_s = {fleet.window_s}      # length of a telemetry window
jitter_s = {fleet.jitter_s}      # windows end up to this much later
offline_s = {fleet.offline_s}    # a device is offline after this long without a message
retention_days = {fleet.retention_days}  # windows, events and findings
hourly_days = {fleet.hourly_days}     # sums by hour
daily_days = {fleet.daily_days}     # sums by day
clock_skew_s = {fleet.clock_skew_s}  # a device's clock that is off by more raises an alert

[drift]
false_alarms_per_day = {drift.false_alarms_per_day}  # for the whole fleet
baseline_windows = {drift.baseline_windows}       # a device's own first windows of a release
tolerance = {drift.tolerance}             # smallest shift that matters, in standard deviations
cycle = {_toml(drift.cycle)}                # "none" if no process has a daily cycle
timezone = {_toml(drift.timezone)}             # of the sites
timezones = {_table(drift.timezones)}              # of other sites: {{ osaka = "Asia/Tokyo" }}
rest_days = {_toml(drift.rest_days)}           # days of the week unlike others, Monday is 0
memory_mb = {drift.memory_mb}              # for the devices' states of the drift decision

[alerts]
offline_per_day = {alerts.offline_per_day}    # false offline alerts that the whole fleet may raise
offline_most_s = {alerts.offline_most_s}  # silent for longer is offline, whatever the rhythm
certificate_s = {alerts.certificate_s}  # a certificate that ends sooner raises an alert
disk_free_mb = {alerts.disk_free_mb}     # less free disk raises one
memory_free_mb = {alerts.memory_free_mb}    # less memory that may still be used raises one
temperature_c = {alerts.temperature_c}     # more heat raises one
# seconds after which an alert of a severity that nobody took escalates; 0 for never
escalate_s = {_table(alerts.escalate_s)}
# whether channels and the heartbeat may go to private and loopback addresses
notify_private = {_toml(alerts.notify_private)}
heartbeat_url = {_toml(alerts.heartbeat_url)}         # fetched while all is live; "" for none
heartbeat_s = {alerts.heartbeat_s}

[ingest]
device_messages_s = {wanted.ingest.device_messages_s}  # messages a second that one device may send
device_kib_s = {wanted.ingest.device_kib_s}     # KiB a second

[operations]
limit_s = {wanted.operations.limit_s}      # seconds that an operation may run; 0 for no limit
memory_mb = {wanted.operations.memory_mb}       # MB that it may take; 0: 3/4 of the machine's
cpu_s = {wanted.operations.cpu_s}           # CPU seconds that it may take; 0 for no limit
file_mb = {wanted.operations.file_mb}     # MB of a file that it writes
# lowest role that may train with a script of its own, which can do all that the controller can:
# "none" for nobody, "operator", "approver", "admin"; docs/training.md
scripts = {_toml(wanted.operations.scripts)}
script_cpu_s = {wanted.operations.script_cpu_s}        # CPU seconds of a script
script_memory_mb = {wanted.operations.script_memory_mb}    # of each of its processes
script_file_mb = {wanted.operations.script_file_mb}      # of a file that it writes

[rollouts]
# "stable": a rollout that reaches a stable device needs another user's approval; or "none"
approval = {_toml(wanted.rollouts.approval)}

[mlflow]
url = {_toml(wanted.mlflow.url)}            # of an MLflow server, https://; "" for none
# files with a bearer token, or with the user's password, relative to the controller's folder
token_file = {_toml(wanted.mlflow.token_file)}
user = {_toml(wanted.mlflow.user)}
password_file = {_toml(wanted.mlflow.password_file)}
ca_file = {_toml(wanted.mlflow.ca_file)}        # PEM of its CA; "" for the system's
experiment = {_toml(wanted.mlflow.experiment)}   # that runs are copied to
runs = {_toml(wanted.mlflow.runs)}          # whether they are
poll_s = {wanted.mlflow.poll_s}        # seconds between two looks at the aliases that are followed

[rounds]
checkpoints = {wanted.rounds.checkpoints}  # newest checkpoints kept per federated task; 0 for all
"""


def _settings(options: InitOptions) -> Settings:
    default_network, default_fleet, default_drift = Network(), Fleet(), Drift()
    if options.broker:
        broker_address(options.broker)
    names = list(dict.fromkeys([*map(_name, options.names), *LOOPBACK]))
    network = Network(
        host=options.host or _host(names[: len(options.names)]) or default_network.host,
        names=names,
        port=_port(options.port, default_network.port),
        artifacts=_port(options.artifacts, default_network.artifacts),
        mqtt=_port(options.mqtt, default_network.mqtt),
        broker=options.broker,
    )
    _check_distinct(network)
    window_s = default_fleet.window_s if options.window_s is None else options.window_s
    if not 1 <= window_s <= 86_400:  # agents accept no shorter window
        raise SettingError(f"window of {window_s:g} s", "choose 1 to 86400 seconds")
    baseline = options.baseline_windows or default_drift.baseline_windows
    if baseline < 2:
        raise SettingError(f"baseline of {baseline} windows", "choose at least 2")
    jitter_s = min(default_fleet.jitter_s, window_s / 10)
    fleet = Fleet(window_s=window_s, jitter_s=jitter_s)
    drift = Drift(baseline_windows=baseline, cycle="none" if options.cycle == "none" else "day")
    return Settings(network=network, fleet=fleet, drift=drift)


def _port(option: int | None, default: int) -> int:
    port = default if option is None else option
    if not 1 <= port <= 65_535:
        raise SettingError(f"port {port}", "choose 1 to 65535")
    return port


def _check_distinct(network: Network) -> None:
    """SettingError when two listeners would share a port."""
    ports = [network.port, network.artifacts] + ([] if network.broker else [network.mqtt])
    twice = sorted({port for port in ports if ports.count(port) > 1})
    if twice:
        raise SettingError(
            f"port {twice[0]} is set twice",
            "--port, --artifacts-port and --mqtt-port must differ",
        )


def _name(name: str) -> str:
    """A DNS name or address, as it goes into a certificate."""
    try:
        found = ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        pass
    else:
        if isinstance(found, ipaddress.IPv6Address) and found.scope_id:
            raise SettingError(
                f"name {name!r} is valid on one interface of this machine alone",
                "write a DNS name, or an address that devices can use, such as fd00::5",
            )
        return str(found)
    if not _DNS_NAME.fullmatch(name):
        raise SettingError(
            f"name {name!r}",
            "write a DNS name or an address alone, such as factory.example or 10.0.0.5",
        )
    return name


def _host(names: Sequence[str]) -> str:
    """Address to bind for these names; "" for names of this machine alone."""
    if not _is_networked(names):
        return "::1" if any(map(is_ipv6, names)) else ""
    return EVERYWHERE_6 if any(map(is_ipv6, names)) else EVERYWHERE


def _is_networked(names: Sequence[str]) -> bool:
    """Whether one of the names is not this machine's own loopback."""
    return any(not _is_loopback(name) for name in names)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _table(values: Mapping[str, float] | Mapping[str, str]) -> str:
    """TOML's inline table."""
    pairs = (f"{json.dumps(name)} = {json.dumps(value)}" for name, value in values.items())
    return "{ " + ", ".join(pairs) + " }"


def _toml(value: str | bool | list[str] | list[int]) -> str:
    """TOML's strings, booleans and arrays of these are JSON's."""
    return json.dumps(value)
