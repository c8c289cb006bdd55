"""Source `modbus`: registers of a Modbus TCP server (PLC, drive, meter), polled."""

import functools
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec

from shoal.address import host_port
from shoal.agent.feeds.frames import Quality, frame_of
from shoal.agent.feeds.io.connection import ReconnectingFeed
from shoal.agent.feeds.io.interface import Context, Emit, ServerSettings
from shoal.agent.feeds.register_plan import Block, Failure, Plan
from shoal.agent.feeds.registers import Table, Tag, text, value
from shoal.agent.feeds.tag_faults import TagFaults
from shoal.agent.host.optional_libraries import needs
from shoal.errors import LinkError, SettingError

#: Where a message has its unit: after transaction, protocol and length, of two bytes each.
_UNIT = 6
#: Seconds after which a request that the device could not serve now is sent again, once.
RETRY_S = 0.1
#: Exceptions that are about the request: address, and value (a length beyond the device's limit).
_OF_REQUEST = (2, 3)
#: Exceptions that sending again may mend: device failure, acknowledge, busy, parity, gateway.
_OF_MOMENT = (4, 5, 6, 8, 10, 11)
_MEANING = {
    1: "this table cannot be read",
    2: "there is no such address",
    3: "the device does not read it at this length",
    4: "the device failed",
    6: "the device is busy",
    10: "the gateway has no path to the device",
    11: "the device behind the gateway does not respond",
}


class ModbusSettings(ServerSettings, frozen=True, kw_only=True):
    """Registers of a Modbus TCP server, polled. Needs shoal[agent-modbus].

    host, port  of the server
    unit        unit id of the device, 0 to 255
    every_s     seconds between two polls
    timeout_s   timeout of a request, in seconds
    tags        tables of name, address (from 0), table ("holding", "input", "coil", "discrete"),
                type ("int16", "uint16", "int32", ..., "float64", "bool", "bcd16", "bcd32",
                "string" with length), words and bytes ("big" or "little"), bit and bits (-1 for
                the whole), scale, offset and missing (the number that stands for no value)
    asset       name of what the server measures
    asset_tag   name of the tag whose text is the asset instead, such as a serial number
    label_tag   name of the tag with the true class or value, for the accuracy
    """

    host: str
    port: int = 502
    unit: Annotated[int, msgspec.Meta(ge=0, le=255)] = 1
    every_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 3.0
    tags: Annotated[list[Tag], msgspec.Meta(min_length=1, max_length=10_000)]
    asset: str = ""
    asset_tag: str = ""
    label_tag: str = ""


class Modbus(ReconnectingFeed):
    """Polls every tag, adjacent ones in one request; one frame a poll.

    A request that the device refuses is read in parts (register_plan); one that it cannot serve now
    is sent once more, and is then bad quality for its tags until the next poll. No response to
    both ends the connection.
    """

    Settings = ModbusSettings

    def __init__(self, settings: ModbusSettings, context: Context, emit: Emit) -> None:
        super().__init__(context, settings.retry_s)
        where, tags = f"agent.toml: sources.{context.name}", settings.tags
        names = {tag.name for tag in tags}
        if len(names) < len(tags):
            raise SettingError(f"{where}.tags has a name twice")
        for setting in ("asset_tag", "label_tag"):
            named = getattr(settings, setting)
            if named and named not in names:
                raise SettingError(f"{where}.{setting}: no tag has the name {named!r}")
        self._settings, self._emit, self._plan = settings, emit, Plan(tags)
        self._faults = TagFaults(context.name, len(tags), context.fault)
        self.tally.partly = lambda: self._faults.summary
        self._answering = settings.unit
        self._texts = {settings.asset_tag, settings.label_tag} - {""}
        # A failed attempt is logged by ReconnectingFeed, with the name of the source.
        logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)
        self._library, self._failures = needs("pymodbus.client"), needs("pymodbus.exceptions")

    def serve(self, stopping: threading.Event) -> None:
        """One connection, a frame every `every_s`."""
        settings, clock = self._settings, self.context.monotonic
        client = self._library.ModbusTcpClient(
            settings.host,
            port=settings.port,
            timeout=settings.timeout_s,
            retries=0,
            trace_packet=self._traced,
        )
        self._answering = settings.unit
        try:
            if not client.connect():
                raise LinkError(f"{host_port(settings.host, settings.port)} does not respond")
            self.tally.came_up()
            due = clock()
            while not stopping.wait(max(0.0, due - clock())):
                due = max(due + settings.every_s, clock())
                self._poll(functools.partial(self._read_block, client, stopping), stopping)
        finally:
            client.close()

    def _poll(
        self, request: Callable[[Block], Sequence[int] | Failure], stopping: threading.Event
    ) -> None:
        """Read every block and emit a frame, unless `stopping` ends it before."""
        settings, plan, now = self._settings, self._plan, self.context.monotonic()
        values = {tag.name: math.nan for tag in settings.tags if tag.name not in self._texts}
        texts, begun = dict[str, str](), self.context.wall()
        for block in plan.blocks(now):
            for part, response in plan.read(block, request, now):
                for tag in part.tags:
                    registers = part.part(tag, response)
                    if tag.name in self._texts:
                        texts[tag.name] = text(tag, registers)
                    else:
                        values[tag.name] = value(tag, registers)
                    self._faults.worked(tag.name)
        if stopping.is_set():
            return
        bad = {name: Quality.BAD for name, found in values.items() if not math.isfinite(found)}
        label = texts.get(settings.label_tag, "")
        frame = frame_of(
            begun, values, asset=texts.get(settings.asset_tag, settings.asset), qualities=bad
        )
        frame = frame._replace(labels=[label] if label else None)
        self.tally.bad += len(bad)
        self.tally.gave(frame)
        self._emit(frame)

    def _read_block(
        self, client: Any, stopping: threading.Event, block: Block
    ) -> Sequence[int] | Failure:
        """Registers or bits of a block, or the failure of both attempts; LinkError for silence."""
        code, why = 0, ""
        for attempt in range(2):
            if stopping.wait(RETRY_S if attempt else 0.0):
                return Failure.PASSING
            response = self._send(client, block, is_last=attempt > 0)
            code = 0 if response is None else getattr(response, "exception_code", 0)
            if response is None:
                continue
            if not response.isError():
                bits = block.tags[0].is_bit
                found: list[int] = response.bits if bits else response.registers
                if len(found) >= block.length:
                    return found
                code, why = 3, f"{len(found)} of {block.length} values in the response"
            if code not in _OF_MOMENT:
                break
        failure = Failure.REFUSED if code in _OF_REQUEST else Failure.PASSING
        if failure is Failure.PASSING or len(block.tags) == 1:
            self._report(block, why or _MEANING.get(code, f"exception {code}"), code)
        return failure

    def _send(self, client: Any, block: Block, *, is_last: bool) -> Any:
        """The response; None for silence. LinkError for the last silence, or a lost connection."""
        read = {
            "holding": client.read_holding_registers,
            "input": client.read_input_registers,
            "coil": client.read_coils,
            "discrete": client.read_discrete_inputs,
        }[block.table]
        try:
            return read(block.address, count=block.length, device_id=self._settings.unit)
        except self._failures.ConnectionException as error:
            raise LinkError(f"unit {self._settings.unit}: {error}") from error
        except self._failures.ModbusException as error:
            if not is_last:
                return None
            unit, other = self._settings.unit, self._answering
            hint = "" if other == unit else f"unit {other} responds instead: set unit = {other}"
            raise LinkError(f"no response from unit {unit}: {error}", hint) from error

    def _traced(self, is_sent: bool, data: bytes) -> bytes:
        """Note which unit a response is of: the library skips those of another one."""
        if not is_sent and len(data) > _UNIT:
            self._answering = data[_UNIT]
        return data

    def _report(self, block: Block, why: str, code: int) -> None:
        for tag in block.tags:
            hint = _of_manual(tag) if code == 2 else ""
            self._faults.failed(tag.name, f"{tag.table} {tag.address}", why + hint)


def _of_manual(tag: Tag) -> str:
    """A hint for an address as manuals count them: 40001 is the holding register of address 0."""
    tables: dict[int, Table] = {1: "discrete", 3: "input", 4: "holding"}
    first, rest = divmod(tag.address, 10_000)
    if first not in tables or not rest:
        return ""
    return (
        f'; if a manual says {tag.address}, write table = "{tables[first]}", address = {rest - 1}'
    )
