"""A Sparkplug edge node in a process of its own, for tests that kill it.

`edge_node.py FOLDER URL [HOST COUNT]` writes COUNT predictions, prints "written", then runs.
"""

import sys
import threading
from pathlib import Path

from feed_doubles import Recorder, prediction

folder, url, host, count = [*sys.argv[1:], "", "1"][:4]
sink = Recorder(Path(folder)).sink("sparkplug", url=url, group="plant", node="gateway", host=host)
for number in range(int(count)):
    sink.write(prediction(float(number) if host else 1_000.0))
print("written", flush=True)
sink.run(threading.Event())
