"""A pymodbus server on a thread: a device of 200 registers and bits that can refuse requests."""

import asyncio
import threading
from collections.abc import Callable

from pymodbus.constants import ExcCodes
from pymodbus.pdu import ModbusPDU
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from ports import free_port, is_open
from waiting import PATIENCE_S, eventually

COILS, DISCRETE, HOLDING, INPUT = 1, 2, 3, 4
SIZE = 200


class Device:
    """`answer` is asked of each request: function, address, count -> exception, or None to serve.

    holding     registers of the table, to be written to
    requests    (function, address, count) of every request so far
    delay_s     seconds until the next response alone
    unit        in its responses
    """

    def __init__(self) -> None:
        self.port, self.holding = free_port(), [0] * SIZE
        self.requests: list[tuple[int, int, int]] = []
        self.answer: Callable[[int, int, int], ExcCodes | None] = lambda function, address, count: (
            None
        )
        self.delay_s, self.unit = 0.0, 1
        self._loop = asyncio.new_event_loop()
        self._server: ModbusTcpServer | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        eventually(lambda: is_open(self.port), "the device")

    def stop(self) -> None:
        if self._server is not None:
            asyncio.run_coroutine_threadsafe(self._server.shutdown(), self._loop).result(PATIENCE_S)
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        rest = asyncio.all_tasks(self._loop)
        for task in rest:  # a request that is still delayed
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        self._loop.close()

    async def _serve(self) -> None:
        bits = [SimData(address=0, count=SIZE // 16, values=False, datatype=DataType.BITS)]
        words = [SimData(address=0, count=SIZE, values=0, datatype=DataType.REGISTERS)]
        device = SimDevice(id=0, simdata=(bits, bits, words, words), action=self._act)
        self._server = ModbusTcpServer(
            device, address=("127.0.0.1", self.port), trace_pdu=self._respond
        )
        await self._server.serve_forever()

    def _respond(self, is_sent: bool, message: ModbusPDU) -> ModbusPDU:
        if is_sent:
            message.dev_id = self.unit
        return message

    async def _act(
        self, function: int, start: int, address: int, count: int, registers: list[int], _: object
    ) -> ExcCodes | None:
        self.requests.append((function, address, count))
        delay, self.delay_s = self.delay_s, 0.0
        await asyncio.sleep(delay)
        if function == HOLDING:
            at = address - start
            registers[at : at + count] = self.holding[address : address + count]
        return self.answer(function, address, count)
