"""An agent's Sparkplug edge node alone, that says predictions and waits: for being killed.

`edge_node.py FOLDER URL [HOST COUNT]` says "written" when COUNT are; it waits for HOST.
"""

import sys
import threading
from pathlib import Path

from feed_doubles import Plant, prediction

folder, url, host, count = [*sys.argv[1:], "", "1"][:4]
sink = Plant(Path(folder)).sink("sparkplug", url=url, group="plant", node="gateway", host=host)
for number in range(int(count)):
    sink.write(prediction(float(number) if host else 1_000.0))
print("written", flush=True)
sink.run(threading.Event())
