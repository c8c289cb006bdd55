"""dp-accounting's half of test_accountant.py; runs in an environment that has it, and not Shoal.

`python accounting_side.py CASES`: JSON list of [[[noise, rate, rounds], ...], delta] -> epsilons.
"""

import json
import sys

from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant


def epsilon(kinds, delta):
    accountant = PLDAccountant()
    for noise, rate, rounds in kinds:
        event = dp_event.GaussianDpEvent(noise)
        if rate < 1:
            event = dp_event.PoissonSampledDpEvent(rate, event)
        accountant.compose(event, rounds)
    return accountant.get_epsilon(delta)


print(json.dumps([epsilon(kinds, delta) for kinds, delta in json.loads(sys.argv[1])]))
