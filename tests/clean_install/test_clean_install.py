"""What a device gets: the wheel with `[agent]` alone, in a fresh environment, from the lock.

The environment is made by venv and pip, as on a Raspberry Pi, from requirements/agent.txt with
its hashes checked; the wheel itself is then installed without looking for anything more.
"""

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from broker.served import Api, Served, init, release_to_everybody, write_digits
from waiting import eventually

ROOT = Path(__file__).parents[2]
NOT_ON_A_DEVICE = ("flask", "sklearn", "sqlalchemy", "pandas", "aiohttp", "scipy", "onnx", "rich")

pytestmark = [
    pytest.mark.clean_install,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    (built,) = out.glob("shoal-*.whl")
    return built


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has Shoal's agent and nothing else."""
    home = tmp_path_factory.mktemp("device")
    # The system's own Python where there is one: a venv of a venv is not what a device has.
    run(getattr(sys, "_base_executable", sys.executable), "-m", "venv", home / "venv")
    pip = [home / "venv/bin/python", "-m", "pip", "install", "-qq", "--no-compile"]
    run(*pip, "--require-hashes", "--requirement", ROOT / "requirements/agent.txt")
    run(*pip, "--no-deps", f"shoal[agent] @ {wheel.as_uri()}")
    return home / "venv/bin"


def test_the_wheel_carries_all_three_folders_the_profiles_and_the_browser_files(
    wheel: Path,
) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "shoal/errors.py",
        "shoal/agent/__init__.py",
        "shoal/controller/__init__.py",
        "shoal/cli/__init__.py",
        "shoal/firmware_profiles/generic.toml",
        "shoal/controller/web/static/vendor/htmx.min.js",
    ):
        assert needed in names
    assert "shoal/__init__.py" not in names
    assert not [name for name in names if name.startswith(("demo/", "examples/"))]


def test_the_demo_of_an_installed_wheel_names_the_source(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "shoal.cli", "demo", "--exit"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode != 0
    assert "make demo" in done.stderr


def test_nothing_is_missing_and_nothing_disagrees(device: Path) -> None:
    assert "No broken requirements" in run(device / "python", "-m", "pip", "check")


@pytest.mark.parametrize("name", NOT_ON_A_DEVICE)
def test_a_device_has_no_controller_library(device: Path, name: str, tmp_path: Path) -> None:
    found = run(
        device / "python",
        "-c",
        "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]))",
        name,
        cwd=tmp_path,
    )
    assert found.strip() == "None"


def test_a_library_that_a_device_does_have_would_be_seen(device: Path, tmp_path: Path) -> None:
    run(device / "python", "-c", "import onnxruntime, tuf, paho.mqtt", cwd=tmp_path)


def test_the_agent_answers_for_itself(device: Path, tmp_path: Path) -> None:
    for verb in ((), ("enroll",), ("run",), ("status",), ("doctor",)):
        assert "Usage:" in run(device / "shoal-agent", *verb, "--help", cwd=tmp_path)


def test_the_agent_finds_its_firmware_profiles_in_the_wheel(device: Path, tmp_path: Path) -> None:
    where = run(
        device / "python",
        "-c",
        "import pathlib, shoal.profile as p; print(pathlib.Path(p.__file__).parent)",
        cwd=tmp_path,
    )
    assert (Path(where.strip()) / "firmware_profiles" / "generic.toml").is_file()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Served]:
    """A whole controller, of the checkout: the device talks to it over TLS alone."""
    folder = tmp_path / "controller"
    facts = init(folder, "--window-s=1", "--json")
    served = Served(folder)
    served.facts = msgspec.json.decode(facts)
    yield served.start().ready()
    served.end()


def test_it_enrols_and_serves_a_release(device: Path, controller: Served, tmp_path: Path) -> None:
    api, folder = Api(controller), tmp_path / "agent"
    token = api.post("join-tokens", {"site": "plant", "rings": ["stable"], "uses": 1})["secret"]
    run(
        device / "shoal-agent", "enroll", "--folder", folder, "--controller", api.url,
        "--token", token, "--name", "pi-1", cwd=tmp_path,
    )  # fmt: skip
    settings = folder / "agent.toml"
    settings.write_text(settings.read_text() + "\n[update]\nobserve_s = 1.0\n")
    agent = subprocess.Popen([device / "shoal-agent", "run", "--folder", folder], cwd=tmp_path)
    try:
        eventually(lambda: api.get("devices/pi-1")["online"], "the device is online", 60)
        release_to_everybody(api, write_digits(tmp_path / "digits.csv"))
        endpoint = api.get("devices/pi-1")["endpoint"]
        row = {"name": "input", "shape": [1, 64], "datatype": "FP32", "data": [8.0] * 64}
        url = f"{endpoint}/v2/models/lot-codes/infer"
        answer = httpx.post(url, json={"inputs": [row]}).raise_for_status().json()
        assert answer["outputs"][0]["shape"] == [1, 10]
    finally:
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == 0
