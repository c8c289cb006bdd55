"""An exported audit log: JSON lines of entries, oldest first, then one of the signed head."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shoal.audit_chain import Head, check_head, follow
from shoal.errors import SettingError, TrustError, UntrustedError

#: Bytes of a line, or of a head.
LONGEST = 8 << 20


def verify(file: Path, heads: Sequence[Path], root: Path | None) -> dict[str, Any]:
    """Check an export's chain, its own signed head, and those in `heads`, against a root.

    TrustError names the first wrong entry; UntrustedError for a head that the root did not sign;
    SettingError for a file that is no export.
    """
    own: list[dict[str, Any]] = []
    found = follow(_entries(file, own))
    if not own:
        raise SettingError(
            f"{file} has no signed head: it was filtered, or cut at the end",
            "export it without a filter: shoal audit export FILE",
        )
    signed = [(path, _load(path)) for path in heads] + [(file, own[0])]
    trusted, origin = (_read(root), root) if root else (_root(signed[0][1]), signed[0][0])
    for path, one in signed:
        check_head(found, newest := _verified(one, trusted, path))
    if newest.id < len(found):
        raise TrustError(f"audit entries from {newest.id + 1} on are not signed", entry=newest.id)
    digest = hashlib.sha256(trusted).hexdigest()
    return {"entries": len(found), "root": str(origin), "root_sha256": digest}


def save_head(path: Path, head: Any) -> None:
    """Write a signed head; SettingError if the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.encode(head))
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}", "choose another file") from error


def _entries(file: Path, signed: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Entries of an export; its signed head is put into `signed`."""
    needed = {"id", "at", "actor", "verb", "subject", "detail", "hash"}
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(LONGEST):
            number += 1
            value = _object(line, f"{file}, line {number}")
            if signed:
                raise SettingError(f"{file}, line {number}: the signed head is not the last line")
            if set(value) == {"signed"}:
                signed.append(value["signed"])
            elif needed <= set(value) and isinstance(value["id"], int):
                yield value
            else:
                raise SettingError(f"{file}, line {number}: no entry of an audit log")


def _verified(head: Any, root: bytes, path: Path) -> Head:
    """The head that the timestamp of `head` signs for `root`, expired or not; 0 in one without."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root, Timestamp

    try:
        timestamp = Metadata[Timestamp].from_bytes(msgspec.json.encode(head["timestamp"]))
        Metadata[Root].from_bytes(root).verify_delegate(Timestamp.type, timestamp)
        audit = timestamp.signed.unrecognized_fields.get("shoal", {}).get("audit", {})
        return Head(int(audit.get("id", 0)), str(audit.get("hash", "")))
    except RepositoryError as error:
        raise UntrustedError(
            f"the signed head in {path} is not signed by the root in use",
            "if its keys were rotated since, give the newer root.json: --root FILE",
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingError(f"{path}: no signed head of an audit log") from error


def _load(path: Path) -> dict[str, Any]:
    return _object(_read(path), str(path))


def _root(head: Any) -> bytes:
    try:
        return msgspec.json.encode(head["root"])
    except (KeyError, TypeError) as error:
        raise SettingError("a signed head without a root", "give --root FILE") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LONGEST)
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}") from error


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise SettingError(f"{where}: {error}", "see: shoal audit export --help") from error
