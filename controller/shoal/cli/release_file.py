"""`shoal release export | verify | bom | provenance`: a release as a file, and what proves it."""

import hashlib
import time
from pathlib import Path
from typing import Any

import click

from shoal.cli.api import at
from shoal.cli.command import Command, Session
from shoal.cli.render import Columns, JsonObject, card, instant, plain, size
from shoal.errors import SettingError

_TARGET = click.Path(dir_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
#: Bytes of root metadata at most.
_ROOT_LIMIT = 262_144


@click.command("export", cls=Command)
@click.argument("release_", metavar="MODEL@N")
@click.argument("file", type=_TARGET)
@click.pass_obj
def export(session: Session, release_: str, file: Path) -> None:
    """Write a signed release to FILE: its files and the metadata that proves them.

    FILE is a ZIP archive. On any machine, without a network, `shoal release verify` proves it.

    \b
    Example:
      shoal release export lot-codes@2 lot-codes-2.zip
    """
    _download(session, at("releases", release_, "archive"), file)
    written: dict[str, Any] = {"release": release_, "file": str(file)}
    written["bytes"] = file.stat().st_size
    hint = f"prove it anywhere: shoal release verify {plain(str(file))} --root root.json"
    line = f"{plain(str(file))}: {size(written['bytes'])}; {hint}"
    session.show(written, lambda: line)


@click.command("verify", cls=Command)
@click.argument("file", type=_FILE)
@click.option(
    "--root", required=True, type=_FILE,
    help="root.json that you trust: a device's, or 1.root.json of the controller's "
    "repository/metadata.",
)  # fmt: skip
@click.pass_obj
def verify(session: Session, file: Path, root: Path) -> None:
    """Prove an exported release without a controller or a network.

    Proved, from the root that you trust: its signatures, every file, and that its provenance
    (dataset, run, gates, environment) is of these files. Ends with 1 and names what is wrong. It
    cannot tell whether the release was revoked after it was exported.

    \b
    Example:
      shoal release verify lot-codes-2.zip --root root.json
    """
    from shoal import release_archive  # the libraries of TUF take a while to load

    if root.stat().st_size > _ROOT_LIMIT:
        raise SettingError(f"{root} is no root.json: it is too large", "name a device's root.json")
    trusted = root.read_bytes()
    proven = release_archive.verify(file, trusted)
    found = _facts(proven) | {"root_sha256": hashlib.sha256(trusted).hexdigest()}
    session.show(found, lambda: card(found, _PROVEN))


@click.command("bom", cls=Command)
@click.argument("release_", metavar="MODEL@N")
@click.argument("file", type=_TARGET)
@click.pass_obj
def bom(session: Session, release_: str, file: Path) -> None:
    """Write the ML-BOM of a release to FILE: CycloneDX 1.6, JSON.

    It holds the model card, the dataset, every file with its hash, and the packages that built it.

    \b
    Example:
      shoal release bom lot-codes@2 lot-codes-2.cdx.json
    """
    _attestation(session, release_, "bom", file)


@click.command("provenance", cls=Command)
@click.argument("release_", metavar="MODEL@N")
@click.argument("file", type=_TARGET)
@click.pass_obj
def provenance(session: Session, release_: str, file: Path) -> None:
    """Write the provenance of a release to FILE: in-toto statement with SLSA provenance v1.

    It holds what was asked for, the dataset's hash, the code's revision, the run, the results of
    the gates, and the environment. It is a file of the release, which its signature covers.

    \b
    Example:
      shoal release provenance lot-codes@2 lot-codes-2.intoto.json
    """
    _attestation(session, release_, "provenance", file)


COMMANDS = (export, verify, bom, provenance)


def _attestation(session: Session, release: str, kind: str, file: Path) -> None:
    _download(session, at("releases", release, kind), file)
    session.show({"release": release, "file": str(file)}, lambda: f"written to {plain(str(file))}")


def _download(session: Session, path: str, file: Path) -> None:
    """Write the response to `file`, which a failed download does not leave behind."""
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as target:
            session.api.download(path, target)
        part.replace(file)
    except OSError as error:
        raise SettingError(f"{file}: {error.strerror}", "choose another file") from error
    finally:
        part.unlink(missing_ok=True)


def _facts(proven: Any) -> dict[str, Any]:
    """What was proved, of a release_archive.VerifiedRelease."""
    manifest, statement = proven.manifest, proven.statement
    found: dict[str, Any] = {
        "release": manifest.release,
        "signed_as": proven.role,
        "manifest_sha256": proven.sha256,
        "security_epoch": proven.epoch,
        "root_version": proven.root,
        "files": [file.name for file in manifest.files()],
        "bytes": sum(file.size for file in manifest.files()),
        "dataset": manifest.dataset,
        "dataset_sha256": manifest.dataset_sha256,
        "expires_at": proven.expires_s,
        "expired": proven.expires_s <= time.time(),
        "provenance": statement is not None,
    }
    if statement is None:
        return found
    made, details = statement.predicate.build_definition, statement.predicate.run_details
    gates: dict[str, Any] = {}
    for one in details.byproducts:
        gates = one.annotations if one.name == "gates" else gates
    return found | {
        "builder": details.builder.id,
        "run": details.metadata.invocation_id.rpartition(":")[2],
        "finished_on": details.metadata.finished_on,
        "revision": made.external_parameters.get("revision", ""),
        "gates": gates.get("release", ""),
    }


def _expiry(found: JsonObject) -> str:
    at = instant(found["expires_at"])
    return (
        f"[yellow]{at}, which has passed[/yellow]: devices want newer" if found["expired"] else at
    )


_PROVEN: Columns = {
    "proved": "release",
    "signed as": "signed_as",
    "root": lambda f: plain(f"version {f['root_version']}, from SHA-256 {f['root_sha256']}"),
    "signed until": _expiry,
    "manifest sha256": "manifest_sha256",
    "security epoch": "security_epoch",
    "files": lambda f: plain(f"{len(f['files'])}, {size(f['bytes'])}, each by its signed hash"),
    "dataset": "dataset",
    "data sha256": "dataset_sha256",
    "provenance": lambda f: (
        "agrees with the files" if f["provenance"] else "none: packed before there was any"
    ),
    "run": lambda f: plain(f.get("run", "")),
    "code revision": lambda f: plain(f.get("revision", "")),
    "gates": lambda f: plain(f.get("gates", "")),
    "built": lambda f: plain(f.get("finished_on", "")),
    "builder": lambda f: plain(f.get("builder", "")),
}
