"""What a library's default drift check says: `python drift_defaults.py evidently|whylogs FILE`.

FILE: .npz with training (rows,) and windows (K, n). Prints K times 0 or 1, a line of JSON.
"""

# Its libraries are in the peer's own environment, not in this one.
# mypy: ignore-errors

import json
import sys

import numpy as np
import pandas as pd


def evidently(training, windows):
    from evidently import Dataset, Report
    from evidently.presets import DataDriftPreset

    reference, told = Dataset.from_pandas(pd.DataFrame({"x": training})), []
    for window in windows:
        current = Dataset.from_pandas(pd.DataFrame({"x": window}))
        found = Report([DataDriftPreset()]).run(current, reference).dict()
        told.append(found["metrics"][0]["value"]["count"] > 0)
    return told


def whylogs(training, windows):
    import whylogs as why
    from whylogs.viz.drift.column_drift_algorithms import calculate_drift_scores

    reference = why.log(pd.DataFrame({"x": training})).view()
    told = []
    for window in windows:
        current = why.log(pd.DataFrame({"x": window})).view()
        score = calculate_drift_scores(current, reference, with_thresholds=True)["x"]
        told.append(score["drift_category"] == "DRIFT")
    return told


kept = np.load(sys.argv[2])
found = {"evidently": evidently, "whylogs": whylogs}[sys.argv[1]](kept["training"], kept["windows"])
print(json.dumps([int(one) for one in found]))
