"""How an agent paces its updates: observation, spread, times of day."""

from typing import NamedTuple

from shoal.agent.host.hours import Hours


class Pace(NamedTuple):
    """How an agent takes its time.

    observe_s   how long a new release is watched
    window_s    until the fleet's budget is heard
    hours       in which it downloads
    """

    observe_s: float = 60.0
    window_s: float = 60.0
    hours: Hours = Hours()
