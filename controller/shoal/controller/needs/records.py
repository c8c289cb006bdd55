"""Records of what needs a person."""

from shoal.controller.store.records import Record


class Action(Record, frozen=True, kw_only=True):
    """What a person does about it: one button, and one command.

    label    of the button: a verb with its object
    href     path of the console's page where it is decided
    command  for the command line, works as it is printed
    role     lowest role that can act
    """

    label: str
    href: str
    command: str
    role: str


class Need(Record, frozen=True, kw_only=True):
    """One thing that needs a person.

    kind      rollout_paused, rollout_approval, trailing_paused, candidate, candidate_refused,
              alerts (critical ones, folded by site and kind), devices_failing (folded by cause),
              devices_offline, certificates_end, metadata_ends
    severity  critical, warning, info
    subject   id or name of what it is about; "" where that is many
    sentence  what happened, one sentence
    facts     details, each short
    count     things that it stands for
    since     since when, Unix seconds; 0: unknown
    """

    kind: str
    severity: str
    subject: str
    sentence: str
    facts: list[str]
    count: int
    since: float
    action: Action
