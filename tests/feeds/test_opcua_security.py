"""OPC UA signed and encrypted, with an asyncua server that requires it."""

import datetime
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feed_doubles import Recorder, prediction, running
from feeds.processes import Server, server_of
from shoal.errors import SettingError
from waiting import eventually

pytest.importorskip("asyncua")

TAGS = [{"name": "t", "node": "ns=2;s=Press.T"}]


def make_certificate(
    folder: Path, name: str, uri: str, *more: str, use: str = "clientAuth"
) -> None:
    """A key and certificate made as in docs/sources-and-sinks.md."""
    folder.mkdir(exist_ok=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName=URI:{uri}",
         "-addext", "keyUsage=digitalSignature,nonRepudiation,keyEncipherment,dataEncipherment",
         "-addext", f"extendedKeyUsage={use}",
         "-keyout", f"{name}.key", "-out", f"{name}.pem", *more],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of the server, of cam-1, which the server trusts, and of an untrusted client."""
    folder = tmp_path_factory.mktemp("keys")
    make_certificate(folder, "server", "urn:plant:press", use="serverAuth")
    make_certificate(folder, "cam-1", "urn:shoal:cam-1")
    make_certificate(folder, "stranger", "urn:shoal:stranger")
    (folder / "trusted").mkdir()
    (folder / "trusted/cam-1.pem").write_bytes((folder / "cam-1.pem").read_bytes())
    return folder


@pytest.fixture(scope="module")
def server(keys: Path) -> Iterator[Server]:
    made = server_of("opcua_server.py", str(keys))
    made.start()
    yield made
    made.stop()


def settings(keys: Path, server: Server, **more: Any) -> dict[str, Any]:
    found = {
        "url": f"opc.tcp://127.0.0.1:{server.port}/plant",
        "security": "Basic256Sha256",
        "certificate": str(keys / "cam-1.pem"),
        "key": str(keys / "cam-1.key"),
        "server_certificate": str(keys / "server.pem"),
        "retry_s": 0.1,
    }
    return found | more


def source(recorder: Recorder, keys: Path, server: Server, **more: Any) -> Any:
    wanted = {"tags": TAGS, "period_ms": 20.0, "every_s": 0.05}
    return recorder.source("opcua", **settings(keys, server, **(wanted | more)))


@pytest.mark.parametrize("policy", ["Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"])
def test_values_are_read_over_a_secured_connection(
    recorder: Recorder, keys: Path, server: Server, policy: str
) -> None:
    with running(source(recorder, keys, server, security=policy)):
        eventually(lambda: recorder.newest == {"t": 20.0}, "the value")


def test_predictions_are_written_over_a_secured_connection(
    recorder: Recorder, keys: Path, server: Server
) -> None:
    sink = recorder.sink("opcua", **settings(keys, server, nodes={"score": "ns=2;s=Press.Score"}))
    back = source(recorder, keys, server, tags=[{"name": "s", "node": "ns=2;s=Press.Score"}])
    with running(sink), running(back):
        sink.write(prediction(5.0))
        eventually(lambda: recorder.newest.get("s") == pytest.approx(0.7), "the score, read back")


def test_files_are_relative_to_the_agents_folder_and_may_be_der(
    recorder: Recorder, keys: Path, server: Server
) -> None:
    for name in ("cam-1", "server"):
        subprocess.run(
            ["openssl", "x509", "-in", keys / f"{name}.pem", "-outform", "der",
             "-out", recorder.folder / f"{name}.der"],
            check=True,
        )  # fmt: skip
    der = {"certificate": "cam-1.der", "server_certificate": "server.der"}
    with running(source(recorder, keys, server, **der)):
        eventually(lambda: recorder.newest == {"t": 20.0}, "the value")


def refused(recorder: Recorder, feed: Any) -> str:
    with running(feed):
        eventually(lambda: "starting" not in feed.health().error, "an error")
        assert not feed.health().up
        return feed.health().error


def test_without_security_a_secured_server_refuses_the_connection(
    recorder: Recorder, keys: Path, server: Server
) -> None:
    assert "does it require other security?" in refused(
        recorder, source(recorder, keys, server, security="")
    )
    assert recorder.frames == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"certificate": "stranger.pem", "key": "stranger.key"}, "BadCertificateUntrusted"),
        ({"server_certificate": "stranger.pem"}, "server_certificate its own?"),
    ],
    ids=["the server does not know us", "we do not know the server"],
)
def test_untrusted_certificates_are_refused(
    recorder: Recorder, keys: Path, server: Server, more: dict[str, str], message: str
) -> None:
    full = {name: str(keys / file) for name, file in more.items()}
    assert message in refused(recorder, source(recorder, keys, server, **full))
    assert recorder.frames == []


def test_a_certificate_without_an_application_uri_or_out_of_date_is_named(
    recorder: Recorder, keys: Path, server: Server
) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=bare",
         "-keyout", "bare.key", "-out", "bare.pem"],
        cwd=recorder.folder, check=True, capture_output=True,
    )  # fmt: skip
    bare = {"certificate": "bare.pem", "key": "bare.key"}
    assert "bare.pem has no application URI" in refused(
        recorder, source(recorder, keys, server, **bare)
    )
    missing = source(recorder, keys, server, certificate="nowhere.pem")
    assert "nowhere.pem: No such file" in refused(recorder, missing)
    feed = source(recorder, keys, server)
    late = datetime.datetime(2050, 1, 1, tzinfo=datetime.UTC).timestamp()
    feed.context = feed.context._replace(wall=lambda: late)
    assert "cam-1.pem expired at 20" in refused(recorder, feed)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"security": "Basic128Rsa15"}, "one of Basic256Sha256"),
        ({"security": "Basic256Sha256,SignAndEncrypt,c.pem,k.pem"}, "settings of their own"),
        ({"key": ""}, "key is missing"),
        ({"server_certificate": ""}, "server_certificate is missing"),
    ],
)
def test_incomplete_security_settings_are_refused(
    recorder: Recorder, keys: Path, server: Server, more: dict[str, str], wanted: str
) -> None:
    with pytest.raises(SettingError, match=wanted):
        source(recorder, keys, server, **more)
