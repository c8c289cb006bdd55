"""Ports of updates: the prober, and all that the runner is built from."""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from shoal.agent.host.hours import Hours
from shoal.agent.host.ports import Downloads, Random
from shoal.agent.installed.ports import Slots, UpdateJournal
from shoal.agent.installed.record import Slot
from shoal.agent.peers.policy import PeerDirectory
from shoal.agent.serving.engine import Loader
from shoal.agent.serving.session_reports import SessionReports
from shoal.agent.update.acceptance import Measured
from shoal.profile import Profile
from shoal.sketch import F32
from shoal.trust import ImageRepository


class Prober(Protocol):
    """Runs a slot's variants off the serving path; ModelError when the process crashes.

    recent   local inputs (n, F) for shadow inference, run by `beside` too
    prepare  start the process of the next probe early; dismiss: end it, no probe follows
    """

    def prepare(self, profile: Profile) -> None: ...
    def dismiss(self) -> None: ...
    def probe(
        self,
        model: str,
        slot: str,
        profile: Profile,
        recent: F32 | None,
        beside: Slot | None,
        stop: Callable[[], bool],
    ) -> list[Measured]: ...


class UpdateSettings(NamedTuple):
    """Settings of agent.toml for updates.

    observe_s   length of the observation of a new release
    hours       of the day in which files are downloaded
    """

    observe_s: float = 60.0
    hours: Hours = Hours()


class UpdatePorts(NamedTuple):
    """Ports of updates.

    spawn     runs a job now or on a thread of its own; the job never raises
    sessions  reports of programs with a session of their own on a release on trial
    peers     updated by each assignment
    headroom  MB of memory that one more process may use
    """

    journal: UpdateJournal
    slots: Slots
    downloads: Downloads
    images: ImageRepository
    loader: Loader
    prober: Prober
    spawn: Callable[[Callable[[], None]], None]
    random: Random
    sessions: SessionReports
    peers: PeerDirectory
    headroom: Callable[[], float] = lambda: math.inf
