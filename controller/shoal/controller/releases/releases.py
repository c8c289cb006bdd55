"""Releases: packed once, immutable, and signed for canary devices or for the whole fleet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Text, cast, select, update

from shoal import bundle
from shoal import manifest as manifests
from shoal.controller.access import audit
from shoal.controller.host.context import Context
from shoal.controller.operations.operations import Operation
from shoal.controller.releases import (
    attestations,
    quarantine,
    retirement,
    revocation,
    verdicts,
)
from shoal.controller.releases.records import Built, Origin, Release, Signature
from shoal.controller.runs import recording
from shoal.controller.store import changes, used_versions
from shoal.controller.store.paging import Orders, has_text, page_of
from shoal.controller.store.records import Page
from shoal.controller.store.tables import model as models_table
from shoal.controller.store.tables import release
from shoal.errors import AbsentError, ConflictError
from shoal.manifest import SCHEMA, TENSORS_SCHEMA, FederatedOrigin, File, Manifest, Variant
from shoal.profile import load_profiles
from shoal.tasks import Task
from shoal.trust import CANDIDATE, RELEASE

VALIDATED, REFUSED, SIGNED_CANDIDATE, RELEASED = "validated", "refused", "candidate", "released"
#: Of a release whose deletion has begun: it can only go.
DELETING = "deleting"
#: Retired model -> what that says of each of its releases.
Retired = Mapping[str, Mapping[str, Any]]
_RETIRED_NAMES = select(models_table.c.name).where(models_table.c.retired_at > 0)
_ORDERS: Orders = {
    "created": (release.c.created_at, release.c.model, release.c.version),
    "model": (release.c.model, release.c.version),
    "state": (release.c.state, release.c.created_at, release.c.model, release.c.version),
}
_REPORT = (
    "task", "estimator", "metrics", "by_site", "variants", "verdicts", "signatures", "labels",
    "features", "params",
)  # fmt: skip


def list_releases(ctx: Context, model: str = "", *, retired: bool = True) -> list[Release]:
    """Releases of one model or of all, newest first. retired: with those that are retired."""
    query = select(release).order_by(release.c.created_at.desc(), release.c.version.desc())
    if model:
        query = query.where(release.c.model == model)
    with ctx.store.read() as db:
        whole, revoked = _retired_models(db), revocation.revoked_releases(db, model)
        found = [_record(db, row, whole, revoked) for row in db.execute(query).all()]
    return [one for one in found if retired or not one.retired_at]


def page(
    ctx: Context,
    *,
    model: str = "",
    state: str = "",
    q: str = "",
    retired: bool = True,
    sort: str = "-created",
    cursor: str = "",
    limit: int = 50,
) -> tuple[list[Release], Page]:
    """Releases that match every given filter, newest first unless `sort` says otherwise.

    state    of Release
    q        part of "model@version", of the dataset or of who made it
    retired  with those that are retired, or whose model is
    Raises InputError for an unknown order, an invalid limit or cursor.
    """
    mine = release.c
    wanted = [mine.model == model] if model else []
    wanted += [mine.state == state] if state else []
    ref = mine.model + "@" + cast(mine.version, Text)
    wanted += has_text(q, ref, mine.dataset, mine.created_by)
    if not retired:
        wanted += [mine.retired_at == 0, mine.model.not_in(_RETIRED_NAMES)]
    query = select(release).where(*wanted)
    with ctx.store.read() as db:
        rows, made = page_of(db, query, _ORDERS, sort=sort, cursor=cursor, limit=limit)
        whole, revoked = _retired_models(db), revocation.revoked_releases(db, model)
        return [_record(db, row, whole, revoked) for row in rows], made


def signed_refs(ctx: Context, limit: int) -> list[str]:
    """ "model@version" of releases that may be rolled out, newest first."""
    mine = release.c
    able = (mine.retired_at == 0) & mine.state.in_((RELEASED, SIGNED_CANDIDATE))
    able &= ~revocation.IS_REVOKED
    query = select(mine.model, mine.version).where(able, mine.model.not_in(_RETIRED_NAMES))
    with ctx.store.read() as db:
        rows = db.execute(query.order_by(mine.created_at.desc()).limit(limit))
        return [f"{row.model}@{row.version}" for row in rows]


def get_release(ctx: Context, ref: str) -> Release:
    """One release, "model@version"; AbsentError if there is none such."""
    with ctx.store.read() as db:
        row = _row(db, ref)
        return _record(db, row, _retired_models(db), revocation.revoked_releases(db, row.model))


def manifest_of(ctx: Context, ref: str) -> tuple[Manifest, bytes]:
    """The release's manifest and its bytes, which are signed, and named in orders by hash."""
    with ctx.store.read() as db:
        data = _row(db, ref).manifest
    return manifests.parse(data), data


def references_of(ctx: Context, ref: str) -> bytes:
    """JSON bytes of the release's reference sketches: shoal.sketch.References."""
    with ctx.store.read() as db:
        return bytes(_row(db, ref).references)


def pack(ctx: Context, operation: Operation, built: Built, parent: str) -> Release:
    """Store a built model as the next version of its model, unsigned.

    The model's row must exist. State is "refused" if a gate failed: a person may override it.
    """
    model = operation.subject
    files = _store_files(ctx, built)
    with ctx.store.write() as db:
        newest = select(release.c.version).where(release.c.model == model)
        known = db.scalar(newest.order_by(release.c.version.desc()).limit(1)) or 0
        version = max(known, used_versions.newest(db, "model", model)) + 1
        epoch = revocation.epoch_of(db, model)
        bare = _manifest(ctx, operation, built, files, version, epoch)
        environment = recording.environment_of(db, operation.id)
        data = manifests.encode(attestations.attach(ctx, bare, built, operation, environment))
        ctx.blobs.put_bytes(data)
        ref = f"{model}@{version}"
        db.execute(
            release.insert().values(
                model=model,
                version=version,
                state=REFUSED if built.why_refused else VALIDATED,
                dataset=operation.params["dataset"],
                dataset_sha256=operation.params["dataset_sha256"],
                operation=operation.id,
                trigger=operation.params["trigger"],
                parent=parent,
                created_at=ctx.clock(),
                created_by=operation.created_by,
                report=_report(operation, built),
                manifest=data,
                references=built.references,
            )
        )
        recording.record(
            db, operation.id, main=built.main, metrics=built.metrics | built.reported,
            params=built.params, curves=built.curves,
        )  # fmt: skip
        audit.record(
            db, ctx, operation.created_by, "release.build", ref,
            manifest=bundle.describe("", data).sha256, refused=built.why_refused,
        )  # fmt: skip
        changes.note(db, ctx, "release", ref)
    return get_release(ctx, ref)


def publish(ctx: Context, *, actor: str, ref: str, override: str = "") -> Release:
    """Sign a release for the whole fleet.

    override   reason to publish a refused release: it is stored and audited, and every built
               variant is listed for every profile that names it

    ConflictError for a refused release without an override, and for one in quarantine in any
    case. Publishing twice changes nothing.
    """
    found = get_release(ctx, ref)
    quarantine.check(found)
    _check_stays(ctx, found)
    if found.state == RELEASED:
        return found
    if found.state == REFUSED and not override:
        raise ConflictError(
            f"{ref} was refused: {found.why_refused}",
            "train a better one, or publish with --override and the reason",
        )
    if override and found.state != SIGNED_CANDIDATE:
        _list_everything(ctx, found)
    return _sign(ctx, found, RELEASE, actor, state=RELEASED, override=override)


def sign_candidate(ctx: Context, ref: str) -> Release:
    """Sign a validated release with the automation key: only canary devices accept it.

    ConflictError if a gate refused it: automation cannot override gates.
    """
    found = get_release(ctx, ref)
    quarantine.check(found)
    _check_stays(ctx, found)
    if found.state in (SIGNED_CANDIDATE, RELEASED):
        return found
    if found.state == REFUSED:
        raise ConflictError(f"{ref} was refused: {found.why_refused}", "train a better one")
    return _sign(ctx, found, CANDIDATE, "automation", state=SIGNED_CANDIDATE)


def latest_of(ctx: Context, model: str) -> str:
    """The newest signed release, else the newest that no gate refused, else ""; none retired."""
    order = {RELEASED: 0, SIGNED_CANDIDATE: 1, VALIDATED: 1}
    listed = list_releases(ctx, model, retired=False)
    found = [r for r in listed if r.state in order and not r.quarantined]
    best = min(found, key=lambda r: (order[r.state], -r.version), default=None)
    return best.ref if best else ""


def _check_stays(ctx: Context, found: Release) -> None:
    """ConflictError for a release that is retired or being deleted."""
    if found.state == DELETING:
        raise ConflictError(f"{found.ref} is being deleted")
    with ctx.store.read() as db:
        retirement.check_release(db, found.ref)


def _sign(
    ctx: Context, found: Release, role: str, actor: str, *, state: str, override: str = ""
) -> Release:
    """Store the manifest, sign it, then record the signature."""
    _, data = manifest_of(ctx, found.ref)
    ctx.blobs.put_bytes(data)
    ctx.signer.add_target(role, found.model, found.version, data)
    made = Signature(role=role, key=ctx.signer.key_id(role, found.model), at=ctx.clock(), by=actor)
    with ctx.store.write() as db:
        report = dict(_row(db, found.ref).report)
        report["signatures"] = [*report["signatures"], msgspec.to_builtins(made)]
        _set(db, found, state=state, override=override, report=report)
        facts = {"override": override} if override else {}
        audit.record(db, ctx, actor, f"release.sign.{role}", found.ref, **facts)
        changes.note(db, ctx, "release", found.ref)
    return get_release(ctx, found.ref)


def _list_everything(ctx: Context, found: Release) -> None:
    """List every built variant for every profile that names it."""
    manifest, _ = manifest_of(ctx, found.ref)
    built = [variant.name for variant in manifest.variants]
    profiles, refused = verdicts.overridden(found.verdicts, built, load_profiles())
    data = manifests.encode(msgspec.structs.replace(manifest, profiles=profiles, refused=refused))
    with ctx.store.write() as db:
        _set(db, found, manifest=data)


def _set(db: Connection, found: Release, **values: Any) -> None:
    mine = (release.c.model == found.model) & (release.c.version == found.version)
    db.execute(update(release).where(mine).values(**values))


def _store_files(ctx: Context, built: Built) -> dict[str, File]:
    contents: dict[str, bytes | Path] = {
        **{f"{name}.onnx": data for name, data in built.files.items()},
        "reference.json": built.references,
        _golden_name(built): built.golden,
        "card.md": built.card.encode(),
        **{name: path for files in built.data.values() for name, path in files.items()},
    }
    return {name: _store(ctx, name, content) for name, content in contents.items()}


def _store(ctx: Context, name: str, content: bytes | Path) -> File:
    if isinstance(content, bytes):
        ctx.blobs.put_bytes(content)
        return bundle.describe(name, content)
    file = bundle.describe_file(name, content)
    if not ctx.blobs.exists(file.sha256):
        ctx.blobs.put_file(content)
    return file


def _golden_name(built: Built) -> str:
    return "golden.npz" if built.signature is None else "golden.msgpack"


def _manifest(
    ctx: Context,
    operation: Operation,
    built: Built,
    files: Mapping[str, File],
    version: int,
    epoch: int,
) -> Manifest:
    profiles, refused = verdicts.served(built.verdicts, load_profiles())
    rows = built.signature is None
    return Manifest(
        schema=SCHEMA if rows else TENSORS_SCHEMA,
        model=operation.subject,
        version=version,
        release_counter=epoch,
        task=built.task,
        input="input" if rows else "",
        output="output" if rows else "",
        features=built.features,
        labels=built.labels if rows else [],
        variants=[
            Variant(
                name=v.name,
                file=files[f"{v.name}.onnx"],
                metrics=v.metrics,
                data=[files[name] for name in built.data.get(v.name, ())] or msgspec.UNSET,
                alone=True if v.in_company else msgspec.UNSET,
            )
            for v in built.variants
            if not v.dropped
        ],
        profiles=profiles,
        refused=refused,
        reference=files["reference.json"],
        golden=files[_golden_name(built)],
        card=files["card.md"],
        opset=built.opset,
        ort=built.ort,
        threshold=built.threshold,
        pipeline=built.pipeline,
        created_s=ctx.clock(),
        dataset=operation.params["dataset"],
        dataset_sha256=operation.params["dataset_sha256"],
        taught=_federated_origin(operation),
        signature=msgspec.UNSET if built.signature is None else built.signature,
        steps=(built.tensors and built.tensors.steps) or msgspec.UNSET,
        meaning=_meaning(built),
    )


def _meaning(built: Built) -> Task | msgspec.UnsetType:
    if built.tensors is None or built.tensors.task is None:
        return msgspec.UNSET
    return built.tensors.task.meaning


def _federated_origin(operation: Operation) -> FederatedOrigin | None:
    stored = operation.params.get("origin")
    if stored is None:
        return None
    origin = msgspec.convert(stored, Origin)
    return FederatedOrigin(
        task=origin.task,
        round=origin.number,
        rounds=len(origin.rounds),
        devices=len(origin.devices),
        examples=sum(one.examples for one in origin.devices),
        strategy=origin.strategy,
        epsilon=origin.epsilon,
    )


def _report(operation: Operation, built: Built) -> dict[str, Any]:
    facts = {name: getattr(built, name) for name in _REPORT if hasattr(built, name)}
    facts |= {"estimator": operation.params["estimator"], "signatures": []}
    facts |= {"features": [f.name for f in built.features], "why_refused": built.why_refused}
    facts |= {"origin": operation.params.get("origin"), "tensors": built.tensors}
    facts |= {"notes": built.notes}
    return msgspec.to_builtins(facts)


def _row(db: Connection, ref: str) -> Row[Any]:
    model, version = manifests.parse_release(ref)
    mine = (release.c.model == model) & (release.c.version == version)
    row = db.execute(select(release).where(mine)).first()
    if row is None:
        raise AbsentError("release", ref, "list them: shoal release list")
    return row


def _retired_models(db: Connection) -> Retired:
    """Since when, and by whom: of the models that are retired, and with them their releases."""
    mine = models_table.c
    query = select(mine.name, mine.retired_at, mine.retired_by).where(mine.retired_at > 0)
    return {
        row.name: {"retired_at": row.retired_at, "retired_by": row.retired_by}
        for row in db.execute(query)
    }


def _record(
    db: Connection, row: Row[Any], retired: Retired, revoked: revocation.Revoked
) -> Release:
    columns = {str(k): v for k, v in row._mapping.items() if k not in ("report", "manifest")}
    report = {name: row.report[name] for name in _REPORT}
    origin = row.report.get("origin")
    gone = revoked.get(f"{row.model}@{row.version}")
    reason = quarantine.why(db, origin) if gone is None else revocation.why_of(gone)
    report |= {"origin": origin, "quarantined": reason}
    report |= {} if gone is None else {"revoked_at": gone.at}
    report |= {"tensors": row.report.get("tensors")}
    report |= {"why_refused": row.report.get("why_refused", "")}
    report |= {"notes": row.report.get("notes", [])}
    report |= retired.get(row.model, {})
    return msgspec.convert(columns | report, Release)
