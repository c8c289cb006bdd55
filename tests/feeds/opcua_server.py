"""An OPC UA server with a press: run with a port. Clients may write every value.

With a folder after the port it requires encryption, and accepts only the client with the
certificate in that folder: server.pem, server.key, client.pem.
"""

import asyncio
import sys
from pathlib import Path

from asyncua import Server, ua
from asyncua.crypto.truststore import TrustStore
from asyncua.crypto.validator import CertificateValidator, CertificateValidatorOptions


async def secure(server: Server, folder: Path) -> None:
    server.set_security_policy(
        [
            ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt,
            ua.SecurityPolicyType.Aes128Sha256RsaOaep_SignAndEncrypt,
            ua.SecurityPolicyType.Aes256Sha256RsaPss_SignAndEncrypt,
        ]
    )
    await server.load_certificate(folder / "server.pem")
    await server.load_private_key(folder / "server.key", format="pem")
    trusted = TrustStore([folder / "trusted"], [])
    await trusted.load()
    checks = (
        CertificateValidatorOptions.TRUSTED_VALIDATION | CertificateValidatorOptions.PEER_CLIENT
    )
    server.set_certificate_validator(CertificateValidator(checks, trusted))


async def main(port: int, folder: str = "") -> None:
    server = Server()
    await server.init()
    if folder:
        await server.set_application_uri("urn:plant:press")
        await secure(server, Path(folder))
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


asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
