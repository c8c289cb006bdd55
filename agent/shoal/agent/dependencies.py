"""What the agent needs of the world. Adapters are in io/; tests/scenario has them in memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

from shoal.agent.host.downloads import Downloads
from shoal.agent.host.load import Load
from shoal.agent.host.randomness import Random
from shoal.agent.installed.ports import Journal, Slots
from shoal.agent.serving.engine import Loader
from shoal.agent.serving.session_reports import NoSessionReports, SessionReports
from shoal.agent.telemetry.ports import Link, Outbox
from shoal.agent.update.ports import Images, Prober
from shoal.wire import Health

if TYPE_CHECKING:
    from shoal.agent.federated.ports import FederatedPorts


class Ports(NamedTuple):
    """Everything that is passed in.

    spawn    runs a job now or on a thread of its own; the job never raises
    lock     makes a lock for one model's window
    timer    seconds, for latency
    load     what presses on the machine now
    disciplined   whether the machine's clock is set from the network
    sessions what programs with a session of their own say of a release on trial
    """

    journal: Journal
    outbox: Outbox
    slots: Slots
    downloads: Downloads
    images: Images
    loader: Loader
    prober: Prober
    link: Link
    health: Callable[[], Health]
    spawn: Callable[[Callable[[], None]], None]
    lock: Callable[[], AbstractContextManager[object]]
    wall: Callable[[], float]
    monotonic: Callable[[], float]
    timer: Callable[[], float]
    random: Random
    load: Callable[[], Load] = Load
    learning: "FederatedPorts | None" = None
    sessions: SessionReports = NoSessionReports()
    disciplined: Callable[[], bool] = lambda: False
