"""States of a device in a rollout, and their groups as the gate counts them.

The update states of the agent (shoal.agent.installed.record) by name, and the controller's own:
WAITING for its stage, ASSIGNED but not reported since, SKIPPED because it cannot or need not run
this release.
"""

WAITING, ASSIGNED, SKIPPED = "WAITING", "ASSIGNED", "SKIPPED"
SUCCEEDED, ALREADY_INSTALLED = "SUCCEEDED", "ALREADY_INSTALLED"
FAILED, REJECTED, TIMED_OUT, CANCELED = "FAILED", "REJECTED", "TIMED_OUT", "CANCELED"

SUCCESSES = frozenset({SUCCEEDED, ALREADY_INSTALLED})
FAILURES = frozenset({FAILED, REJECTED, TIMED_OUT})
#: Counts neither for nor against the release.
EXCLUDED = frozenset({SKIPPED, CANCELED})
ENDED = SUCCESSES | FAILURES | EXCLUDED
#: Worth another attempt; a device that rejects it will reject it again.
RETRIED = frozenset({FAILED, TIMED_OUT})
#: Cause that does not count as a failure: the release has no files for this profile.
UNSUPPORTED = "unsupported-profile"
#: The same, because its agent does not read the release's manifest.
OUTDATED = "outdated-agent"
#: The same: the device's clock is wrong, so that signatures have expired or orders are late by it.
CLOCK = "clock"
#: Assigned, and still before the swap.
CANCELABLE = frozenset({ASSIGNED, "QUEUED", "DOWNLOADING", "DOWNLOADED", "INSTALLING", "PROBING"})
SWAPPING = frozenset({"ACTIVATING", "OBSERVING", "COMMITTING"})


def reported(state: str, cause: str) -> str:
    """State to store for a reported one.

    >>> reported("REJECTED", "unsupported-profile"), reported("FAILED", "too-slow")
    ('SKIPPED', 'FAILED')
    >>> reported("TIMED_OUT", "clock")
    'SKIPPED'
    """
    skipped = (state == REJECTED and cause == UNSUPPORTED) or (state in FAILURES and cause == CLOCK)
    return SKIPPED if skipped else state


def follows(old: str, new: str) -> bool:
    """Whether `new`, reported of the same attempt, may replace `old`.

    A final state that the controller set itself (deadline, abort) is replaced by the one that the
    device reports; no final state is replaced by an earlier step.

    >>> follows("TIMED_OUT", "SUCCEEDED"), follows("SUCCEEDED", "OBSERVING")
    (True, False)
    """
    return old not in ENDED or new in ENDED
