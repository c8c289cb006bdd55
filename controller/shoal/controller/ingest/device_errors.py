"""A device's current error, as the messages of one batch change it: none outlives its cause.

An error is set by a fault or a failed update of the device, or found by ingest itself. It is
cleared by what shows that its cause is over: the end of the fault, an update that succeeds, a
window or inventory that is accepted, or a new process of the agent, which reports anew what is
still wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from shoal.controller.rollouts import update_events
from shoal.controller.rollouts.update_events import Key
from shoal.controller.store.tables import device_event
from shoal.wire import FaultEvent

#: Characters of an error.
LONGEST = 500
#: Beginnings of the errors that ingest finds.
REJECTED, WRONG_RING = "a message was rejected: ", "reports ring "
INVENTORY = f"{REJECTED}inventory"


class DeviceErrors:
    """Changes of errors in one batch. devices: name -> row with its `error` before the batch."""

    def __init__(self, db: Connection, devices: Mapping[str, Any]) -> None:
        self._db, self._devices = db, devices
        self._set: dict[Key, str] = {}
        self._ended: dict[Key, str] = {}
        self._found: dict[str, str] = {}
        self._cleared: set[str] = set()

    def on_fault(self, key: Key, message: FaultEvent) -> None:
        """A fault, or the end of one, which clears the error that it had set."""
        over = message.facts.get("ended")
        if message.severity != "info":
            self._set.setdefault(key, message.detail or message.cause)
        elif isinstance(over, str) and over:
            self._ended.setdefault(key, over[:LONGEST])
        elif message.cause == update_events.IMPORTED:
            self._set.setdefault(key, "")  # clears the error of an import refused before

    def on_find(self, name: str, text: str) -> None:
        """Ingest itself found that something is wrong."""
        self._found[name] = text

    def on_end(self, name: str, begins: str, but: str = "\0") -> None:
        """The cause of an error that begins so, and not with `but`, is over."""

        def is_over(error: str) -> bool:
            return error.startswith(begins) and not error.startswith(but)

        if is_over(self._found.get(name, "")):
            del self._found[name]
        if is_over(self._devices[name].error):
            self._cleared.add(name)

    def on_session(self, name: str, session: str, previous: str) -> None:
        """A connection; one of a new process of the agent clears an error that a fault had set."""
        error = self._devices[name].error
        if not error or session.partition("-")[0] == previous.partition("-")[0]:
            return
        same = select(device_event.c.seq).where(
            device_event.c.device == name,
            device_event.c.kind == "fault",
            func.substr(device_event.c.detail, 1, LONGEST) == error,
        )
        if self._db.execute(same.limit(1)).first() is not None:
            self._cleared.add(name)

    def after(self, events: Sequence[Key], of_updates: Mapping[Key, str]) -> dict[str, str]:
        """Device -> its error after the batch, "" for none; devices without a change are absent.

        events   keys of the new events, in order of arrival; of_updates: errors set by updates
        """
        last = dict.fromkeys(self._cleared, "")
        set_by = self._set | dict(of_updates)
        for key in events:
            name = key[0]
            before = last.get(name, self._devices[name].error)[:LONGEST]
            if key in set_by:
                last[name] = set_by[key]
            elif key in self._ended and before == self._ended[key]:
                last[name] = ""
        return last | self._found
