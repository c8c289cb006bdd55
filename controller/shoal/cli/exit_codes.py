"""Exit codes of the CLI, and which error ends with which; docs/cli.md has the same table."""

from shoal.errors import (
    AbsentError,
    ConflictError,
    DatasetError,
    DeniedError,
    LinkError,
    SettingError,
    ShoalError,
    hint_fields,
)

OK, FAILED, USAGE, DENIED, ABSENT, CONFLICT, UNREACHABLE, TIMED_OUT = range(8)
INTERRUPTED = 130

MEANING = {
    OK: "done",
    FAILED: "failed: the operation itself, or a check",
    USAGE: "the command line, a file or a setting is wrong",
    DENIED: "not signed in, or not allowed",
    ABSENT: "not found",
    CONFLICT: "the current state does not allow this",
    UNREACHABLE: "the controller cannot be reached, or does not have the pinned CA",
    TIMED_OUT: "still running when --timeout expired",
    INTERRUPTED: "interrupted by Ctrl-C",
}

_BY_STATUS = {401: DENIED, 403: DENIED, 404: ABSENT, 409: CONFLICT, 412: CONFLICT}
_BY_KIND: list[tuple[type[ShoalError], int]] = [
    (DeniedError, DENIED),
    (AbsentError, ABSENT),
    (ConflictError, CONFLICT),
    (LinkError, UNREACHABLE),
    (SettingError, USAGE),
    (DatasetError, USAGE),
]


class ProblemError(ShoalError):
    """The controller refused the request with an RFC 9457 problem.

    status   of the HTTP answer
    body     the whole problem
    """

    def __init__(self, status: int, body: dict[str, object]) -> None:
        detail = str(body.get("detail") or body.get("title") or f"HTTP {status}")
        hint = str(body.get("hint") or body.get("mend") or "")  # mend: of an older controller
        super().__init__(detail, "" if hint in detail else hint)
        self.status, self.body = status, hint_fields(hint) | body
        self.code = str(body.get("type", "")).rpartition("/")[2] or "error"


class FailedError(ShoalError):
    """An operation, a rollout, a round or a step of the demo failed."""

    code = "failed"


class StillRunningError(ShoalError):
    """The operation was still running when --timeout expired."""

    code = "timed-out"


def exit_code(error: ShoalError) -> int:
    """Exit code for an error."""
    if isinstance(error, ProblemError):
        if error.status in _BY_STATUS:
            return _BY_STATUS[error.status]
        return USAGE if 400 <= error.status < 500 and error.status != 429 else FAILED
    if isinstance(error, StillRunningError):
        return TIMED_OUT
    return next((code for kind, code in _BY_KIND if isinstance(error, kind)), FAILED)
