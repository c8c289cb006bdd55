"""One device in one rollout: which of its states mean what to a gate.

The states of the agent's installed.record by name, and the controller's own: WAITING for its
stage, ASSIGNED
and not heard of since, SKIPPED because it cannot or need not take this release.
"""

WAITING, ASSIGNED, SKIPPED = "WAITING", "ASSIGNED", "SKIPPED"
SUCCEEDED, ALREADY_INSTALLED = "SUCCEEDED", "ALREADY_INSTALLED"
FAILED, REJECTED, TIMED_OUT, CANCELED = "FAILED", "REJECTED", "TIMED_OUT", "CANCELED"

WON = frozenset({SUCCEEDED, ALREADY_INSTALLED})
LOST = frozenset({FAILED, REJECTED, TIMED_OUT})
#: Neither for nor against the release.
OUT = frozenset({SKIPPED, CANCELED})
ENDED = WON | LOST | OUT
#: Worth another attempt; a device that refuses will refuse again.
RETRIED = frozenset({FAILED, TIMED_OUT})
#: A device that says so is no failure of the release: this board was never meant to carry it.
UNSUPPORTED = "unsupported-profile"


def reported(state: str, cause: str) -> str:
    """State to keep for what a device said.

    >>> reported("REJECTED", "unsupported-profile"), reported("FAILED", "too-slow")
    ('SKIPPED', 'FAILED')
    """
    return SKIPPED if state == REJECTED and cause == UNSUPPORTED else state


def follows(old: str, new: str) -> bool:
    """Whether `new`, said of the same attempt, may replace `old`.

    The end that the controller wrote down itself (deadline, abort) gives way to what the device
    says became of it in truth; no end gives way to a step before it.

    >>> follows("TIMED_OUT", "SUCCEEDED"), follows("SUCCEEDED", "OBSERVING")
    (True, False)
    """
    return old not in ENDED or new in ENDED
