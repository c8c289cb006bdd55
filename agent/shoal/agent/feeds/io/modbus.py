"""Modbus TCP: registers of a PLC, a drive or a meter, asked for in turn."""

import logging
import threading
from typing import Annotated, Any

import msgspec

from shoal.agent.feeds.frames import Quality, frame_of
from shoal.agent.feeds.io.connection import Connecting
from shoal.agent.feeds.io.interface import Context, Emit, ServerSettings
from shoal.agent.feeds.registers import Block, Tag, apart, blocks, value
from shoal.agent.host.faults import Fault
from shoal.agent.host.optional_libraries import needs
from shoal.errors import LinkError, SettingError


class ModbusSettings(ServerSettings, frozen=True, kw_only=True):
    """Registers of a Modbus TCP server, read in turn. Needs shoal[agent-modbus].

    host, port  of the server
    unit        id of the device behind it, 0 to 255
    every_s     seconds from one reading to the next
    timeout_s   seconds until a request has failed
    tags        tables of name, address (from 0), table ("holding", "input", "coil", "discrete"),
                type ("int16", "uint16", "int32", ..., "float64", "bool"), words ("big" or
                "little") and bit (0 to 15; -1 for the whole)
    asset       what the server watches
    """

    host: str
    port: int = 502
    unit: Annotated[int, msgspec.Meta(ge=0, le=255)] = 1
    every_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 3.0
    tags: Annotated[list[Tag], msgspec.Meta(min_length=1, max_length=10_000)]
    asset: str = ""


class Modbus(Connecting):
    """Reads every tag, at once where they are neighbours; one frame a round.

    An exception of the device (an address that is not there, busy) is bad quality for the tags it
    concerns, and the next round asks again. No answer at all ends the connection.
    """

    Settings = ModbusSettings

    def __init__(self, settings: ModbusSettings, context: Context, emit: Emit) -> None:
        super().__init__(context, settings.retry_s)
        names = [tag.name for tag in settings.tags]
        if len(set(names)) < len(names):
            raise SettingError(f"agent.toml: sources.{context.name}.tags has a name twice")
        self._settings, self._emit = settings, emit
        # Each failed attempt is told by us: once, with the name of the source.
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
                raise LinkError(f"{settings.host}:{settings.port} does not answer")
            self.tally.came_up()
            asked, due = blocks(settings.tags), clock()
            while not stopping.wait(max(0.0, due - clock())):
                due = max(due + settings.every_s, clock())
                asked = self._round(client, asked)
        finally:
            client.close()

    def _round(self, client: Any, asked: list[Block]) -> list[Block]:
        """Ask for every block and emit what came; the blocks to ask for next time."""
        values = {tag.name: float("nan") for tag in self._settings.tags}
        bad = dict.fromkeys(values, Quality.BAD)
        begun, after = self.context.wall(), list[Block]()
        while asked:
            block, asked = asked[0], asked[1:]
            answer = self._ask(client, block)
            if answer is None and len(block.tags) > 1:
                asked = apart(block) + asked  # one address that is not there must not cost them all
                continue
            after.append(block)
            for tag in block.tags if answer is not None else ():
                values[tag.name] = value(tag, block, answer)
                del bad[tag.name]
        frame = frame_of(begun, values, asset=self._settings.asset, qualities=bad)
        self.tally.bad += len(bad)
        self.tally.gave(frame)
        self._emit(frame)
        return after

    def _ask(self, client: Any, block: Block) -> Any:
        """Registers or bits; None for an exception of the device. LinkError for no answer."""
        read = {
            "holding": client.read_holding_registers,
            "input": client.read_input_registers,
            "coil": client.read_coils,
            "discrete": client.read_discrete_inputs,
        }[block.table]
        try:
            said = read(block.address, count=block.length, device_id=self._settings.unit)
        except self._failures.ModbusException as error:
            raise LinkError(f"no answer from unit {self._settings.unit}: {error}") from error
        bits = block.table in ("coil", "discrete")
        answer = None if said.isError() else (said.bits if bits else said.registers)
        if answer is not None and len(answer) >= block.length:
            return answer
        if len(block.tags) == 1:
            self._refused(block.tags[0], getattr(said, "exception_code", 0))
        return None

    def _refused(self, tag: Tag, code: int) -> None:
        why = {1: "this table cannot be read", 2: "there is no such address", 6: "it is busy"}
        said = why.get(code, f"exception {code}")
        where = f"{self.context.name}: {tag.name} ({tag.table} {tag.address})"
        self.context.fault(Fault("bad-tag", f"{where}: {said}"))
