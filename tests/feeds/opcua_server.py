"""An OPC UA server with a press on it: run with a port. Clients may write every value."""

import asyncio
import sys

from asyncua import Server, ua


async def main(port: int) -> None:
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{port}/plant")
    await server.register_namespace("plant")
    press = await server.nodes.objects.add_object(2, "Press")
    for name, value in (("T", 20.0), ("P", 1.0), ("Score", 0.0), ("Label", ""), ("Count", 0)):
        node = await press.add_variable(ua.NodeId(f"Press.{name}", 2), name, value)
        await node.set_writable()
    fixed = await press.add_variable(ua.NodeId("Press.Fixed", 2), "Fixed", 1.0)
    await fixed.set_read_only()
    async with server:
        await asyncio.Event().wait()


asyncio.run(main(int(sys.argv[1])))
