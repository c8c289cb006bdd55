"""All that a device needs is a ready-made wheel for 64-bit ARM: the index itself is asked."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Raspberry Pi OS: bookworm has Python 3.11, trixie 3.13.
PYTHONS = ("3.11", "3.13")
GLIBC = ("2_28", "2_27", "2_26", "2_17")


def fetch(python: str, into: Path, *wanted: str) -> subprocess.CompletedProcess[str]:
    platforms = [f"--platform=manylinux_{glibc}_aarch64" for glibc in GLIBC]
    tag = f"cp{python.replace('.', '')}"
    return subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--only-binary=:all:", "--platform=manylinux2014_aarch64", *platforms,
            f"--python-version={python}", "--implementation=cp", f"--abi={tag}", "--abi=abi3",
            "--abi=none", "--dest", str(into), *wanted,
        ],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


@pytest.mark.clean_install
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_locked_dependency_of_the_agent_has_a_wheel_for_64_bit_arm(
    python: str, tmp_path: Path
) -> None:
    if fetch("3.11", tmp_path, "click").returncode:
        pytest.skip("no package index within reach")
    lock = ROOT / "requirements" / "agent.txt"
    found = fetch(python, tmp_path, "--require-hashes", "-r", str(lock))
    assert found.returncode == 0, found.stderr[-2_000:]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".whl"] == []
    foreign = [
        path.name for path in tmp_path.iterdir() if not path.stem.endswith(("aarch64", "-any"))
    ]
    assert foreign == []
