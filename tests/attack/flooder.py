"""A program with a device's certificate that sends as fast as it can, until it is cut off.

    python flooder.py PORT CA CERTIFICATE DEVICE SECONDS QOS KIND

It prints how many messages it sent, and whether the broker ended its connection.
"""

import socket
import ssl
import sys
import threading
import time


def text(value: str) -> bytes:
    return len(value).to_bytes(2, "big") + value.encode()


def packet(kind: int, body: bytes) -> bytes:
    """An MQTT control packet: kind and flags, remaining length, body."""
    length, left = b"", len(body)
    while True:
        left, digit = divmod(left, 128)
        length += bytes([digit | 128 if left else digit])
        if not left:
            return bytes([kind]) + length + body


def connect(name: str) -> bytes:
    return packet(0x10, text("MQTT") + b"\x04\x02\x00\x1e" + text(name))


def block(topic: str, qos: int, messages: int, payload: bytes) -> bytes:
    number = lambda i: (i % 65_535 + 1).to_bytes(2, "big") if qos else b""  # noqa: E731
    bodies = (text(topic) + number(i) + payload for i in range(messages))
    return b"".join(packet(0x30 | qos << 1, body) for body in bodies)


def main(
    port: str, ca: str, certificate: str, device: str, seconds: str, qos: str, kind: str
) -> None:
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, certificate.removesuffix(".crt") + ".key")
    plain = socket.create_connection(("127.0.0.1", int(port)))
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as stream:
        stream.sendall(connect(device))
        stream.recv(4)
        threading.Thread(target=lambda: drain(stream), daemon=True).start()
        many, sent = 500, 0
        ready = block(f"shoal/v1/{device}/up/{kind}", int(qos), many, b"\xc1 garbage" * 20)
        end = time.monotonic() + float(seconds)
        print("ready", flush=True)
        try:
            while time.monotonic() < end:
                stream.sendall(ready)
                sent += many
        except OSError:
            print(sent, "cut", flush=True)
            return
    print(sent, "open", flush=True)


def drain(stream: ssl.SSLSocket) -> None:
    """Take the acknowledgements, or the broker would stop reading."""
    try:
        while stream.recv(65_536):
            pass
    except OSError:
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
