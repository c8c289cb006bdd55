"""Reasons why devices drop out of rounds and why rounds fail: display names and hints."""

from shoal.controller.web.causes import Cause, cause_name, hint

_MALICIOUS = "No honest controller asks for this: find out who runs it."
#: Reason slug -> display name and hint.
DROPOUTS: dict[str, Cause] = {
    # decided by the device
    "not-enabled": Cause("Learning is off", "On the device: enabled = true under [learning]."),
    "few-rows": Cause(
        "Too few labelled rows", "Label more on the device: shoal-agent labels add; or wait."
    ),
    "busy": Cause("Too many requests for inference", "Nothing: it takes part when it is idle."),
    "on-battery": Cause("On battery", "Nothing: it takes part on mains power."),
    "hot": Cause("Too hot", "Nothing: it takes part once it has cooled."),
    "small-cohort": Cause(
        "Too few devices in the sum",
        "Plan another task with a higher pace.least; or lower cohort on the device.",
    ),
    "bare-update": Cause(
        "It requires secure aggregation", "Plan the task with --secure, or let the device decide."
    ),
    "long-clip": Cause("Clip is larger than it allows", "Lower clip in the task's privacy."),
    "little-noise": Cause("Less noise than it requires", "Raise noise in the task's privacy."),
    "central-noise": Cause(
        "It does not trust noise added by the controller",
        "Plan local or distributed noise; or trust_central on the device.",
    ),
    "unknown-graph": Cause(
        "It does not allow this graph", "If you trust it, add its SHA-256 to graphs on the device."
    ),
    "budget-spent": Cause(
        "Privacy budget is spent", "Nothing: by design it will not take part again."
    ),
    "late": Cause("The invitation arrived too late", "Check its network, or raise pace.recruit_s."),
    "answered-before": Cause(
        "It already answered this round", "Nothing: a round is answered once."
    ),
    "restarted": Cause(
        "It restarted in a secure round", "Nothing: by design its secrets are not kept."
    ),
    "in-another-round": Cause(
        "It takes part in another task's round",
        "Nothing: one round at a time. In an asynchronous round a late device trains on.",
    ),
    "other-terms": Cause(
        "It does not support the strategy's terms", "Update its agent, or plan another strategy."
    ),
    "other-rows": Cause(
        "Its rows do not fit the graph", "See which columns it keeps: shoal-agent labels."
    ),
    "little-memory": Cause(
        "Training needs more memory than it allows", "Raise memory_mb under [learning] there."
    ),
    "diverged": Cause("Its training diverged", "Lower lr, or look at its rows."),
    "bad-graph": Cause("The train graph does not run on it", "Update its agent; see its log."),
    "trainer-died": Cause("Its trainer process died", "See the log of its agent."),
    "agent-bug": Cause("Its agent failed", "See its log, and report the bug."),
    # ... in secure aggregation: it revealed nothing
    "second-ending": Cause("It was asked to unmask a second sum", _MALICIOUS),
    "neighbours": Cause("Its neighbors in the graph do not match the roster", _MALICIOUS),
    "alive-and-dead": Cause("A device was reported both alive and lost", _MALICIOUS),
    "stranger": Cause("The sum has a device that is not on the roster", _MALICIOUS),
    "not-in-the-sum": Cause("Its own update was reported lost", _MALICIOUS),
    "threshold": Cause(
        "Too few devices to open the sum", "Invite more: raise pace.goal, or pace.over."
    ),
    # observed by the controller
    "no-answer": Cause("No answer in time", "Check the device, or raise pace.train_s."),
    "no-boxes": Cause(
        "Its keys were not shared in time", "Check its network; raise pace.unmask_s."
    ),
    "still-training": Cause(
        "Still training: counts later", "Nothing: the task does not wait for it."
    ),
    "decommissioned": Cause("Decommissioned", "Nothing."),
    "bad-update": Cause("Unusable update", "Its training diverged: lower lr."),
    "bad-answer": Cause("A message that made its reader fail", "See the controller's log."),
    "wrong-shares": Cause("Sent wrong shares", "Find out why before it takes part again."),
    # why a round failed
    "too-few-joined": Cause(
        "Too few devices joined", "See the reasons below; or lower pace.least."
    ),
    "too-few-updates": Cause(
        "Too few updates arrived", "See the reasons below; or raise pace.train_s."
    ),
    "nobody-measured": Cause(
        "No device evaluated the checkpoint", "See the reasons below; or raise pace.evaluate_s."
    ),
    "bare-measure": Cause(
        "It does not report evaluations", "Nothing: it keeps its losses private."
    ),
    "aborted": Cause("Aborted", "Start more rounds to continue the task."),
    "superseded": Cause("Superseded by another checkpoint", "Nothing: it is retried."),
    "quarantined": Cause(
        "It ran on a poisoned checkpoint", "Nothing: the task continues from a clean one."
    ),
    "cannot-aggregate": Cause(
        "Updates could not be aggregated", "The round's detail has the reason."
    ),
    "strategy-failed": Cause("The strategy failed", "The round's detail has the reason."),
    # why an update is an outlier
    "far-longer": Cause("Far longer than the others", "Compare its data and labels with others'."),
    "far-shorter": Cause(
        "Far shorter than the others", "It may have few rows, or none that change the model."
    ),
    "against-the-others": Cause(
        "Points against the others",
        "Compare its data and labels with others'; quarantine the round if it is malicious.",
    ),
}


def name_of(slug: str) -> str:
    """Display name of a reason; other slugs are named as causes."""
    return DROPOUTS[slug].name if slug in DROPOUTS else cause_name(slug)


def hint_of(slug: str) -> str:
    """What to do about a reason; "" for an unknown one."""
    return DROPOUTS[slug].hint if slug in DROPOUTS else hint(slug)
