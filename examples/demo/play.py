"""The demo from first step to last, whatever happens on the way."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from demo import summary
from demo.bad_releases import refused
from demo.drifting import drift_and_mend
from demo.power_cuts import check_ledger
from demo.processes import Processes
from demo.rolling_out import roll_out
from demo.scenario import Scenario
from demo.setting_up import set_up
from demo.story import Story
from demo.streaming import stream
from demo.training import train
from demo.world import World
from shoal.cli.command import Session
from shoal.errors import ShoalError


class Wish(NamedTuple):
    """How the demo is run. leave: stop by itself when the story is told."""

    folder: Path
    leave: bool


def play(session: Session, wish: Wish, scenario: Callable[[], Scenario]) -> World:
    """Tell the whole story; the world as it then is, its processes ended.

    A ShoalError says which step did not hold, and demo.json tells how far it came.
    """
    wish.folder.mkdir(parents=True, exist_ok=True)
    processes = Processes(wish.folder, session.environment)
    console = session.err if session.json else session.out
    story = Story(console, session.clock, session.sleep, processes.check)
    console.print(f"[bold]Shoal demo[/bold]: everything is in {wish.folder}")
    with console.status("[dim]data[/dim]"):
        world = World(wish.folder, scenario(), processes, story, session.now, session.clock)
    try:
        _steps(world)
        if not wish.leave:
            _stay(session, world)
    except ShoalError as error:
        world.save(held=False, error=error.message)
        raise
    finally:
        with console.status("[dim]ending every process[/dim]"):
            processes.end_all(lambda text: console.print(f"   [yellow]![/yellow] {text}"))
    return world


def _steps(world: World) -> None:
    set_up(world)
    train(world)
    roll_out(world)
    before = stream(world)
    course = drift_and_mend(world, before)
    refused(world, course.bad)
    check_ledger(world)
    with world.story.step(8, "Summary"):
        world.story.show(summary.picture(world, course))
    world.save(held=True)


def _stay(session: Session, world: World) -> None:
    """Keep the fleet going for whoever looks at the console, until Ctrl-C."""
    world.story.console.print(
        f"\nThe console stays up at [bold]{world.url}[/bold]  "
        f"(user {world.user}, password {world.password})\n"
        "Its certificate is from the demo's own CA: the browser will ask. Ctrl-C ends everything.",
        soft_wrap=True,
    )
    try:
        while True:
            world.processes.check()
            session.sleep(1.0)
    except KeyboardInterrupt:  # how it is meant to end: everything held
        world.story.console.print("\nending")
