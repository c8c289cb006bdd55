"""`python tests/bench [NAME...] [--quick] [--out FOLDER]`: measure, print, write NAME.json."""

import datetime
import importlib
import os
import sys
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
NAMES = (
    "sketch",
    "inference",
    "tensors",
    "steps",
    "large",
    "peers",
    "footprint",
    "feeds",
    "ingest",
    "rollouts",
    "rollout",
    "update",
    "delta",
    "lineage",
    "drift",
    "monitoring",
    "console",
    "aggregation",
    "attacks",
    "federated",
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--quick", is_flag=True, help="Tiny sizes: seconds, and numbers that mean nothing.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "bench",
    help="Where the JSON goes.  [default: bench/ of the checkout]",
)
def main(names: tuple[str, ...], quick: bool, out: Path) -> None:
    """Measure Shoal against raw limits; without NAMES, everything."""
    sys.path.insert(0, str(ROOT / "tests"))  # tests/ holds the package `bench`
    from rich.console import Console

    from bench import report

    console = Console()
    if not console.is_terminal:
        console.width = 120
    for name in names or NAMES:
        load, at = os.getloadavg()[0], datetime.datetime.now(datetime.UTC)
        found = importlib.import_module(f"bench.{name}").run(quick=quick)
        made = report.report(name, found, at=at, quick=quick, load=load)
        report.show(made, console)
        console.print(f"  wrote {report.write(made, out).name}", style="dim")


if __name__ == "__main__":
    main()
