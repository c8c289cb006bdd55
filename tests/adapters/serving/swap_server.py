"""`python swap_server.py FOLDER`: the agent's endpoint over two real releases, swapped on demand.

Prints its port; then, for every number on standard input, swaps so often between the slots a and b
as an update does, and prints its resident memory in MB.
"""

import asyncio
import contextlib
import sys
import threading
import time
from pathlib import Path

from shoal import bundle
from shoal.agent.installed.record import Slot
from shoal.agent.serving.inference import Inference
from shoal.agent.serving.io.endpoint import Endpoint
from shoal.agent.serving.io.runtime import OrtLoader, limit_malloc
from shoal.agent.serving.routes import Routes
from shoal.agent.serving.served_model import ServedModel
from shoal.agent.update.io.trial import rss_mb
from shoal.profile import profile
from shoal.wire import Health

MODEL, PROFILE = "parts", profile("x86-vnni")


class Swapper:
    """One model in service, and the effect of ACTIVATING and COMMITTING on it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loader = OrtLoader(lambda model, slot: folder / slot)
        self.serving = ServedModel(
            MODEL, clock=time.time, timer=time.perf_counter, lock=threading.Lock()
        )
        self._turn = 0

    def swap(self) -> None:
        name = "ab"[self._turn % 2]
        self._turn += 1
        self.serving.swap(self._loader.load(self._slot(name), PROFILE), Health())
        self.serving.retire()
        self._loader.trim()

    def _slot(self, name: str) -> Slot:
        manifest = bundle.read_manifest(self._folder / name)
        return Slot(
            slot=name,
            model=MODEL,
            release=manifest.release,
            path=f"release/{MODEL}/{manifest.version}/manifest.json",
            sha256=name,
            variant="fp32",
            model_sha256=manifest.variant("fp32").file.sha256,
            counter=1,
        )


async def main(folder: Path) -> None:
    limit_malloc()
    swapper, loop = Swapper(folder), asyncio.get_running_loop()
    swapper.swap()
    inference = Inference(Routes({MODEL: swapper.serving}, status=bytes, page=str, version="0"))
    endpoint = Endpoint(inference, host="127.0.0.1", port=0, socket=None)
    address = await endpoint.start()
    print(address.rpartition(":")[2], flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        for _ in range(int(line)):
            await loop.run_in_executor(None, swapper.swap)
        print(f"{rss_mb():.2f}", flush=True)
    await endpoint.stop()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1])))
