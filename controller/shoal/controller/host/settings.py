"""Settings of the controller: controller.toml in its folder, every one with a sane default."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import msgspec

from shoal.errors import SettingError
from shoal.validation_errors import setting_error


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the controller listens, and the names its own certificates carry.

    host        address that all three listeners bind
    names       DNS names and addresses that devices and people reach it by
    port        API and console, HTTPS
    artifacts   artifact server, HTTPS
    mqtt        embedded broker, MQTT over TLS
    broker      "" for the embedded one, else mqtts://host:port of your own
    tls_certificate, tls_key   PEM files for API and console, when not from Shoal's own CA
    hosts       further host names that API and console answer to, besides names and those of
                tls_certificate: what a reverse proxy is called, such as "*.example.org"
    trusted_proxies   addresses or networks of reverse proxies whose X-Forwarded-For, -Host and
                -Proto are believed; nobody's otherwise
    open_metrics   /metrics is for everybody who reaches the port, not only for the role viewer
    """

    host: str = "127.0.0.1"
    names: list[str] = msgspec.field(default_factory=lambda: ["localhost", "127.0.0.1"])
    port: int = 8443
    artifacts: int = 8444
    mqtt: int = 8883
    broker: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    hosts: list[str] = msgspec.field(default_factory=list)
    trusted_proxies: list[str] = msgspec.field(default_factory=list)
    open_metrics: bool = False


class Fleet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Telemetry interval, retention, and when a device counts as offline.

    window_s        length of a telemetry window
    jitter_s        random delay of a window's end, at most
    offline_s       a device is offline after so many seconds without a message; an idle agent
                    sends a status every 120 s, so choose more
    retention_days  windows, events and findings older than this are deleted, a day at a time
    hourly_days     sums of windows by hour are kept so long
    daily_days      sums of windows by day are kept so long
    clock_skew_s    a device clock that is off by more raises an alert
    """

    window_s: float = 60.0
    jitter_s: float = 5.0
    offline_s: float = 300.0
    retention_days: float = 90.0
    hourly_days: float = 90.0
    daily_days: float = 730.0
    clock_skew_s: float = 30.0


class Drift(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Drift decision and its budget of false alarms: docs/drift.md.

    false_alarms_per_day   for the whole fleet, over all features, windows and scopes
    baseline_windows       first windows of a release, in which nothing alarms
    tolerance              smallest shift of a mean that matters, in standard deviations of a row
    cycle                  "day": hours not seen on an earlier day do not alarm for what may be
                           their usual level; "none": the process has no daily cycle
    timezone               of the sites, an IANA name: days and their hours are theirs
    timezones              site -> IANA name, where a site's is another
    rest_days              days of the week that are unlike the others, Monday is 0
    memory_mb              for the devices' states; more are read from the database
    """

    false_alarms_per_day: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    baseline_windows: int = 96
    tolerance: Annotated[float, msgspec.Meta(ge=0)] = 0.05
    cycle: Literal["day", "none"] = "day"
    timezone: str = "UTC"
    timezones: dict[str, str] = {}
    rest_days: list[Annotated[int, msgspec.Meta(ge=0, le=6)]] = msgspec.field(
        default_factory=lambda: [5, 6]
    )
    memory_mb: Annotated[int, msgspec.Meta(ge=16)] = 512


class Alerts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When devices raise alerts, and when an alert escalates: docs/alerts.md.

    offline_per_day  false offline alerts a day to expect from the whole fleet, from rhythms alone
    offline_most_s   a device that is silent for longer is offline, whatever its rhythm
    certificate_s    a certificate that ends within so many seconds raises an alert
    disk_free_mb     less free disk raises one
    memory_free_mb   less memory that may still be used raises one
    temperature_c    more heat raises one
    escalate_s       severity -> seconds after which an alert that nobody took escalates; 0: never
    notify_private   channels and the heartbeat may go to private and loopback addresses
    heartbeat_url    fetched every heartbeat_s while database, broker link and ingest are live: a
                     service that misses it tells you that the controller is silent; "" for none
    heartbeat_s      seconds between two heartbeats
    """

    offline_per_day: Annotated[float, msgspec.Meta(gt=0, le=1_000)] = 1.0
    offline_most_s: Annotated[float, msgspec.Meta(ge=600)] = 7 * 86_400.0
    certificate_s: Annotated[float, msgspec.Meta(ge=0)] = 21 * 86_400.0
    disk_free_mb: Annotated[float, msgspec.Meta(ge=0)] = 100.0
    memory_free_mb: Annotated[float, msgspec.Meta(ge=0)] = 32.0
    temperature_c: Annotated[float, msgspec.Meta(ge=0)] = 85.0
    escalate_s: dict[str, Annotated[float, msgspec.Meta(ge=0)]] = msgspec.field(
        default_factory=lambda: {"critical": 3_600.0}
    )
    notify_private: bool = False
    heartbeat_url: str = ""
    heartbeat_s: Annotated[float, msgspec.Meta(ge=1)] = 60.0


class Rollouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether rollouts need approval.

    approval   "none", or "stable": a rollout that reaches a stable device waits for the approval
               of another user
    """

    approval: Literal["none", "stable"] = "none"


class Rounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Federated rounds.

    checkpoints   of a task, the newest so many are kept, and those that are needed: an earlier
                  round can be neither released nor measured, nor gone back to; 0 keeps all
    """

    checkpoints: Annotated[int, msgspec.Meta(ge=0)] = 20


class Ingest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one device may send: more is refused, and one that goes on is cut off for a while.

    device_messages_s   messages a second; those that cannot be read count double
    device_kib_s        KiB a second
    """

    device_messages_s: Annotated[float, msgspec.Meta(ge=1, le=1e6)] = 50.0
    device_kib_s: Annotated[float, msgspec.Meta(ge=1, le=1e9)] = 1_024.0


class Operations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Long work: training and imports, one at a time.

    limit_s            seconds that one may run before it is ended; 0 for no limit
    memory_mb          MB of memory that one may take; 0 for three quarters of the machine's
    cpu_s              CPU seconds that one may take, all threads together; 0 for no limit
    file_mb            MB that a file may have that one writes
    scripts            lowest role that may train with a script of its own, which can do what the
                       controller can: "none" for nobody, "operator", "approver" or "admin"
    script_cpu_s       CPU seconds that a script may take
    script_memory_mb   MB of memory that a script may take
    script_file_mb     MB that a file may have that a script writes
    """

    limit_s: float = 3_600.0
    memory_mb: Annotated[int, msgspec.Meta(ge=0)] = 0
    cpu_s: Annotated[int, msgspec.Meta(ge=0)] = 0
    file_mb: Annotated[int, msgspec.Meta(ge=1)] = 65_536
    scripts: Literal["none", "operator", "approver", "admin"] = "none"
    script_cpu_s: Annotated[int, msgspec.Meta(ge=1)] = 3_600
    script_memory_mb: Annotated[int, msgspec.Meta(ge=64)] = 4_096
    script_file_mb: Annotated[int, msgspec.Meta(ge=1)] = 2_048


class Mlflow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An MLflow server: models are imported from it, runs mirrored to it: docs/mlflow.md.

    url            of the server, https://; http:// only on this machine; "" for none
    token_file     file with a bearer token, relative to the controller's folder; "" for none
    user           of basic authentication; "" for none
    password_file  file with its password
    ca_file        PEM of the CA that signed the server's certificate; "" for the system's
    experiment     that runs are mirrored to; it is created where there is none
    runs           mirror every run of Shoal
    poll_s         seconds between two looks at the aliases that are followed
    """

    url: str = ""
    token_file: str = ""
    user: str = ""
    password_file: str = ""
    ca_file: str = ""
    experiment: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "shoal"
    runs: bool = True
    poll_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 30.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of controller.toml.

    database   SQLAlchemy URL of a SQLite database; "" is controller.db in the folder
    """

    network: Network = Network()
    fleet: Fleet = Fleet()
    ingest: Ingest = Ingest()
    drift: Drift = Drift()
    alerts: Alerts = Alerts()
    operations: Operations = Operations()
    rollouts: Rollouts = Rollouts()
    rounds: Rounds = Rounds()
    mlflow: Mlflow = Mlflow()
    database: str = ""


def load(folder: Path) -> Settings:
    """Settings of the controller in `folder`; SettingError names what is wrong in the file."""
    path = folder / "controller.toml"
    try:
        given = tomllib.loads(path.read_text())
        _check_drift(path, given.get("drift", {}))
        found = msgspec.convert(given, Settings)
        _check_mlflow(path, found.mlflow.url)
        return found
    except FileNotFoundError as error:
        raise SettingError(f"no {path}", f"run: shoal-controller init --folder {folder}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path}: {error}") from error
    except msgspec.ValidationError as error:
        raise setting_error(str(path), error, Settings) from error


def _check_drift(path: Path, given: Any) -> None:
    """SettingError for what no type tells: a setting of before, and unknown time zones."""
    if not isinstance(given, dict):
        return
    if "scales" in given:
        raise SettingError(
            f"{path}: drift.scales is no setting any more",
            "delete its line, and the line of tolerance: it is in standard deviations now",
        )
    zones = given.get("timezones", {})
    named = {"drift.timezone": given.get("timezone", "UTC")}
    named |= (
        {f"drift.timezones.{k}": v for k, v in zones.items()} if isinstance(zones, dict) else {}
    )
    for what, zone in named.items():
        if isinstance(zone, str) and not _is_zone(zone):
            raise SettingError(f"{path}: {what}: no time zone {zone!r}", "such as Europe/Berlin")


def _check_mlflow(path: Path, url: str) -> None:
    """SettingError for an address that credentials and models must not travel to or from."""
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.username or parts.password:
        raise SettingError(f"{path}: mlflow.url holds a password", "use user and password_file")
    if url and not (
        parts.hostname and (parts.scheme == "https" or (parts.scheme == "http" and local))
    ):
        raise SettingError(
            f"{path}: mlflow.url {url!r:.200}", "write https://HOST; http:// only for this machine"
        )


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        return False
    return True
