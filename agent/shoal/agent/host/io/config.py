"""agent.toml: every setting with its default. docs/agent.md is generated from the docstrings."""

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.agent.host.hours import parse as parse_hours
from shoal.agent.host.io.folder import SETTINGS
from shoal.errors import SettingError
from shoal.topics import check_device
from shoal.validation_errors import setting_error

if TYPE_CHECKING:
    from shoal.agent.host.round_limits import Limits


#: What to do about an empty agent.toml.
_EMPTY = (
    "the power may have failed while it was edited: restore a copy, or enrol again into this "
    "folder with a new join token (shoal-agent enroll), which keeps the key and writes it"
)
#: Values of `learning.keep`.
KEPT = ("nothing", "labelled", "served")


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Identity of this device. Written by enrolment.

    name     as in the certificate
    site     given by the join token
    line     production line, free text
    labels   name -> value, free text; a rollout's stage may select devices by them
    ring     "stable" or "canary": whether candidates, signed by automation alone, are accepted.
             Only this file decides; it cannot be changed remotely
    profile  firmware profile, such as "rpi4"; "" for the one that fits this machine
    """

    name: str = ""
    site: str = ""
    line: str = ""
    ring: str = "stable"
    profile: str = ""
    labels: dict[str, str] = {}


class Controller(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Addresses of the controller. Written by enrolment.

    url        of the API, https://host:port
    broker     mqtts://host:port
    artifacts  https://host:port
    """

    url: str = ""
    broker: str = ""
    artifacts: str = ""


class EndpointSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Local inference, Open Inference Protocol v2.

    host    address to listen on; any but a loopback address admits the network, unauthenticated
    port    0 for any free port, shown by `shoal-agent status`
    socket  whether to listen on the Unix socket agent.sock in the agent's folder too
    """

    host: str = "127.0.0.1"
    port: int = 0
    socket: bool = True


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of inputs for the models, beside the endpoint. Other sources are under [sources.NAME].

    kind     "replay": repeats a CSV or Parquet file, and reloads it when it changes
    path     of the file, relative to the agent's folder
    label    column with the true class or value, for accuracy and errors; "" for none
    rate_hz  requests per second; 0 for no limit
    batch    rows per request
    seed     of the shuffling
    """

    kind: str = "replay"
    path: str = ""
    label: str = ""
    rate_hz: float = 10.0
    batch: int = 1
    seed: int = 0


class Update(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Download and observation of new releases.

    observe_s  seconds that a new release is observed in service before it is committed
    max_kbps   limit of downloads in kilobit per second; 0 for no limit
    hours      local times of day for downloads, such as "22:00-05:00, 12:00-12:30"; "" for any
    """

    observe_s: float = 60.0
    max_kbps: float = 0.0
    hours: str = ""


class Peers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Downloads shared by the devices of a site; see peer-cache.md.

    enabled   whether this device downloads from peers first, and serves files to them
    host      address to listen on; "" for every one, of IPv4 and IPv6: only devices of the same
              CA are served
    port      to listen on; must be reachable by the other devices
    address   announced to the other devices; "" for the one it uses towards the controller
    max_kbps  limit of all uploads to peers in kilobit per second; 0 for no limit
    """

    enabled: bool = False
    host: str = ""
    port: int = 8455
    address: str = ""
    max_kbps: float = 0.0


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Site gateway: sums the site's updates of federated rounds; see federated/gateways.md.

    enabled   whether this device is a gateway in rounds with a plan that names it; it listens
              during such rounds only
    host      address to listen on; "" for every one, of IPv4 and IPv6: only devices of the same
              CA are served
    port      to listen on; must be reachable by the other devices
    address   announced to the other devices; "" for the one it uses towards the controller
    """

    enabled: bool = False
    host: str = ""
    port: int = 8456
    address: str = ""


class OutboxSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reports stored while the controller is unreachable.

    limit_mb  above it, adjacent windows merge, then the oldest are dropped and reported
    """

    limit_mb: float = 64.0


class LearningSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Participation in federated rounds, and its limits. Model updates are sent, never rows.

    The signer of rounds also chooses the graph: only these limits bound what an update reveals.

    enabled    whether the device joins rounds within the limits below; without rows it refuses
    keep       training rows kept on this disk: "nothing": only those of `shoal-agent labels add`;
               "labelled": also rows that came with their true label or value; "served": also rows
               of inference requests with an id, to be labelled later
    limit_mb   of the rows on disk; above it the oldest are deleted
    most_rows  of one model; above it the oldest are deleted
    days       after which a row is deleted
    memory_mb  limit of the trainer's process
    cpu_s      limit of the trainer's process for a round, in seconds of one CPU
    quiet_hz   with `idle`: requests per second above which training is not started, or pauses
    rows       least number of own rows to join a round
    cohort     least number of devices in a sum with this one
    secure     join only rounds with secure aggregation; the training loss is not sent
    clip       largest L2 norm of an update that is sent; 0 for any
    noise      least noise of differential privacy, in clips; above 0, rounds without are refused
    epsilon    lifetime budget of differential privacy; 0: not counted
    delta      of the same budget
    trust_central  count noise that only the controller adds for `noise` and `epsilon`; otherwise
               a device with either refuses such rounds
    graphs     SHA-256 of the allowed graphs, as `shoal round plan` shows them; empty for any that
               the role `rounds` signed
    idle       train only while the models get few requests, see quiet_hz
    mains      train only on mains power, where the machine reports it
    celsius    temperature above which the device does not train; 0 for any
    """

    enabled: bool = True
    keep: str = "nothing"
    limit_mb: float = 32.0
    most_rows: int = 20_000
    days: float = 30.0
    memory_mb: int = 256
    cpu_s: float = 900.0
    quiet_hz: float = 20.0
    rows: int = 10
    cohort: int = 3
    secure: bool = False
    clip: float = 0.0
    noise: float = 0.0
    epsilon: float = 0.0
    delta: float = 1e-6
    trust_central: bool = False
    graphs: list[str] = []
    idle: bool = True
    mains: bool = True
    celsius: float = 75.0

    def limits(self) -> "Limits":
        """The limits that rounds are judged by."""
        from shoal.agent.host.round_limits import Limits
        from shoal.federated.spending import Budget

        same = {*Limits.__struct_fields__} - {"budget", "graphs"}
        return Limits(
            budget=Budget(epsilon=self.epsilon, delta=self.delta) if self.epsilon else None,
            graphs=frozenset(self.graphs),
            **{name: getattr(self, name) for name in same},
        )


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of agent.toml.

    log_level   "DEBUG", "INFO", "WARNING" or "ERROR"
    sources     name -> source of inputs, a table [sources.NAME] each; see sources-and-sinks.md
    sinks       name -> sink of outputs, a table [sinks.NAME] each; see sources-and-sinks.md
    """

    device: Device = Device()
    controller: Controller = Controller()
    endpoint: EndpointSettings = EndpointSettings()
    source: Source | None = None
    update: Update = Update()
    peers: Peers = Peers()
    gateway: GatewaySettings = GatewaySettings()
    outbox: OutboxSettings = OutboxSettings()
    learning: LearningSettings = LearningSettings()
    sources: dict[str, dict[str, Any]] = {}
    sinks: dict[str, dict[str, Any]] = {}
    log_level: str = "INFO"

    def all_sources(self) -> dict[str, dict[str, Any]]:
        """The tables of sources by name, [source] among them."""
        short = {"source": msgspec.structs.asdict(self.source)} if self.source else {}
        return short | self.sources


def load(folder: Path) -> Settings:
    """Settings of the agent in `folder`; SettingError names the field that is wrong."""
    path = folder / SETTINGS
    try:
        text = path.read_text()
        if not text.strip():
            raise SettingError(f"{path} is empty", _EMPTY)
        settings = msgspec.convert(tomllib.loads(text), Settings)
    except FileNotFoundError as error:
        hint = "run: shoal-agent enroll --folder DIR --controller URL --token TOKEN --name NAME"
        raise SettingError(f"no {path}", hint) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{path}: {error}") from error
    except msgspec.ValidationError as error:
        raise setting_error(str(path), error, Settings) from error
    _check(path, settings)
    return settings


def is_written(folder: Path) -> bool:
    """Whether there is an agent.toml that is not empty."""
    path = folder / SETTINGS
    return path.exists() and bool(path.read_text().strip())


def dump(settings: Settings) -> str:
    """agent.toml of `settings`: the device, the controller, and what differs from the defaults."""
    lines = []
    if settings.log_level != "INFO":
        lines += [f"log_level = {_toml(settings.log_level)}", ""]
    for name in settings.__struct_fields__:
        section = getattr(settings, name)
        if isinstance(section, msgspec.Struct):
            lines += _section(name, section)
    for name in ("sources", "sinks"):
        for each, table in getattr(settings, name).items():
            pairs = [f"{_toml(key)} = {_toml(value)}" for key, value in table.items()]
            lines += [f"[{name}.{_toml(each)}]", *pairs, ""]
    return "\n".join(lines)


def _section(name: str, section: msgspec.Struct) -> list[str]:
    always = name in ("device", "controller", "source")
    pairs = msgspec.structs.asdict(section).items()
    plain = [f"{key} = {_toml(value)}" for key, value in pairs if always or _differs(section, key)]
    return [f"[{name}]", *plain, ""] if plain else []


def _differs(section: msgspec.Struct, key: str) -> bool:
    return getattr(section, key) != getattr(type(section)(), key)


def _toml(value: Any) -> str:
    """A TOML value; JSON's strings and numbers are TOML's too."""
    if isinstance(value, list):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{_toml(k)} = {_toml(v)}" for k, v in value.items())
        return "{ " + ", ".join(pairs) + " }" if value else "{}"
    return msgspec.json.encode(value).decode()


def _check(path: Path, settings: Settings) -> None:
    parse_hours(settings.update.hours)
    check_device(settings.device.name)
    if settings.device.ring not in ("stable", "canary"):
        ring = settings.device.ring
        raise SettingError(f'{path}: device.ring is {ring!r}, it is "stable" or "canary"')
    if settings.source is not None and settings.source.kind != "replay":
        raise SettingError(f'{path}: source.kind is {settings.source.kind!r}, there is "replay"')
    if settings.source is not None and not settings.source.path:
        raise SettingError(f"{path}: source.path is empty", "name a CSV file, or drop [source]")
    if settings.learning.keep not in KEPT:
        keep = settings.learning.keep
        raise SettingError(f"{path}: learning.keep is {keep!r}", f"it is {', '.join(KEPT)}")
    for graph in settings.learning.graphs:
        if not re.fullmatch("[0-9a-f]{64}", graph):
            hint = "64 lowercase hex digits each, as `shoal round plan` shows them"
            raise SettingError(f"{path}: learning.graphs has {graph!r}", hint)
    ports = {"peers.port": settings.peers.port, "gateway.port": settings.gateway.port}
    for name, port in ports.items():
        if not 0 < port < 65_536:
            raise SettingError(f"{path}: {name} is {port}", "use 1 to 65535")
    for name, number in (
        ("update.observe_s", settings.update.observe_s),
        ("update.max_kbps", settings.update.max_kbps),
        ("peers.max_kbps", settings.peers.max_kbps),
        ("outbox.limit_mb", settings.outbox.limit_mb - 0.25),
        ("source.rate_hz", settings.source.rate_hz if settings.source else 0.0),
        *_learning_numbers(settings.learning),
    ):
        if number < 0:
            raise SettingError(f"{path}: {name} is too small")


def _learning_numbers(learning: LearningSettings) -> list[tuple[str, float]]:
    """Name and number, minus its minimum."""
    least = {
        "limit_mb": 1, "most_rows": 1, "days": 0, "memory_mb": 64, "cpu_s": 1, "quiet_hz": 0,
        "rows": 1, "cohort": 1, "clip": 0, "noise": 0, "epsilon": 0, "delta": 0, "celsius": 0,
    }  # fmt: skip
    return [(f"learning.{name}", getattr(learning, name) - low) for name, low in least.items()]
