"""DataSketches takes in rows: `python kll_rows.py FEATURES`; see whylogs_rows.py for the lines."""

# Its libraries are in the peer's own environment, not in this one.
# mypy: ignore-errors

import sys
import time

import numpy as np
from datasketches import vector_of_kll_floats_sketches

features = int(sys.argv[1])
drawn = np.random.default_rng(0).normal(size=(1_024, features)).astype(np.float32)
for line in sys.stdin:
    batch, count = map(int, line.split())
    given = [drawn[0] if batch == 1 else drawn[:batch]] * count
    sketches = vector_of_kll_floats_sketches(200, features)
    began = time.thread_time()
    for one in given:
        sketches.update(one)
    print(time.thread_time() - began, flush=True)
