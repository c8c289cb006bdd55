"""Step 8: summary of the measured results."""

from rich.table import Table as RichTable

from demo.context import Context
from demo.drift import DriftResult
from shoal.cli.api import at


def summary_table(context: Context, result: DriftResult) -> RichTable:
    """A table with a row per step."""
    made = RichTable(box=None, header_style="bold", pad_edge=False)
    for heading in ("step", "what happened", "measured", "seconds"):
        made.add_column(heading, overflow="fold")
    for number, what, measured in _lines(context, result):
        took = next((s.seconds for s in context.progress.steps if s.number == number), 0.0)
        made.add_row(str(number), what, measured, f"{took:.1f}")
    made.add_row(
        "", "[bold]every step succeeded[/bold]", "", f"[bold]{context.progress.seconds:.0f}[/bold]"
    )
    return made


def _lines(context: Context, result: DriftResult) -> list[tuple[int, str, str]]:
    scenario, steps = context.scenario, {step.number: step for step in context.progress.steps}
    numbers = {name: value for step in steps.values() for name, value in step.numbers.items()}
    sites = sorted(scenario.drifting)
    fleet = len(scenario.stations)
    canaries = sum(station.ring == "canary" for station in scenario.stations)
    moved = "; ".join(
        f"{s} {result.before[s]:.3f} → {result.during[s]:.3f} → {result.after[s]:.3f}"
        for s in sites
    )
    found = ", ".join(f"{numbers[f'drift at {s} found after s']} s" for s in sites)
    releases = list(context.api.items(at("releases"), model=scenario.model))
    cuts = ", ".join(
        f"{name} in {facts['state']}, back in {numbers[f'{name} back after s']} s"
        for name, facts in context.cuts.items()
    )
    return [
        (1, f"broker, controller, {fleet} devices enrolled", f"{fleet} online"),
        (2, "trained, quantized, signed", f"{len(releases)} releases in all"),
        (3, "canary, gate, everyone", f"{fleet} of {fleet} devices"),
        (4, "streamed", f"{numbers['rows_per_s']} rows/s, {numbers['windows']} windows"),
        (5, f"drift found at {', '.join(sites)} only; retrained", f"found in {found}; {moved}"),
        (6, f"{len(result.bad)} bad releases stopped", f"{fleet - canaries} stable untouched"),
        (7, "two agents killed with -9", f"{cuts}; missing 0, twice 0"),
    ]
