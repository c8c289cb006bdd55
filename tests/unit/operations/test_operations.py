"""Long work and the trail it leaves."""

from pathlib import Path

import pytest
from sqlalchemy import delete, update

from controllers import make_context
from shoal.controller.access import audit
from shoal.controller.host.context import Context
from shoal.controller.operations import operations
from shoal.controller.store import changes
from shoal.controller.store.tables import audit as audit_table
from shoal.errors import AbsentError, ConflictError, StorageError


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path)


def ask(ctx: Context, subject: str = "lot-codes") -> str:
    return operations.enqueue(
        ctx, actor="ana", kind="train", subject=subject, params={"dataset": "d@1"}
    ).id


def test_work_is_done_in_the_order_it_was_asked_for(ctx: Context) -> None:
    first = ask(ctx)
    ctx.clock.now += 1  # type: ignore[attr-defined]
    second = ask(ctx)
    claimed = [operations.claim_next(ctx), operations.claim_next(ctx)]
    assert [c.id for c in claimed if c] == [first, second]
    assert operations.claim_next(ctx) is None


def test_progress_can_be_watched_to_the_end(ctx: Context) -> None:
    ident = ask(ctx)
    operations.claim_next(ctx)
    operations.progress(ctx, ident, 0.5, "quantizing")
    halfway = operations.get_operation(ctx, ident)
    assert (halfway.state, halfway.progress, halfway.step) == ("running", 0.5, "quantizing")
    done = operations.finish(ctx, ident, result={"release": "lot-codes@1"})
    assert (done.state, done.progress, done.result) == (
        "succeeded", 1.0, {"release": "lot-codes@1"}
    )  # fmt: skip
    assert [c.kind for c in changes.since(ctx, 0)] == ["operation"] * 4


def test_a_failed_operation_keeps_its_error_and_stays_failed(ctx: Context) -> None:
    ident = ask(ctx)
    assert operations.finish(ctx, ident, error="no rows; add rows").error == "no rows; add rows"
    with pytest.raises(ConflictError, match="failed already"):
        operations.finish(ctx, ident, result={})
    assert operations.list_operations(ctx, state="failed")[0].id == ident


def test_an_unknown_operation_is_absent(ctx: Context) -> None:
    with pytest.raises(AbsentError):
        operations.get_operation(ctx, "op-0")


def test_the_audit_chain_detects_a_changed_entry_and_a_missing_one(ctx: Context) -> None:
    for subject in ("a", "b", "c"):
        ask(ctx, subject)
    assert audit.verify(ctx) == 3
    assert audit.list_audit(ctx, limit=2)[0][0].subject == "c"
    with ctx.store.write() as db:
        db.execute(update(audit_table).where(audit_table.c.id == 2).values(actor="eve"))
    with pytest.raises(StorageError, match="entry 2"):
        audit.verify(ctx)
    with ctx.store.write() as db:
        db.execute(delete(audit_table).where(audit_table.c.id == 2))
    with pytest.raises(StorageError, match="entry 2 is missing"):
        audit.verify(ctx)


def test_the_audit_list_is_read_page_by_page(ctx: Context) -> None:
    for subject in ("a", "b", "c"):
        ask(ctx, subject)
    first, page = audit.list_audit(ctx, limit=2)
    rest, last = audit.list_audit(ctx, limit=2, cursor=page.next)
    assert [e.subject for e in [*first, *rest]] == ["c", "b", "a"]
    assert (page.total, last.next) == (3, "")
