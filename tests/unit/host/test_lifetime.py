"""A process ends at a stop signal, however often and fast it arrives."""

import signal
import subprocess
import sys

import pytest

WAITS = """
from shoal.controller.host.io.lifetime import stop_event
stopping = stop_event()
print("up", flush=True)
while not stopping.wait(0.05): pass
print("ended")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("times", [1, 300])
def test_a_process_ends_on_one_signal_or_on_many(number: int, times: int):
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        for _ in range(times):
            process.send_signal(number)
        try:
            said, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert said == b"ended\n"
