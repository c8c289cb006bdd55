"""A Mosquitto with TLS and passwords."""

import datetime
import ipaddress
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from feed_doubles import Recorder, prediction, running
from feeds.mosquitto import PlantBroker
from programs import mosquitto
from waiting import eventually

pytestmark = pytest.mark.broker


def certify(folder: Path) -> None:
    """cert.pem of 127.0.0.1, which is its own CA, and key.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "plant")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(host, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "cert.pem").write_bytes(made.public_bytes(encoding))
    secret = key.private_bytes(encoding, form, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)


@pytest.fixture
def secured(recorder: Recorder) -> Iterator[PlantBroker]:
    """TLS, and one user: press with the password "oil"."""
    broker, folder = PlantBroker(recorder.folder), recorder.folder
    tool = mosquitto("mosquitto_passwd")
    certify(folder)
    subprocess.run([tool, "-c", "-b", str(folder / "users"), "press", "oil"], check=True)
    folder.chmod(0o755)
    (folder / "plant.conf").write_text(
        f"listener {broker.port} 127.0.0.1\ncertfile {folder}/cert.pem\nkeyfile {folder}/key.pem\n"
        f"password_file {folder}/users\n" + ("user root\n" if os.geteuid() == 0 else "")
    )
    broker.start()
    yield broker
    broker.stop()


def test_messages_longer_than_a_tls_record_pass_over_tls_in_both_directions(
    recorder: Recorder, secured: PlantBroker
) -> None:
    who = {"url": f"mqtts://127.0.0.1:{secured.port}", "ca": "cert.pem", "username": "press",
           "password": "oil", "retry_s": 0.1}  # fmt: skip
    source = recorder.source("mqtt", topics=["predictions/#"], **who)
    sink = recorder.sink("mqtt", topic="predictions/{asset}", **who)
    with running(source), running(sink):
        eventually(lambda: source.health().up and sink.health().up)
        labels = tuple(f"class-{n}" for n in range(3_000))
        wide = prediction(asset="long", labels=labels, scores=prediction().scores.repeat(1_000))
        for asset in ("a", "b"):
            sink.write(prediction(asset=asset))
        sink.write(wide)
        eventually(lambda: len(recorder.frames) == 3 and not sink.health().waiting)
    assert len(recorder.frames[-1].names) > 3_000


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"password": "water"}, "Not authorized"), ({"ca": ""}, "not trusted"),
     ({"ca": "nowhere.pem"}, "No such file")],
)  # fmt: skip
def test_a_refused_client_reports_why_and_keeps_trying(
    recorder: Recorder, secured: PlantBroker, changes: dict[str, str], why: str
) -> None:
    who = {"url": f"mqtts://127.0.0.1:{secured.port}", "ca": "cert.pem", "username": "press",
           "password": "oil", "retry_s": 0.1}  # fmt: skip
    source = recorder.source("mqtt", topics=["predictions/#"], **(who | changes))
    with running(source):
        eventually(lambda: recorder.faults)
        assert recorder.reported(why), recorder.faults
        assert not source.health().up
