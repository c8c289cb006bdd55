"""Scenario of a demo: data, the stream of each station, and the drift."""

from typing import NamedTuple

from demo.table import Table


class Station(NamedTuple):
    """One device of the demo.

    max_kbps   0, or a rate limit: a slow download can be interrupted
    observe_s  observation period: longer where it is to be interrupted
    """

    name: str
    site: str
    profile: str
    ring: str
    max_kbps: int = 0
    observe_s: float = 3.0


class Scenario(NamedTuple):
    """Data of a scenario. Streamed rows were never in a registered dataset.

    registered  version 1 of the dataset, with columns label, site (may be "") and split (may be "")
    streams     station -> rows before the drift
    change      the drift at the sites in `drifting`, as a sentence
    change_steps   steps of the drift: station -> rows from then on
    relabelled  version 2 of the dataset: version 1 and newly labelled rows after the change
    """

    title: str
    model: str
    dataset: str
    label: str
    site: str
    split: str
    estimator: str
    stations: list[Station]
    registered: Table
    streams: dict[str, Table]
    change: str
    change_steps: list[dict[str, Table]]
    relabelled: Table
    drifting: frozenset[str]

    @property
    def classes(self) -> list[str]:
        return sorted(set(self.registered.column(self.label)), key=_as_number)

    @property
    def features(self) -> list[str]:
        """Feature columns, in the order in which a model gets them."""
        roles = {self.label, self.site, self.split}
        return [name for name in self.registered.columns if name not in roles]


def stations(sites: tuple[str, str, str], names: tuple[str, str, str]) -> list[Station]:
    """Two stations a site. Canaries at the first two sites; the drift is at the third.

    sites   names in the data; names  as part of a device name
    """
    first, second, third = sites
    a, b, c = names
    return [
        Station(f"{a}-1", first, "x86-vnni", "canary"),
        Station(f"{a}-2", first, "rpi4", "stable", observe_s=6.0),
        Station(f"{b}-1", second, "x86-avx2", "canary"),
        Station(f"{b}-2", second, "rpi5", "stable"),
        Station(f"{c}-1", third, "rpi3-aarch64", "stable", max_kbps=128),
        Station(f"{c}-2", third, "generic", "stable"),
    ]


def _as_number(text: str) -> tuple[float, str]:
    """Order of class names: by value where they are numbers, else by name."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
