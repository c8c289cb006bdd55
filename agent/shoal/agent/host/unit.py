"""The systemd unit of the agent: sandbox, resource limits, watchdog."""

import re
from typing import NamedTuple

from shoal.errors import SettingError

#: Where systemd looks for what an administrator installs.
PATH = "/etc/systemd/system/shoal-agent.service"
_PLAIN = re.compile(r"[A-Za-z0-9_./@+-]+")

_UNIT = """\
[Unit]
Description=Shoal agent: serves models on this machine
Documentation=https://shoal.dev/docs/agent
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} run --folder {folder}
User={user}
Group={user}
Restart=always
RestartSec=5
TimeoutStartSec=120
TimeoutStopSec=15
# Fed only after every model that serves has answered a row.
WatchdogSec=60

Environment=ORT_DISABLE_TELEMETRY=1 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
Environment=MALLOC_ARENA_MAX=1 PYTHONUNBUFFERED=1 PYTHONNODEBUGRANGES=1

MemoryHigh={high}M
MemoryMax={most}M
TasksMax=128
# Each connection, feed and log file is one; systemd's default is 1024 and some images set less.
LimitNOFILE=4096
OOMPolicy=continue

# Writes its own folder, and what sinks and sources of agent.toml write: after a change there,
# shoal-agent install writes this anew.
ReadWritePaths={folder}{writes}
ProtectSystem=strict
ProtectHome={home}
PrivateTmp=yes
PrivateDevices=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
LockPersonality=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
"""


class Outside(NamedTuple):
    """Absolute paths outside the agent's folder that its sources and sinks read and write."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def unit(
    *,
    program: str,
    folder: str,
    user: str,
    memory_mb: int,
    outside: Outside = Outside(),  # noqa: B008 (immutable)
) -> str:
    """The unit's text.

    program    path of shoal-agent
    memory_mb  beyond it the kernel slows the service down, and at half as much again ends it

    Raises SettingError for a path or name that would need quoting, or that the sandbox hides.
    """
    others = [*outside.reads, *outside.writes]
    named = [("program", program), ("folder", folder), ("user", user)]
    for name, text in [*named, *(("path in agent.toml", path) for path in others)]:
        if not _PLAIN.fullmatch(text):
            raise SettingError(f"{name} {text!r}", "use letters, digits and . _ - + @ / only")
    for path in others:
        if path.startswith(("/tmp/", "/var/tmp/")):  # noqa: S108
            raise SettingError(
                f"{path}, in agent.toml", "a service has a /tmp of its own: use another folder"
            )
    if memory_mb < 128:
        raise SettingError(f"memory of {memory_mb} MB", "the agent needs 128 MB at least")
    return _UNIT.format(
        program=program,
        folder=folder,
        user=user,
        high=memory_mb,
        most=memory_mb * 3 // 2,
        home="read-only" if any(map(_at_home, [folder, *others])) else "yes",
        writes="".join(f"\nReadWritePaths=-{path}" for path in outside.writes),
    )


def _at_home(path: str) -> bool:
    """Whether ProtectHome=yes would hide it."""
    return path.split("/")[1:2] in (["home"], ["root"]) or path.startswith("/run/user/")
