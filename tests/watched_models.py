"""A model that many devices serve and have learnt the usual inputs of, for tests of baselines."""

import msgspec
import numpy as np
from sqlalchemy import insert

import tensor_releases
from shoal.controller.host.context import Context
from shoal.controller.monitoring import drift_state
from shoal.controller.monitoring.drift_state import Layout
from shoal.controller.releases import releases
from shoal.controller.store.drift_tables import drift_baseline
from shoal.controller.store.drift_tables import drift_state as state_table
from shoal.controller.store.tables import device
from shoal.sketch import Reference, References, reference_of


def watched(ctx: Context, devices: int, *, features: int = 8) -> str:
    """A released model, devices of ten sites that serve it, and their baselines; its name.

    States are stored for the first site alone, the others have none: 20 kB a device add up.
    """
    values = np.random.default_rng(0).normal(size=500)
    inputs = reference_of({f"x{i}": values for i in range(features)})
    references = References(inputs=inputs, outputs=Reference(features=[]))
    made = msgspec.structs.replace(
        tensor_releases.built(), references=msgspec.json.encode(references)
    )
    ref = releases.publish(ctx, actor="boss", ref=tensor_releases.packed(ctx, made)).ref
    model = ref.partition("@")[0]
    state = drift_state.empty(Layout(features, 24, 7 * features + 1, cycle=True)).to_bytes()
    of_site = drift_state.empty(Layout(0, 0, 7 * features + 1, cycle=True)).to_bytes()
    names = [(f"d{i:05}", f"s{i % 10}") for i in range(devices)]
    subjects = [("device", name, site, state) for name, site in names]
    subjects += [("site", f"s{i}", f"s{i}", of_site) for i in range(10)]
    empty = {"labels": {}, "variants": {}, "facts": {}, "releases": {model: ref}}
    with ctx.store.write() as db:
        rows = [{"name": n, "site": s, "state": "enrolled", **empty} for n, s in names]
        db.execute(insert(device), rows)
        keys = [
            {"scope": scope, "subject": name, "model": model, "release": ref}
            for scope, name, _, _ in subjects
        ]
        listed = [
            key | {"site": site, "state": "watching", "drifting": []}
            for key, (_, _, site, _) in zip(keys, subjects, strict=True)
        ]
        db.execute(insert(drift_baseline), listed)
        states = [
            key | {"saved_at": 1.0, "state": data}
            for key, (_, _, site, data) in zip(keys, subjects, strict=True)
            if site == "s0" or devices < 100
        ]
        db.execute(insert(state_table), states)
    return model
