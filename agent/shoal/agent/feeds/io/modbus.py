"""Source `modbus`: registers of a Modbus TCP server (PLC, drive, meter), polled."""

import logging
import threading
from typing import Annotated, Any

import msgspec

from shoal.agent.feeds.frames import Quality, frame_of
from shoal.agent.feeds.io.connection import ReconnectingFeed
from shoal.agent.feeds.io.interface import Context, Emit, ServerSettings
from shoal.agent.feeds.registers import Block, Tag, blocks, split, value
from shoal.agent.host.faults import Fault
from shoal.agent.host.optional_libraries import needs
from shoal.errors import LinkError, SettingError


class ModbusSettings(ServerSettings, frozen=True, kw_only=True):
    """Registers of a Modbus TCP server, polled. Needs shoal[agent-modbus].

    host, port  of the server
    unit        unit id of the device, 0 to 255
    every_s     seconds between two polls
    timeout_s   timeout of a request, in seconds
    tags        tables of name, address (from 0), table ("holding", "input", "coil", "discrete"),
                type ("int16", "uint16", "int32", ..., "float64", "bool"), words ("big" or
                "little") and bit (0 to 15; -1 for the whole)
    asset       name of what the server measures
    """

    host: str
    port: int = 502
    unit: Annotated[int, msgspec.Meta(ge=0, le=255)] = 1
    every_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 3.0
    tags: Annotated[list[Tag], msgspec.Meta(min_length=1, max_length=10_000)]
    asset: str = ""


class Modbus(ReconnectingFeed):
    """Polls every tag, adjacent ones in one request; one frame a poll.

    An exception response (illegal address, busy) is bad quality for its tags until the next poll.
    No response ends the connection.
    """

    Settings = ModbusSettings

    def __init__(self, settings: ModbusSettings, context: Context, emit: Emit) -> None:
        super().__init__(context, settings.retry_s)
        names = [tag.name for tag in settings.tags]
        if len(set(names)) < len(names):
            raise SettingError(f"agent.toml: sources.{context.name}.tags has a name twice")
        self._settings, self._emit = settings, emit
        # A failed attempt is logged by ReconnectingFeed, with the name of the source.
        logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)
        self._library, self._failures = needs("pymodbus.client"), needs("pymodbus.exceptions")

    def serve(self, stopping: threading.Event) -> None:
        """One connection, a frame every `every_s`."""
        settings, clock = self._settings, self.context.monotonic
        client = self._library.ModbusTcpClient(
            settings.host, port=settings.port, timeout=settings.timeout_s, retries=0
        )
        try:
            if not client.connect():
                raise LinkError(f"{settings.host}:{settings.port} does not respond")
            self.tally.came_up()
            wanted, due = blocks(settings.tags), clock()
            while not stopping.wait(max(0.0, due - clock())):
                due = max(due + settings.every_s, clock())
                wanted = self._poll(client, wanted)
        finally:
            client.close()

    def _poll(self, client: Any, wanted: list[Block]) -> list[Block]:
        """Read every block and emit a frame; the blocks to read next time."""
        values = {tag.name: float("nan") for tag in self._settings.tags}
        bad = dict.fromkeys(values, Quality.BAD)
        begun, after = self.context.wall(), list[Block]()
        while wanted:
            block, wanted = wanted[0], wanted[1:]
            response = self._read_block(client, block)
            if response is None and len(block.tags) > 1:
                wanted = split(block) + wanted  # one illegal address must not cost the others
                continue
            after.append(block)
            for tag in block.tags if response is not None else ():
                values[tag.name] = value(tag, block, response)
                del bad[tag.name]
        frame = frame_of(begun, values, asset=self._settings.asset, qualities=bad)
        self.tally.bad += len(bad)
        self.tally.gave(frame)
        self._emit(frame)
        return after

    def _read_block(self, client: Any, block: Block) -> Any:
        """Registers or bits; None for an exception response. LinkError for no response."""
        read = {
            "holding": client.read_holding_registers,
            "input": client.read_input_registers,
            "coil": client.read_coils,
            "discrete": client.read_discrete_inputs,
        }[block.table]
        try:
            response = read(block.address, count=block.length, device_id=self._settings.unit)
        except self._failures.ModbusException as error:
            raise LinkError(f"no response from unit {self._settings.unit}: {error}") from error
        bits = block.table in ("coil", "discrete")
        if not response.isError():
            found = response.bits if bits else response.registers
            if len(found) >= block.length:
                return found
        if len(block.tags) == 1:
            self._report_tag(block.tags[0], getattr(response, "exception_code", 0))
        return None

    def _report_tag(self, tag: Tag, code: int) -> None:
        known = {1: "this table cannot be read", 2: "there is no such address", 6: "it is busy"}
        why = known.get(code, f"exception {code}")
        where = f"{self.context.name}: {tag.name} ({tag.table} {tag.address})"
        self.context.fault(Fault("bad-tag", f"{where}: {why}"))
