"""Why devices do not take part in rounds, and why rounds end badly: names, and what to do."""

from shoal.controller.web.causes import Cause, cause, hint

_ASKED_WRONG = "The controller asked for what no honest one does: find out who runs it."
#: Reason slug -> what it is called and what to do about it.
DROPOUTS: dict[str, Cause] = {
    # what a device judges for itself
    "not-enabled": Cause("Learning is off", "On the device: enabled = true under [learning]."),
    "few-rows": Cause(
        "Too few labelled rows", "Label more on the device: shoal-agent labels add; or wait."
    ),
    "busy": Cause("Its models were asked too much", "Nothing: it takes part when it is idle."),
    "on-battery": Cause("On battery", "Nothing: it takes part on mains power."),
    "hot": Cause("Too hot", "Nothing: it takes part once it has cooled."),
    "small-cohort": Cause(
        "Too few others in the sum",
        "Plan a task of another name with a higher pace.least; or lower cohort on the device.",
    ),
    "bare-update": Cause(
        "It wants secure aggregation", "Plan the task with --secure, or let the device decide."
    ),
    "long-clip": Cause("Clip is longer than it allows", "Lower clip in the task's privacy."),
    "little-noise": Cause("Less noise than it asks for", "Raise noise in the task's privacy."),
    "central-noise": Cause(
        "Noise of the controller is only promised",
        "Plan local or distributed noise; or trust_central on the device.",
    ),
    "unknown-graph": Cause(
        "It does not run this graph", "If you trust it, add its SHA-256 to graphs on the device."
    ),
    "budget-spent": Cause(
        "Privacy budget is spent", "Nothing: it will not take part again. That is the point of it."
    ),
    "late": Cause("The invitation came too late", "Look at its link, or raise pace.recruit_s."),
    "answered-before": Cause("It answered this round before", "Nothing: a round is answered once."),
    "restarted": Cause(
        "It restarted in a secure round", "Nothing: its secrets are gone on purpose."
    ),
    "in-another-round": Cause(
        "It takes part in another task's round",
        "Nothing: one at a time. Who is late for an asynchronous one keeps at it to its deadline.",
    ),
    "other-terms": Cause(
        "It does not know the strategy's terms", "Update its agent, or plan another strategy."
    ),
    "other-rows": Cause(
        "Its rows are not those of the graph", "See which columns it keeps: shoal-agent labels."
    ),
    "little-memory": Cause(
        "Training needs more memory than it gives", "Raise memory_mb under [learning] there."
    ),
    "diverged": Cause("Its training diverged", "Lower lr, or look at its rows."),
    "bad-graph": Cause("The train graph does not run there", "Update its agent; see its log."),
    "trainer-died": Cause("Its trainer died", "See the log of its agent."),
    "agent-bug": Cause("Its agent failed", "See its log, and tell us."),
    # ... of a securely aggregated round: it gave nothing away
    "second-ending": Cause("It was asked to open a second sum", _ASKED_WRONG),
    "neighbours": Cause("Its neighbours are not the roster's", _ASKED_WRONG),
    "alive-and-dead": Cause("A device was said to be alive and lost", _ASKED_WRONG),
    "stranger": Cause("The sum had a device that is not on the roster", _ASKED_WRONG),
    "not-in-the-sum": Cause("Its own update was said to be lost", _ASKED_WRONG),
    "threshold": Cause(
        "Too few devices to open the sum", "Invite more: raise pace.goal, or pace.over."
    ),
    # what the controller saw
    "no-answer": Cause("No answer in time", "Look at the device; or raise pace.train_s."),
    "no-boxes": Cause("Its keys were not shared in time", "Look at its link; raise pace.unmask_s."),
    "still-training": Cause("Still trains: counts later", "Nothing: the task waits for nobody."),
    "decommissioned": Cause("Decommissioned meanwhile", "Nothing."),
    "bad-update": Cause("An update that cannot be used", "Its training diverged: lower lr."),
    "bad-answer": Cause("An answer that broke what read it", "See the log of the controller."),
    "wrong-shares": Cause("Sent wrong shares", "Find out why before it takes part again."),
    # why a round failed
    "too-few-joined": Cause(
        "Too few devices joined", "See the reasons below; or lower pace.least."
    ),
    "too-few-updates": Cause(
        "Too few updates came", "See the reasons below; or raise pace.train_s."
    ),
    "nobody-measured": Cause(
        "Nobody measured the checkpoint", "See the reasons below; or raise pace.evaluate_s."
    ),
    "bare-measure": Cause(
        "It tells nobody how a model does", "Nothing: it wants its losses hidden."
    ),
    "aborted": Cause("Aborted", "Start further rounds when the task is to go on."),
    "superseded": Cause("Overtaken by another checkpoint", "Nothing: it is tried again."),
    "quarantined": Cause(
        "It ran on a poisoned checkpoint", "Nothing: the task goes on from a clean one."
    ),
    "cannot-aggregate": Cause("Updates could not be aggregated", "The round's detail says why."),
    "strategy-failed": Cause("The strategy failed", "The round's detail says why."),
    # why an update stands out
    "far-longer": Cause("Far longer than the others", "Compare its data and labels with others'."),
    "far-shorter": Cause(
        "Far shorter than the others", "It may have few rows, or none that teach."
    ),
    "against-the-others": Cause(
        "Pulls against the others",
        "Compare its data and labels with others'; quarantine if it lied.",
    ),
}


def dropout(slug: str) -> str:
    """What a reason is called; one that is not known here as the rest of the console calls it."""
    return DROPOUTS[slug].name if slug in DROPOUTS else cause(slug)


def dropout_hint(slug: str) -> str:
    """What can be done about it; "" when that is not known."""
    return DROPOUTS[slug].hint if slug in DROPOUTS else hint(slug)
