"""Run all steps of the demo."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from demo import summary
from demo.bad_releases import refused
from demo.context import Context
from demo.drift import drift_and_retrain
from demo.power_cuts import check_ledger
from demo.processes import Processes
from demo.progress import Progress
from demo.rollout import roll_out
from demo.scenario import Scenario
from demo.setup_fleet import set_up
from demo.streaming import stream
from demo.training import train
from shoal.cli.command import Session
from shoal.errors import ShoalError


class RunOptions(NamedTuple):
    """Options of a run.

    leave   exit after the last step
    until   number of the last step, 1 to 8
    """

    folder: Path
    leave: bool
    until: int = 8


def run_demo(session: Session, options: RunOptions, scenario: Callable[[], Scenario]) -> Context:
    """Run all steps, end all processes, and return the context.

    A ShoalError names the failed step; demo.json records the progress up to it.
    """
    options.folder.mkdir(parents=True, exist_ok=True)
    processes = Processes(options.folder, session.environment)
    console = session.err if session.json else session.out
    progress = Progress(console, session.clock, session.sleep, processes.check)
    console.print(f"[bold]Shoal demo[/bold]: everything is in {options.folder}")
    with console.status("[dim]data[/dim]"):
        context = Context(
            options.folder, scenario(), processes, progress, session.now, session.clock
        )
    try:
        for step in _steps(context):
            if step == options.until:
                break
        context.save(held=True)
        if not options.leave:
            _stay(session, context)
    except ShoalError as error:
        context.save(held=False, error=error.message)
        raise
    finally:
        with console.status("[dim]ending every process[/dim]"):
            processes.end_all(lambda text: console.print(f"   [yellow]![/yellow] {text}"))
    return context


def _steps(context: Context) -> Iterator[int]:
    """Run the steps, one for each number that is drawn."""
    set_up(context)
    yield 1
    train(context)
    yield 2
    roll_out(context)
    yield 3
    before = stream(context)
    yield 4
    result = drift_and_retrain(context, before)
    yield 5
    refused(context, result.bad)
    yield 6
    check_ledger(context)
    yield 7
    with context.progress.step(8, "Summary"):
        context.progress.show(summary.summary_table(context, result))
    yield 8


def _stay(session: Session, context: Context) -> None:
    """Keep the fleet and the console running until Ctrl-C."""
    context.progress.console.print(
        f"\nThe console stays up at [bold]{context.url}[/bold]  "
        f"(user {context.user}, password {context.password})\n"
        "Its certificate is from the demo's own CA: the browser will ask. Ctrl-C ends everything.",
        soft_wrap=True,
    )
    try:
        while True:
            context.processes.check()
            session.sleep(1.0)
    except KeyboardInterrupt:  # the regular end: every step succeeded
        context.progress.console.print("\nending")
