"""An agent's Sparkplug edge node alone, that says one prediction and waits: for being killed."""

import sys
import threading
from pathlib import Path

from plant import Plant, prediction

folder, url = sys.argv[1:]
sink = Plant(Path(folder)).sink("sparkplug", url=url, group="plant", node="gateway")
sink.write(prediction())
sink.run(threading.Event())
