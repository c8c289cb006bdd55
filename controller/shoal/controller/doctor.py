"""Checks of a controller on this machine, each failure with a hint."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
from sqlalchemy import func, select

from shoal.controller.broker.io.nats import find_binary
from shoal.controller.fleet.io.ca import load_certificate
from shoal.controller.host import settings
from shoal.controller.host.io.probes import check_broker, check_https, is_free
from shoal.controller.host.settings import Settings
from shoal.controller.releases.io.signing import Signer
from shoal.controller.store.io.database import Store, url_of
from shoal.controller.store.tables import device
from shoal.controller.supervisor import folder_lock
from shoal.errors import ConflictError, LinkError, ShoalError, StorageError

DISK_WARNING_MB, DISK_ERROR_MB = 2_048, 256
EXPIRY_WARNING_DAYS = 14
_DAY_S = 86_400
OK, WARNING, ERROR = "ok", "warning", "error"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one check. state: ok, warning or error; detail ends with a hint."""

    name: str
    state: str
    detail: str


def run_checks(folder: Path, now: float) -> list[Check]:
    """Run all checks; a failed one is a result, not an exception."""
    try:
        configured = settings.load(folder)
    except ShoalError as error:
        return [Check(name="settings", state=ERROR, detail=str(error))]
    served = _is_served(folder)
    return [
        Check(name="settings", state=OK, detail=str(folder / "controller.toml")),
        _serving(served),
        *_certificates(folder / "pki", now),
        _try("signing", lambda: _signing(folder)),
        _disk(folder),
        _try("database", lambda: _database(folder, configured)),
        _try("telemetry", lambda: _telemetry(folder, configured), failing=WARNING),
        *_listeners(folder, configured, served),
    ]


def worst_state(checks: list[Check]) -> str:
    """The worst state of these checks."""
    return max((check.state for check in checks), key=[OK, WARNING, ERROR].index)


def _try(name: str, check: Callable[[], str], failing: str = ERROR) -> Check:
    try:
        return Check(name=name, state=OK, detail=check())
    except ShoalError as error:
        return Check(name=name, state=failing, detail=str(error))
    except OSError as error:
        return Check(name=name, state=failing, detail=error.strerror or str(error))


def _is_served(folder: Path) -> bool:
    try:
        with folder_lock(folder):
            return False
    except ConflictError:
        return True


def _serving(served: bool) -> Check:
    if served:
        return Check(name="serve", state=OK, detail="running")
    return Check(name="serve", state=WARNING, detail="not running; start: shoal-controller serve")


def _certificates(pki: Path, now: float) -> list[Check]:
    names = ("root", "intermediate", "server", "controller")
    return [_certificate(pki / f"{name}.crt", now) for name in names]


def _certificate(path: Path, now: float) -> Check:
    name = f"certificate {path.stem}"
    try:
        days = (load_certificate(path).not_valid_after_utc.timestamp() - now) / _DAY_S
    except ShoalError as error:
        return Check(name=name, state=ERROR, detail=str(error))
    if days <= 0:
        return Check(name=name, state=ERROR, detail=f"expired {-days:.0f} days ago; {_hint(path)}")
    state = WARNING if days < EXPIRY_WARNING_DAYS else OK
    return Check(name=name, state=state, detail=f"{days:.0f} days left")


def _hint(path: Path) -> str:
    if path.stem in ("server", "controller"):
        return "restart: shoal-controller serve makes a new one"
    return "create a new controller and enrol its devices again"


def _signing(folder: Path) -> str:
    signer = Signer.open(folder)
    return f"{len(signer.root)} bytes of root metadata, keys in {folder / 'keys'}"


def _disk(folder: Path) -> Check:
    free_mb = shutil.disk_usage(folder).free >> 20
    state = OK if free_mb >= DISK_WARNING_MB else WARNING if free_mb >= DISK_ERROR_MB else ERROR
    hint = "" if state == OK else "; free some, or move the folder"
    return Check(name="disk", state=state, detail=f"{free_mb} MB free at {folder}{hint}")


def _telemetry(folder: Path, configured: Settings) -> str:
    """Days of windows and their size; StorageError names the files that are lost."""
    store = Store.open(url_of(folder, configured))
    try:
        names = [name for name, _, _ in store.windows.spans()]
    finally:
        store.close()
    files = {name: store.windows.folder / f"{name}.db" for name in names}
    lost = [name for name, path in files.items() if not path.is_file()]
    if lost:
        raise StorageError(
            f"windows of {', '.join(lost[:5])} are lost: no such file in {store.windows.folder}",
            "put the files back from a backup; all else goes on without them",
        )
    size = sum(path.stat().st_size for path in files.values())
    days = configured.fleet.retention_days
    return f"{len(files)} files of windows, {size >> 20} MB; kept for {days:g} days"


def _database(folder: Path, configured: Settings) -> str:
    store = Store.open(url_of(folder, configured))
    try:
        with store.read() as db:
            count = db.execute(select(func.count()).select_from(device)).scalar_one()
    finally:
        store.close()
    return f"{count} devices"


def _listeners(folder: Path, configured: Settings, served: bool) -> list[Check]:
    network, pki = configured.network, folder / "pki"
    failing = ERROR if served else WARNING
    checks = []
    if not network.broker:
        checks.append(_try("nats-server", lambda: str(find_binary(os.environ))))
    if network.broker or served:
        checks.append(_try("broker", lambda: check_broker(network, pki)))
    else:
        checks.append(_port("broker", network.host, network.mqtt, "mqtt"))
    for name, port, setting in (
        ("artifacts", network.artifacts, "artifacts"),
        ("web", network.port, "port"),
    ):
        if served:
            own = bool(network.tls_certificate) and name == "web"
            check = partial(check_https, network, port, pki, own_certificate=own)
            checks.append(_try(name, check, failing))
        else:
            checks.append(_port(name, network.host, port, setting))
    return checks


def _port(name: str, host: str, port: int, setting: str) -> Check:
    def check() -> str:
        if not is_free(host, port):
            raise LinkError(
                f"port {port} is taken by another program",
                f"end it, or change [network] {setting} in controller.toml",
            )
        return f"port {port} is free"

    return _try(name, check)
