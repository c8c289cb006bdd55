"""Which group decides for a device: selectors compared, and the rule between overlapping groups.

Of nested groups the narrowest decides; of groups that overlap otherwise, the one whose release was
moved last. Both are one comparison, since a rollout moves every group within what it targets.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shoal.controller.rollouts import cohort
from shoal.controller.rollouts.cohort import Candidate
from shoal.controller.rollouts.records import Selector, StagePlan

#: Name of the group of all devices.
FLEET = "fleet"
_FIELDS = ("site", "profile", "ring", "line")


class Runs(NamedTuple):
    """What a group runs of one model. release: "" for none; rollout: by which, at `since`."""

    group: str
    select: Selector
    model: str
    release: str
    rollout: str
    since: float
    reason: str = ""


def text_of(select: Selector) -> str:
    """A selector as text, the same for equal ones.

    >>> text_of(Selector(ring="canary", site="north")), text_of(Selector())
    ('site=north,ring=canary', 'fleet')
    """
    pairs = [(name, getattr(select, name)) for name in (*_FIELDS, "label")]
    return ",".join(f"{name}={value}" for name, value in pairs if value) or FLEET


def whole(select: Selector) -> Selector:
    """The selector of all devices from which a percentage is drawn."""
    return Selector(
        ring=select.ring,
        site=select.site,
        profile=select.profile,
        label=select.label,
        line=select.line,
    )


def contains(wide: Selector, narrow: Selector) -> bool:
    """Whether every device of `narrow` is one of `wide`, whatever the devices.

    >>> contains(Selector(label="gpu"), Selector(label="gpu=2", site="north"))
    True
    """
    same = all(getattr(wide, name) in ("", getattr(narrow, name)) for name in _FIELDS)
    label = not wide.label or wide.label == narrow.label
    return same and (label or wide.label == narrow.label.partition("=")[0])


def moved(stages: Sequence[StagePlan], successful: Iterable[str]) -> list[Selector]:
    """Selectors whose devices were all taken by the stages that have succeeded, in order.

    successful   names of those stages. A stage of 10 % moves no group: the rest is not its own.
    """
    names = set(successful)
    taken = [one.select for one in stages if one.name in names and one.select.percent == 100]
    return list(dict.fromkeys(whole(select) for select in taken))


def widest(selects: Iterable[Selector]) -> list[Selector]:
    """Without those that another one contains.

    >>> widest([Selector(ring="canary"), Selector()]) == [Selector()]
    True
    """
    distinct = list(dict.fromkeys(whole(select) for select in selects))
    return [one for one in distinct if not any(o != one and contains(o, one) for o in distinct)]


def deciding(runs: Iterable[Runs], one: Candidate) -> dict[str, Runs]:
    """Model -> what the group that decides for a device runs of it; absent where no group does."""
    found: dict[str, Runs] = {}
    for each in runs:
        if cohort.fits(each.select, one):
            best = found.get(each.model)
            if best is None or _rank(each) > _rank(best):
                found[each.model] = each
    return found


def _rank(one: Runs) -> tuple[float, int, str]:
    given = sum(bool(getattr(one.select, name)) for name in (*_FIELDS, "label"))
    return one.since, given + ("=" in one.select.label), one.group
