"""Upload of a contribution: by the site's gateway while the controller names one, else in pieces.

The controller names the gateway with every Start; without one the device uploads directly, and a
device that cannot reach its gateway does so at once. The state is in memory: after a restart the
controller sends Start again, and what was handed over is on the gateway's disk.
"""

import logging
from collections.abc import Callable, Sequence

from shoal.agent.federated.ports import CONTRIBUTION, SITE_SUM, FederatedPorts, SiteSumFile
from shoal.agent.federated.round_jobs import JobKind, RoundJob, RoundJobs
from shoal.agent.host.faults import Fault
from shoal.agent.installed.record import RoundRecord, RoundState, SavedUpdate
from shoal.errors import LinkError, ShoalError, UntrustedError
from shoal.federated import messages
from shoal.federated.chunks import Chunk, chunk_of

_log = logging.getLogger(__name__)

#: Bytes of a piece; seconds between two, so that telemetry messages are not delayed.
PIECE, PAUSE_S = 256 << 10, 0.05
#: Unacknowledged messages at the broker beyond which no further piece is sent: on a slow link they
#: would only wait in memory.
AHEAD = 16
#: Seconds before an unready gateway is asked again; attempts to reach one.
AGAIN_S, TRIES = 1.0, 3
#: Bytes of a contribution beside 12 for each number, 4 of them in theta.
_AROUND = 65_536


class PieceUpload:
    """One saved file, sent piece by piece and read from the disk as it goes.

    read        start, length -> that part of the file
    link_ready  whether the link can take another piece
    send        publishes a piece; False without a connection
    """

    def __init__(
        self,
        saved: SavedUpdate,
        read: Callable[[int, int], bytes],
        link_ready: Callable[[], bool],
        send: Callable[[Chunk], bool],
    ) -> None:
        self.saved, self._read, self._link_ready, self._send = saved, read, link_ready, send
        self._total = max(1, -(-saved.length // PIECE))
        self._pending: list[int] = []

    @property
    def pending(self) -> bool:
        """Whether there are pieces to send."""
        return bool(self._pending)

    def request(self, missing: Sequence[int] = ()) -> None:
        """Queue these pieces (none named: all) that are not queued already."""
        wanted = [i for i in missing if i < self._total] or list(range(self._total))
        self._pending += [i for i in sorted(set(wanted)) if i not in self._pending]

    def send_next(self) -> bool:
        """Send one piece; False when none is queued or the link cannot take it."""
        if not self._pending or not self._link_ready():
            return False
        index = self._pending[0]
        data = self._read(index * PIECE, PIECE)
        sent = self._send(chunk_of(self.saved.digest, index, self._total, self.saved.length, data))
        if sent:
            self._pending.pop(0)
        return sent


class Upload:
    """Upload of one attempt's contribution.

    record   the attempt's journal record as it is now
    answer   publishes an answer to the controller; whether it was sent
    """

    def __init__(
        self,
        device: str,
        ports: FederatedPorts,
        clock: Callable[[], float],
        jobs: RoundJobs,
        *,
        record: Callable[[], RoundRecord],
        answer: Callable[[messages.DeviceMessage], bool],
        fault: Callable[[Fault], None],
    ) -> None:
        self._device, self._ports, self._clock, self._jobs = device, ports, clock, jobs
        self._record, self._answer, self._fault = record, answer, fault
        self._pieces: PieceUpload | None = None
        self._route: messages.GatewayRoute | None = None
        self._site_sum: SiteSumFile | None = None
        self._delivered = self._direct = self._waiting = False
        self._retry_s, self._tries = 0.0, 1

    def set_route(self, route: messages.GatewayRoute | None) -> None:
        """Use the gateway of the latest Start, if the signed plan names it; None: directly."""
        record = self._record()
        if route is not None and route.gateway not in record.config.plan.gateways.values():
            route = None
        self._route, self._delivered = route, False
        if route is None:
            self._stop_collecting()
        elif route.gateway == self._device and not self._direct:
            self._collect(record, route)

    def start(self, missing: Sequence[int] = ()) -> None:
        """Hand over to the gateway, or queue pieces: the missing ones, or all."""
        if self._by_gateway():
            return
        name, saved = self._file()
        if self._pieces is None or self._pieces.saved != saved:
            if self._ports.collector is not None:
                missing = ()  # indexes may be those of the other file
            self._pieces = self._piece_upload(name, saved)
        if missing or not self._pieces.pending:
            self._pieces.request(missing)

    def send_next(self) -> float:
        """Send a queued piece; seconds until the next. StorageError when it cannot be read."""
        sent = self._pieces is not None and self._pieces.send_next()
        return PAUSE_S if sent else float("inf")

    @property
    def waiting(self) -> bool:
        """Whether `start` has to be called again for the gateway."""
        return self._waiting

    def close(self) -> None:
        """Drop what is queued, and stop accepting updates from the site."""
        self._pieces = None
        self._stop_collecting()

    # ------------------------------------------------------------------ pieces

    def _file(self) -> tuple[str, SavedUpdate]:
        """Name and digest of the file to send: the site's sum once made, else this device's."""
        if self._site_sum is not None:
            return SITE_SUM, self._site_sum.saved
        saved = self._record().contribution
        assert saved is not None
        return CONTRIBUTION, saved

    def _piece_upload(self, name: str, saved: SavedUpdate) -> PieceUpload:
        attempt, sandbox = self._record().attempt, self._ports.sandbox
        return PieceUpload(
            saved,
            lambda start, length: sandbox.piece(attempt, start, length, name),
            self._ports.link_ready,
            lambda chunk: self._answer(messages.Piece(chunk=chunk)),
        )

    # ------------------------------------------------------------------ gateway

    def _by_gateway(self) -> bool:
        """Whether the contribution is sent, or waits to be sent, by the gateway."""
        self._waiting, route = False, self._route
        if route is None or self._direct:
            return False
        if route.gateway == self._device:
            return self._site_sum is None and self._sum_site(route)
        self._waiting = not self._delivered
        if self._waiting and self._clock() >= self._retry_s:
            record = self._record()
            self._begin(JobKind.HAND_OVER, lambda: self._hand_over(record, route))
        return True

    def _begin(self, kind: JobKind, work: Callable[[], object]) -> None:
        self._jobs.begin(kind, self._record().attempt, lambda _: work(), self._on_result)

    def _on_result(self, job: RoundJob) -> None:
        """Handing over or summing ended: retry, go direct, or send the sum."""
        if self._record().state is not RoundState.SENT or self._route is None or self._direct:
            return
        if isinstance(job.error, LinkError) and self._tries < TRIES:
            self._tries += 1
            self._retry_s = self._clock() + AGAIN_S
        elif job.error is not None:
            _log.warning("uploading the update directly: %s", job.error)
            if isinstance(job.error, UntrustedError):
                self._fault(Fault("peer-untrusted", str(job.error)))
            self._direct = True
            self._stop_collecting()
        elif job.kind is JobKind.SUM_SITE:
            self._site_sum = self._valid(job.value)
        else:
            self._delivered = bool(job.value)
            self._retry_s = self._clock() + AGAIN_S
        self.start()

    def _collect(self, record: RoundRecord, route: messages.GatewayRoute) -> None:
        collector = self._ports.collector
        try:
            if collector is None:
                raise UntrustedError("the plan names this device, and its [gateway] is not enabled")
            members = {name: route.generation_of(name) for name in route.members}
            collector.open(record.attempt, members, 3 * record.config.theta.length + _AROUND)
        except ShoalError as error:
            self._fault(Fault("no-gateway", f"this site uploads directly: {error}"))
            self._direct = True
        self._site_sum = self._valid(self._site_sum)

    def _valid(self, made: SiteSumFile | None) -> SiteSumFile | None:
        """None, so that it is made again, once a device in it has uploaded directly."""
        valid = made and self._route and made.members <= {*self._route.members}
        return made if valid else None

    def _sum_site(self, route: messages.GatewayRoute) -> bool:
        """Wait for the site's members, then sum; False when no other update was received."""
        collector = self._ports.collector
        assert collector is not None  # else self._direct
        others = {*route.members} - {self._device}
        received = collector.received() & others
        if received != others and self._clock() < route.close_s:
            self._waiting = True
            return True
        if not received:
            return False
        record, members = self._record(), {*received, self._device}
        size = record.config.theta.length // 4
        self._waiting = True
        self._begin(
            JobKind.SUM_SITE, lambda: collector.sum(record.attempt, members, size, route.most)
        )
        return True

    def _hand_over(self, record: RoundRecord, route: messages.GatewayRoute) -> bool:
        assert record.contribution is not None
        data = self._ports.sandbox.piece(record.attempt, 0, record.contribution.length)
        return self._ports.hand_over(route, record.attempt, data)

    def _stop_collecting(self) -> None:
        self._site_sum = None
        if self._ports.collector is not None:
            self._ports.collector.close()
