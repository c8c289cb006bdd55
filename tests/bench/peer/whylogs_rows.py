"""whylogs takes in rows: at every line on standard input, one number of rows more.

`python whylogs_rows.py FEATURES`; each line is "BATCH COUNT": as many batches of so many rows,
single ones as dicts and many as a data frame, as its guides have it. Says the thread's CPU seconds.
"""

# Its libraries are in the peer's own environment, not in this one.
# mypy: ignore-errors

import sys
import time

import numpy as np
import pandas as pd
from whylogs.core import DatasetProfile

features = int(sys.argv[1])
names = [f"x{j}" for j in range(features)]
drawn = np.random.default_rng(0).normal(size=(1_024, features))
for line in sys.stdin:
    batch, count = map(int, line.split())
    rows = [dict(zip(names, map(float, row), strict=True)) for row in drawn[:count]]
    given = rows if batch == 1 else [pd.DataFrame(drawn[:batch], columns=names)] * count
    profile = DatasetProfile()
    began = time.thread_time()
    for one in given:
        profile.track(one)
    print(time.thread_time() - began, flush=True)
