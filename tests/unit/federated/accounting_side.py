"""dp-accounting's half of test_privacy.py; runs in an environment that has it, and not Shoal.

`python accounting_side.py CASES`: JSON list of [noise, rate, rounds, delta] -> list of epsilons.
"""

import json
import sys

from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

found = []
for noise, rate, rounds, delta in json.loads(sys.argv[1]):
    event = dp_event.GaussianDpEvent(noise)
    if rate < 1:
        event = dp_event.PoissonSampledDpEvent(rate, event)
    found.append(PLDAccountant().compose(event, rounds).get_epsilon(delta))
print(json.dumps(found))
