"""Install the agent as a systemd service: user, folder and unit."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from shoal.agent.host.unit import Outside, unit
from shoal.errors import SettingError, StorageError


def program() -> str:
    """Path of the running shoal-agent."""
    beside = Path(sys.executable).with_name("shoal-agent")
    found = str(beside) if beside.exists() else shutil.which("shoal-agent")
    if not found:
        raise SettingError("no program shoal-agent", "install the wheel: pip install shoal[agent]")
    return str(Path(found).absolute())


def text_of(folder: Path, user: str, memory_mb: int, outside: Outside) -> str:
    """The unit for the agent in `folder`. outside: paths that its sources and sinks use."""
    own, here = program(), str(folder.absolute())
    return unit(program=own, folder=here, user=user, memory_mb=memory_mb, outside=outside)


def install(path: Path, folder: Path, user: str, memory_mb: int, outside: Outside) -> list[str]:
    """Create user and folder, write the unit, reload systemd; what was done, a line each.

    Safe to run again. Raises SettingError without root, StorageError when the disk refuses.
    """
    text = text_of(folder, user, memory_mb, outside)
    if os.geteuid() != 0:
        raise SettingError("only root may install a service", "put sudo before it, or use --show")
    done = [_make_user(user, folder)]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _give(folder, user)
        done += [_make_writable(Path(other), user) for other in outside.writes]
        path.write_text(text)
    except OSError as error:
        raise StorageError(f"{path}: {error}") from error
    done.append(f"wrote {path}")
    if Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "daemon-reload"], check=False)
        done.append("systemd has read it")
    return [line for line in done if line]


def _make_user(user: str, folder: Path) -> str:
    try:
        pwd.getpwnam(user)
    except KeyError:
        home = ["--home-dir", str(folder), "--no-create-home", "--shell", "/usr/sbin/nologin"]
        made = subprocess.run(
            ["useradd", "--system", "--user-group", *home, user], capture_output=True, text=True
        )
        if made.returncode:
            raise SettingError(f"user {user!r}: {made.stderr.strip()}") from None
        return f"made the user {user}"
    return ""


def _make_writable(path: Path, user: str) -> str:
    """Create a folder that a sink or source writes, owned by the user; "" if nothing is to do."""
    who = pwd.getpwnam(user)
    if path.exists():
        theirs = path.stat().st_uid == who.pw_uid
        return "" if theirs else f"{path} is there: see that {user} may write in it"
    path.mkdir(parents=True)
    os.chown(path, who.pw_uid, who.pw_gid)
    return f"made {path}"


def _give(folder: Path, user: str) -> None:
    """Give the folder and its contents to the user: root may have enrolled."""
    who = pwd.getpwnam(user)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, who.pw_uid, who.pw_gid, follow_symlinks=False)
