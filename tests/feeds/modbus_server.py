"""A Modbus TCP server of 40 registers and 40 bits in each table, unit 1: run with a port."""

import sys

from pymodbus.datastore import ModbusDeviceContext, ModbusSequentialDataBlock, ModbusServerContext
from pymodbus.server import StartTcpServer


def block() -> ModbusSequentialDataBlock:
    return ModbusSequentialDataBlock(1, [0] * 40)


device = ModbusDeviceContext(di=block(), co=block(), hr=block(), ir=block())
StartTcpServer(
    context=ModbusServerContext(devices={1: device}, single=False),
    address=("127.0.0.1", int(sys.argv[1])),
)
