"""The systemd unit of the agent: what it may touch, how much it may take, how it is watched."""

import re

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
TimeoutStopSec=30
# Fed only after every model that serves has answered a row.
WatchdogSec=60

Environment=ORT_DISABLE_TELEMETRY=1 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
Environment=MALLOC_ARENA_MAX=1 PYTHONUNBUFFERED=1

MemoryHigh={high}M
MemoryMax={most}M
TasksMax=128
OOMPolicy=continue

# Writes its own folder and nothing else. For a sink or source elsewhere: systemctl edit
# shoal-agent, and add ReadWritePaths= or ReadOnlyPaths=.
ReadWritePaths={folder}
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


def unit(*, program: str, folder: str, user: str, memory_mb: int) -> str:
    """The unit's text.

    program    path of shoal-agent
    memory_mb  beyond it the kernel slows the service down, and at half as much again ends it

    Raises SettingError for a path or name that would need quoting.
    """
    for name, text in (("program", program), ("folder", folder), ("user", user)):
        if not _PLAIN.fullmatch(text):
            raise SettingError(f"{name} {text!r}", "use letters, digits and . _ - + @ / only")
    if memory_mb < 128:
        raise SettingError(f"memory of {memory_mb} MB", "the agent needs 128 MB at least")
    return _UNIT.format(
        program=program,
        folder=folder,
        user=user,
        high=memory_mb,
        most=memory_mb * 3 // 2,
        home="read-only" if folder.split("/")[1:2] in (["home"], ["root"]) else "yes",
    )
