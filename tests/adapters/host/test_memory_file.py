"""A request to a subprocess arrives complete, however slowly the subprocess starts."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from shoal.agent.federated.io import trainer_process
from shoal.agent.host.io.child_process import memory_file
from shoal.agent.update.io import probe

#: More than a pipe buffers; a start slower than the agent's poll interval.
SIZE, SLOWLY = 1 << 20, "import sys, time; time.sleep(0.3); print(len(sys.stdin.buffer.read()))"


@pytest.mark.parametrize(
    "watched",
    [
        lambda child: trainer_process._wait(child, lambda: "", lambda: False),
        lambda child: probe._wait(child, lambda: False),
    ],
    ids=["trainer", "probe"],
)
def test_a_long_request_reaches_a_process_that_is_slow_to_start(
    watched: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_process, "_POLL_S", 0.02)
    monkeypatch.setattr(probe, "_POLL_S", 0.02)
    with (
        memory_file(b"x" * SIZE) as request,
        subprocess.Popen(
            [sys.executable, "-c", SLOWLY], stdin=request, stdout=subprocess.PIPE
        ) as child,
    ):
        output, status = watched(child)
    assert (int(output), status) == (SIZE, 0)
