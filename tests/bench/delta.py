"""Bytes of a delta for a model that was trained on, against zstd --patch-from, bsdiff and xdelta3.

The peers are run where they are installed (Debian's zstd, bsdiff, xdelta3), at their strongest. Raw
is the smallest of them. Bytes do not depend on what else the machine does: one run of each case.
"""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.report import Found, Row
from shoal import delta

PEERS = {
    "zstd --patch-from": ["zstd", "-q", "-f", "-19", "--long=27", "--patch-from=old", "new"],
    "bsdiff": ["bsdiff", "old", "new", "out"],
    "xdelta3": ["xdelta3", "-f", "-9", "-e", "-s", "old", "new", "out"],
}
PEERS["zstd --patch-from"] += ["-o", "out"]


def run(*, quick: bool) -> Found:
    """float32 and int8 weights, all of them or only the last layer trained on."""
    rows, notes = list[Row](), dict[str, str]()
    for name, (old, new) in _cases(20_000 if quick else 500_000).items():
        began = time.perf_counter()
        made = delta.make(old, new)
        took = time.perf_counter() - began
        if delta.apply(old, made, len(new)) != new:
            raise AssertionError(f"{name}: another file came of it")
        others = _peers(old, new)
        best = min(others, key=lambda peer: others[peer], default="")
        raw = others.get(best, len(new))
        rows.append(
            Row(
                what=name,
                unit="kB",
                ours=len(made) / 1e3,
                against=best or "the whole file",
                raw=raw / 1e3,
                ratio=len(made) / raw,
                over=(len(made) - raw) / 1e3,
                aim="≤ 1.1× the best",
                held=len(made) <= 1.1 * raw,
            )
        )
        each = ", ".join(f"{peer} {size / 1e3:.0f} kB" for peer, size in others.items())
        notes[name] = f"whole {len(new) / 1e3:.0f} kB, {each}; made in {took:.1f} s"
    return Found(rows=rows, notes=notes)


def _cases(count: int) -> dict[str, tuple[bytes, bytes]]:
    """What a file is before and after training on; `count` weights."""
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=count) * 0.05).astype("<f4")
    tuned = (weights + rng.normal(size=count) * 1e-4).astype("<f4")
    last = weights.copy()
    last[-count // 10 :] = tuned[-count // 10 :]
    int8 = [
        np.clip(np.round(w / step), -127, 127).astype(np.int8)
        for w, step in ((weights, 0.0016), (tuned, 0.00161))
    ]
    head = b"an onnx file's head, of any length"
    pairs = {
        "float32, all layers": (weights, tuned),
        "float32, the last layer": (weights, last),
        "int8, quantized anew": (int8[0], int8[1]),
    }
    return {name: (head + a.tobytes(), head + b.tobytes()) for name, (a, b) in pairs.items()}


def _peers(old: bytes, new: bytes) -> dict[str, int]:
    """Peer -> bytes of its patch, of those that are installed."""
    sizes = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "old").write_bytes(old)
        (folder / "new").write_bytes(new)
        for peer, command in PEERS.items():
            if shutil.which(command[0]):
                subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)
                sizes[peer] = (folder / "out").stat().st_size
                (folder / "out").unlink()
    return sizes
