"""The agent's core here, compared with that of another machine: `write FOLDER`, `check FOLDER`.

`check` needs the agent's own dependencies and nothing else: scripts/arm.sh runs it under qemu, and
any aarch64 machine runs it with `PYTHONPATH=shared:agent python tests/arm/core.py check FOLDER`.
"""

import importlib
import pkgutil
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import numpy as np

from shoal import bundle, trust, wire
from shoal.profile import load_profiles

NOW, DEVICE, PROFILE = 1_800_000_000.0, "pi-1", "rpi4"
#: fp32 differs in its last bits between CPUs; int8 (U8S8) does not.
TOLERANCE = {"fp32": 1e-6, "int8": 0.0}
GOLDEN = Path(__file__).parents[1] / "golden"


def write(folder: Path) -> None:
    """A release with what it says here, an order that is signed, and the director's root."""
    import onnx
    from onnxruntime import quantization

    from real_models import FEATURES, mlp, put_release
    from repositories import Repository

    folder.mkdir(parents=True, exist_ok=True)
    plain = mlp(hidden=32, layers=2)
    rows = np.random.default_rng(9).normal(size=(16, FEATURES)).astype(np.float32)
    onnx.save(plain, folder / "plain.onnx")

    class Rows(quantization.CalibrationDataReader):
        left = iter([{"input": rows}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantization.quantize_static(
        folder / "plain.onnx", folder / "int8.onnx", Rows(), per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    models = {
        "fp32": plain.SerializeToString(),
        "int8": (folder / "int8.onnx").read_bytes(),
    }
    put_release(folder / "models" / "parts" / "a", models=models, profile=PROFILE)
    repository = Repository(NOW)
    (folder / "director.json").write_bytes(repository.director_root)
    manifest = (folder / "models/parts/a" / bundle.MANIFEST).read_bytes()
    order = repository.add("release", "parts", 1, manifest)
    (folder / "orders.json").write_bytes(repository.orders(DEVICE, 1, [order]))


def check(folder: Path) -> None:
    """Everything that depends on the CPU or on a compiled wheel; AssertionError tells what."""
    print(f"{platform.machine()}, Python {platform.python_version()}")
    print(f"{modules()} modules of the agent load")
    for name in ("fp32", "int8"):
        print(f"{name}: {answers(folder, name)}")
    said = trust.verify_orders(
        (folder / "orders.json").read_bytes(),
        director_root=(folder / "director.json").read_bytes(),
        device=DEVICE, floor=0, now_s=NOW,
    )  # fmt: skip
    assert [order.release for order in said.orders] == ["parts@1"]
    print("a signed order is believed")
    print(f"{messages()} golden messages are read and written as they were")
    print(f"{outbox()} windows go through the outbox")


def modules() -> int:
    """Import everything that a device may load; optional libraries may be missing."""
    import shoal.agent

    optional = {"asyncua", "pymodbus", "pyarrow", "PIL"}
    count = 0
    for found in pkgutil.walk_packages(shoal.agent.__path__, "shoal.agent."):
        try:
            importlib.import_module(found.name)
            count += 1
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in optional:
                raise
    return count


def answers(folder: Path, variant: str) -> str:
    """Serve the release's golden rows by one variant, and compare."""
    from shoal.agent.installed.record import Slot
    from shoal.agent.serving.io.runtime import OrtLoader
    from shoal.agent.serving.served_model import ServedModel
    from shoal.wire import Health

    slot = Slot(
        slot="a", model="parts", release="parts@1", path="release/parts/1/manifest.json",
        sha256="0", variant=variant, model_sha256="0", counter=1,
    )  # fmt: skip
    loader = OrtLoader(lambda model, letter: folder / "models" / model / letter)
    serving = ServedModel("parts", clock=time.time, timer=time.perf_counter, lock=threading.Lock())
    engine = loader.load(slot, load_profiles()[PROFILE])
    serving.swap(engine, Health())
    golden = bundle.read_golden(folder / "models/parts/a", engine.manifest)
    began = time.perf_counter()
    said = serving.infer(golden.inputs)
    took = time.perf_counter() - began
    worst = float(np.abs(said - golden.outputs[variant]).max())
    assert worst <= TOLERANCE[variant], f"{variant}: {worst} from what was golden elsewhere"
    report = serving.collect(Health())
    assert report is not None
    assert report.rows == len(golden.inputs)
    return f"golden within {worst:.1e}, {len(said)} rows in {1e3 * took:.1f} ms"


def messages() -> int:
    count = 0
    for path in sorted(GOLDEN.glob("*.msgpack")):
        data, name = path.read_bytes(), path.name.partition(".")[0]
        up = {"update": "event", "fault": "event", "round-answer": "round"}
        up |= {kind: kind for kind in ("window", "status", "inventory")}
        kind = up.get(name, "")
        read = wire.decode_up(kind, data) if kind else wire.decode_down(name, data)
        # -1 and -1.0 are one number in two encodings
        again = msgspec.msgpack.decode(wire.encode(read))
        assert again == msgspec.msgpack.decode(data), path.name
        count += 1
    return count


def outbox() -> int:
    from shoal.agent.telemetry.io.outbox_store import SqliteOutbox

    with tempfile.TemporaryDirectory() as folder:
        box = SqliteOutbox(Path(folder) / "outbox.db", limit_bytes=1 << 20, boot_name=lambda: "b1")
        golden = wire.decode_up("window", (GOLDEN / "window.v1.msgpack").read_bytes())
        for _ in range(10):
            box.add(golden)
        letters = box.after(0, 99)
        box.ack("b1", [letter.seq for letter in letters])
        assert box.waiting == 0
        box.close()
    return len(letters)


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
