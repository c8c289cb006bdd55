"""Whether the machine is on mains power, from sysfs."""

from pathlib import Path


def on_mains(sys: Path = Path("/sys")) -> bool | None:
    """False on battery; None where sysfs has no power supply, as on most boards.

    Source: kernel.org, ABI/testing/sysfs-class-power.
    """
    supplies = [_read(path) for path in sorted(sys.glob("class/power_supply/*"))]
    if any(kind in ("Mains", "USB") and online == "1" for kind, online, _ in supplies):
        return True
    if any(kind == "Battery" and status == "Discharging" for kind, _, status in supplies):
        return False
    plugged = [online == "1" for kind, online, _ in supplies if kind == "Mains"]
    return any(plugged) if plugged else None


def _read(path: Path) -> tuple[str, str, str]:
    """type, online, status."""

    def one(name: str) -> str:
        try:
            return (path / name).read_text().strip()
        except OSError:
            return ""

    return one("type"), one("online"), one("status")
