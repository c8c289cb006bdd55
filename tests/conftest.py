"""For all tests, before anything loads numpy.

On a busy machine the threads of BLAS wait for each other by spinning: a test that trains took 25 s
with one thread and 106 with two. What was loaded to collect the tests is no garbage to look through
again and again.
"""

import gc
import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
