"""The running agent's side of offline bundles: processed on every tick of the agent's loop.

The messages of an imported bundle are processed as if the broker had delivered them: an assignment
goes through the same verification, journal and table, and acks remove messages from the outbox. The
sealed message is deleted once the journal has the assignment; after a power cut it is processed
again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from shoal import wire
from shoal.agent.host.faults import Fault
from shoal.agent.host.io.folder import DIRECTOR, READY, WANTED, read_trusted
from shoal.agent.installed.ports import UpdateJournal
from shoal.agent.offline.io.cache import OfflineCache
from shoal.agent.offline.io.import_ import newest_director
from shoal.agent.offline.io.seal import open_sealed
from shoal.agent.telemetry.outbox import Outbox
from shoal.durable import write_durable
from shoal.errors import ShoalError, StorageError
from shoal.sealed_message import BatchMessage, MessageBatch
from shoal.trust import director_signers, verify_orders

#: Seconds until an assignment that is not in the journal yet is passed to the agent again.
RETRY_S = 5.0


class Callbacks(NamedTuple):
    """The agent around the exchange; all are called on its control loop.

    on_message  processes a message as if the broker had delivered it
    on_root     takes a new root of the director
    fault       reports a fault
    settled     whether no update is in flight
    inventory   releases and facts of the device
    """

    on_message: Callable[[BatchMessage], None]
    on_root: Callable[[bytes], None]
    fault: Callable[[Fault], None]
    settled: Callable[[], bool]
    inventory: Callable[[], wire.Inventory]


class OfflineExchange:
    """Imported bundles and requested exports of the agent in `folder`."""

    def __init__(
        self,
        folder: Path,
        device: str,
        *,
        journal: UpdateJournal,
        outbox: Outbox,
        callbacks: Callbacks,
        clock: Callable[[], float],
    ) -> None:
        self._folder, self._device, self._clock = folder, device, clock
        self._journal, self._outbox, self._callbacks = journal, outbox, callbacks
        self._cache = OfflineCache(folder)
        self._passed_at = 0.0

    def tick(self) -> None:
        """Do what is due; what the disk refuses is retried the next time."""
        try:
            if self._cache.exists:
                self._process()
            if (self._folder / WANTED).exists():
                self._prepare_export()
        except (StorageError, OSError) as error:
            self._callbacks.fault(Fault("storage", f"offline import or export waits: {error}"))

    def _process(self) -> None:
        rejected = self._cache.rejection()
        if rejected is not None:
            self._callbacks.fault(Fault(rejected.cause, rejected.detail, rejected.severity))
            self._cache.delete_rejection()
        sealed = self._cache.message()
        if not sealed:
            if self._callbacks.settled():
                self._cache.clear()
            return
        try:
            self._deliver(open_sealed(self._folder, sealed, self._device, self._clock()))
        except StorageError:
            raise
        except ShoalError as error:
            detail = f"imported bundle refused: {error}"
            self._callbacks.fault(Fault(error.code, detail, "warning"))
            self._cache.delete_message()

    def _deliver(self, batch: MessageBatch) -> None:
        """Deliver the assignment until it is in the journal, then the acks; then report."""
        for message in batch.letters:
            if message.kind == "assignment" and not self._journaled(message, batch):
                return
        for message in batch.letters:
            if message.kind == "ack":
                self._callbacks.on_message(message)
        record = self._cache.record()
        user = record.user if record else "unknown user"
        facts = {"user": user, "made_s": batch.made_s, "trip": batch.trip}
        detail = f"{user} imported a bundle: {_summary(batch)}"
        self._cache.delete_message()
        self._callbacks.fault(Fault("folder-imported", detail, "info", 1, facts))

    def _journaled(self, message: BatchMessage, batch: MessageBatch) -> bool:
        """Whether the journal has this assignment; else it is verified and passed to the agent."""
        if self._journal.assignment() == message.payload:
            return True
        root = self._root(batch)
        assignment = wire.decode_down(message.kind, message.payload)
        assert isinstance(assignment, wire.Assignment)
        verify_orders(
            assignment.signed,
            director_root=root,
            device=self._device,
            floor=self._journal.floors().of_assignments(director_signers(root)),
            now_s=self._clock(),
        )
        if self._clock() >= self._passed_at + RETRY_S:
            self._passed_at = self._clock()
            self._callbacks.on_message(message)
        return False

    def _root(self, batch: MessageBatch) -> bytes:
        """The director's newest root, saved if the bundle brings a newer one."""
        trusted = read_trusted(self._folder, DIRECTOR)
        newest = newest_director(trusted, batch.roots)
        if newest != trusted:
            write_durable(self._folder / DIRECTOR, newest)
            self._callbacks.on_root(newest)
        return newest

    def _prepare_export(self) -> None:
        """Number the messages in the outbox and write the inventory, for the exporting process."""
        self._outbox.number_all()
        write_durable(self._folder / READY, wire.encode(self._callbacks.inventory()))
        (self._folder / WANTED).unlink(missing_ok=True)


def _summary(batch: MessageBatch) -> str:
    kinds = [message.kind for message in batch.letters]
    return f"{kinds.count('assignment')} assignment, {kinds.count('ack')} acknowledgements"
