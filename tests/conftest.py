"""For all tests: what was loaded to collect them is no garbage to look through again and again."""

import gc


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
