"""The default drift checks of Evidently and whylogs, each in an environment of its own."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.error_rates import PACES
from bench.null_processes import Fleet
from bench.peer import servers

KINDS, WINDOWS = ("iid", "diurnal 1 sd"), 60
LIBRARIES = {"evidently": "Evidently's default", "whylogs-drift": "whylogs' default"}
_SCRIPT = Path(__file__).parent / "peer" / "drift_defaults.py"


def library_alarms(seed: int) -> Iterator[tuple[str, str, int, float, int, float]]:
    """(library, kind, rows, window_s, findings, feature-days) of one device's first feature.

    A finding is a window that alarms after one that did not. MissingError where a library cannot be
    installed.
    """
    for package, name in LIBRARIES.items():
        python = servers.installed(package)
        for kind in KINDS:
            for rows, window_s in PACES:
                fleet = Fleet(kind, devices=1, rows=rows, window_s=window_s, seed=seed)
                windows = np.stack([fleet.window()[1].values[:, 0] for _ in range(WINDOWS)])
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "rows.npz"
                    np.savez(file, training=fleet.training, windows=windows)
                    library = package.partition("-")[0]
                    ran = subprocess.run(
                        [str(python), str(_SCRIPT), library, str(file)],
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                if ran.returncode:
                    raise servers.MissingError(f"{library} failed: {ran.stderr.strip()[-150:]}")
                told = np.array(json.loads(ran.stdout.splitlines()[-1]))
                begun = int((np.diff(told, prepend=0) > 0).sum())
                yield name, kind, rows, window_s, begun, WINDOWS * window_s / 86_400
