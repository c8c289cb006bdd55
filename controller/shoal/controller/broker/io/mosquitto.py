"""Configuration for the site's own Mosquitto, with the same rights as the embedded broker.

The access list names every enrolled device; nothing is granted by pattern. Decommissioning removes
the device's lines, and SIGHUP makes Mosquitto reload the list: the open connection loses all rights
at once, a new one has none. A revocation list (``crlfile``) was not chosen:
Mosquitto reads it for new connections only, and refuses *every* client once the list has expired.

A client without a certificate of ours never gets through the handshake. The certificate's CN is
user name and client id, so no device can take over another's session. Source: mosquitto.conf(5).
"""

import os
import signal
from collections.abc import Iterable
from pathlib import Path

from shoal.controller.fleet.certificates import read_common_name
from shoal.controller.fleet.io.ca import CONTROLLER
from shoal.controller.host.io.files import private_folder, write_durable
from shoal.durable import PUBLIC, SECRET
from shoal.errors import SettingError
from shoal.topics import ROOT, UP_KINDS, all_down, up
from shoal.wire import LIMIT

#: Bytes of the largest packet: the largest message, with its topic.
MAX_PACKET = max(LIMIT.values()) + 4_096


def configuration(folder: Path, *, host: str, port: int, user: str = "") -> str:
    """Text of mosquitto.conf; its files are in `folder`.

    host   address to bind, "" for all
    user   user that Mosquitto switches to when started as root; "" for its own default
    """
    bind = f" {host}" if host else ""
    return f"""# Written by shoal-controller mosquitto-config; changes are lost.
per_listener_settings false
listener {port}{bind}
cafile {folder}/ca.pem
certfile {folder}/server.crt
keyfile {folder}/server.key
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {folder}/acl
{f"user {user}" if user else "# user mosquitto"}

set_tcp_nodelay true
max_packet_size {MAX_PACKET}
message_size_limit {MAX_PACKET}
max_qos 1
# In bytes, not in messages: a device that floods must not fill the queue of the controller, which
# takes many at once, before it is cut off.
max_inflight_messages 1000
max_queued_messages 1000000
max_queued_bytes 268435456
persistent_client_expiration 30d

# Sessions, queued and retained messages are written once a second, whole: at every change, a flood
# would stop the broker. What a kill -9 takes with it is sent again: the controller repeats the
# orders of the last seconds, and devices keep what the controller has not acknowledged.
persistence true
persistence_location {folder}/store/
autosave_on_changes false
autosave_interval 1

log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true
"""


def access_list(devices: Iterable[str]) -> str:
    """Text of the ACL file: the controller, and exactly these names in devices' certificates."""
    blocks = [f"user {CONTROLLER}\ntopic readwrite {ROOT}/#"]
    for name in sorted(devices):
        device = read_common_name(name).device
        writes = "\n".join(f"topic write {up(device, kind)}" for kind in UP_KINDS)
        blocks.append(
            f"user {name}\n{writes}\ntopic read {all_down(device)}\ntopic read {ROOT}/fleet/+"
        )
    return "# Written by shoal-controller; changes are lost.\n" + "\n\n".join(blocks) + "\n"


class MosquittoFiles:
    """A folder with everything that Mosquitto needs; it may be copied to another machine.

    folder     mosquitto.conf, acl, ca.pem, server.crt, server.key, store/
    pid_file   of the running Mosquitto, if it runs here: it gets SIGHUP after changes
    """

    def __init__(self, folder: Path, pid_file: Path | None = None) -> None:
        self.folder, self._pid_file = folder, pid_file

    def write(
        self, pki: Path, devices: Iterable[str], *, host: str, port: int, user: str = ""
    ) -> None:
        """Write all files, with the server certificate of `pki`. Raises StorageError."""
        if any(character.isspace() for character in str(self.folder)):
            raise SettingError(f"{self.folder} has a space", "mosquitto.conf cannot name it")
        private_folder(self.folder)
        private_folder(self.folder / "store")
        for name, mode in (("ca.pem", PUBLIC), ("server.crt", PUBLIC), ("server.key", SECRET)):
            write_durable(self.folder / name, (pki / name).read_bytes(), mode)
        text = configuration(self.folder, host=host, port=port, user=user)
        write_durable(self.folder / "mosquitto.conf", text.encode())
        self.set_devices(devices)

    def set_devices(self, devices: Iterable[str]) -> None:
        """Allow exactly these devices, and signal Mosquitto if its PID file is known."""
        write_durable(self.folder / "acl", access_list(devices).encode(), SECRET)
        if self._pid_file is not None:
            self._send_sighup(self._pid_file)

    def _send_sighup(self, pid_file: Path) -> None:
        try:
            os.kill(int(pid_file.read_text().strip()), signal.SIGHUP)
        except (OSError, ValueError) as error:
            raise SettingError(
                f"cannot signal the Mosquitto of {pid_file} to reload its access list: {error}",
                "is it running, and may this user signal it?",
            ) from error
