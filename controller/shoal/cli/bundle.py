"""`shoal bundle`: offline bundles: export releases, import telemetry."""

import base64
import contextlib
import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec

from shoal import sealed_message
from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.exit_codes import FailedError, ProblemError
from shoal.cli.render import Columns, JsonObject, instant, plain, size, table
from shoal.errors import AbsentError, BundleError, LinkError, SettingError
from shoal.offline_bundle import BLOBS, DOWN, LABEL, METADATA, UP, Label, OfflineBundle
from shoal.topics import check_device

_FOLDER = click.Path(path_type=Path, file_okay=False)
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)


@click.group(cls=CommandGroup)
def bundle() -> None:
    """Offline bundles: a folder, for example on a USB stick, for devices without a network."""


@bundle.command("export")
@click.argument("folder", type=_FOLDER)
@click.option("--device", "devices", multiple=True, metavar="NAME", help="May be given often.")
@click.option("--site", default="", help="Every device of this site.")
@click.pass_obj
def export(session: Session, folder: Path, devices: tuple[str, ...], site: str) -> None:
    """Write an offline bundle into FOLDER: assignments, signatures and release files.

    Take it to each device and run there: shoal-agent import FOLDER. An earlier export in FOLDER is
    replaced; files written by devices stay.

    \b
    Examples:
      shoal bundle export /media/stick --device press-4
      shoal bundle export /media/stick --site north
    """
    if not devices and not site:
        raise SettingError("for which devices?", "name them: --device NAME, or --site SITE for all")
    if not folder.is_dir():
        raise SettingError(f"no folder {folder}", "is the USB stick mounted?")
    plan = session.api.post(at("folders"), {"devices": list(devices), "site": site})
    offline = OfflineBundle(folder)
    _clear(offline, plan)
    for name, text in plan["metadata"].items():
        offline.write(f"{METADATA}/{name}", text.encode())
    _fetch_blobs(session, offline, plan["blobs"])
    for name, sealed in plan["parcels"].items():
        offline.write(f"{DOWN}/{name}.parcel", base64.b64decode(sealed))
    offline.write(LABEL, _label(plan))
    session.show(_summary(plan, folder), lambda: _export_lines(plan, folder))


@bundle.command("import")
@click.argument("folder", type=_FOLDER)
@click.option("--keep", is_flag=True, help="Keep imported files in FOLDER.")
@click.pass_obj
def import_(session: Session, folder: Path, keep: bool) -> None:
    """Import what devices have written into FOLDER: windows, events, inventories.

    Imported files are deleted from FOLDER. Importing twice is harmless: each message counts once,
    whether it arrives offline or over the network. The next export acknowledges it to the device.

    \b
    Example:
      shoal bundle import /media/stick
    """
    offline = OfflineBundle(folder)
    if not (folder / UP).is_dir():
        offline.label()  # raises when this is not an offline bundle
    receipts, refused = [], []
    for name in _message_files(offline):
        try:
            receipts.append(_send(session, offline, name))
        except (ProblemError, BundleError, AbsentError) as error:
            refused.append({"file": name, "why": str(error)})
            continue
        if not keep:
            offline.delete(name)
    incomplete = _incomplete(receipts)
    whole = {"parcels": receipts, "refused": refused, "incomplete": incomplete}
    empty = "nothing was imported" if refused else f"nothing in {folder}/{UP}"
    session.show(whole, lambda: table(receipts, _COLUMNS, empty=empty))
    for one in incomplete:
        session.print_line(
            f"{one}: parts of this export are missing; export it again on the device"
        )
    if refused:
        raise FailedError("; ".join(f"{one['file']}: {one['why']}" for one in refused))


_COLUMNS: Columns = {
    "device": "device",
    "written": lambda r: instant(r["made_at"]),
    "part": "part",
    "messages": "letters",
    "new here": "fresh",
}


def _clear(offline: OfflineBundle, plan: JsonObject) -> None:
    """Delete files of an earlier export."""
    offline.delete(LABEL)
    kept = {f"{DOWN}/{name}.parcel" for name in plan["parcels"]}
    kept |= {f"{METADATA}/{name}" for name in plan["metadata"]}
    kept |= {f"{BLOBS}/{blob['sha256']}" for blob in plan["blobs"]}
    for below in (DOWN, METADATA, BLOBS):
        for name in offline.names(below, ""):
            if name not in kept:
                offline.delete(name)


def _fetch_blobs(session: Session, offline: OfflineBundle, blobs: list[Any]) -> None:
    """Download release files from the artifact server, whose certificate is from Shoal's own CA."""
    missing = [
        b for b in blobs if not offline.holds(f"{BLOBS}/{b['sha256']}", b["size"], b["sha256"])
    ]
    if not missing:
        return
    ca = session.api.response("/ca.pem").text
    try:
        context = ssl.create_default_context(cadata=ca)
    except ssl.SSLError as error:
        raise LinkError("the controller's /ca.pem cannot be read") from error
    with httpx.Client(verify=context, timeout=_TIMEOUT) as http:
        for blob in missing:
            offline.receive(f"{BLOBS}/{blob['sha256']}", _download(http, blob))


def _download(http: httpx.Client, blob: JsonObject) -> Iterator[bytes]:
    """Stream a blob; BundleError at its end when size or hash differ."""
    url, digest, got = blob["url"].partition("?")[0], hashlib.sha256(), 0
    with _translated(url), http.stream("GET", blob["url"]) as response:
        if response.status_code != 200:
            raise LinkError(f"{url}: HTTP {response.status_code}", "export it again")
        for piece in response.iter_raw():
            got += len(piece)
            if got > blob["size"]:
                break
            digest.update(piece)
            yield piece
    if got != blob["size"] or digest.hexdigest() != blob["sha256"]:
        raise BundleError(f"{url} does not match its hash", "check the controller's disk")


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise LinkError(f"{url}: {error}", "is the artifact server reachable?") from error


def _message_files(offline: OfflineBundle) -> list[str]:
    found = []
    for device in offline.folders(UP):
        with contextlib.suppress(SettingError):  # other files of the user
            found += offline.names(f"{UP}/{check_device(device)}", ".parcel")
    return found


def _send(session: Session, offline: OfflineBundle, name: str) -> JsonObject:
    data = offline.read(name, sealed_message.LIMIT)
    sent: JsonObject = session.api.upload(
        at("folders", "parcels"), {"parcel": ("parcel", data)}, {}
    )
    return sent


def _incomplete(receipts: list[JsonObject]) -> list[str]:
    """Exports with a missing part: the last part has their number."""
    trips: dict[tuple[str, str], list[JsonObject]] = {}
    for one in receipts:
        trips.setdefault((one["device"], one["trip"]), []).append(one)
    return [
        f"{device} {trip}"
        for (device, trip), found in trips.items()
        if len(found) != max(one["parts"] for one in found)
    ]


def _label(plan: JsonObject) -> bytes:
    label = Label(
        ca=plan["ca"],
        made_s=plan["made_at"],
        valid_until_s=plan["valid_until_at"],
        devices=plan["devices"],
        releases=plan["releases"],
    )
    return msgspec.json.format(msgspec.json.encode(label))


def _summary(plan: JsonObject, folder: Path) -> JsonObject:
    names = ("devices", "releases", "made_at", "valid_until_at")
    summary = {name: plan[name] for name in names}
    return summary | {"folder": str(folder), "bytes": sum(b["size"] for b in plan["blobs"])}


def _export_lines(plan: JsonObject, folder: Path) -> str:
    releases = plain(plan["releases"]) or "no release"
    bytes_ = size(sum(b["size"] for b in plan["blobs"]))
    return (
        f"{folder}: {releases} ({bytes_}) for {plain(plan['devices'])}\n"
        f"install until {instant(plan['valid_until_at'])}; on each device:\n\n"
        f"  shoal-agent import {folder}\n"
    )
