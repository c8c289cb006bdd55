"""Progress output of the demo: steps, checked lines, and waits with a deadline."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from rich.console import Console

from shoal.cli.exit_codes import FailedError, ProblemError
from shoal.errors import LinkError

_T = TypeVar("_T")
LOOK_EVERY_S = 0.15


class Step(msgspec.Struct, kw_only=True):
    """Result of one step, as in demo.json."""

    number: int
    title: str
    held: bool = False
    seconds: float = 0.0
    lines: list[str] = []
    numbers: dict[str, Any] = {}


class Progress:
    """Prints and records steps. A line is printed only after it was checked.

    check   called while waiting: raises when a process has died unexpectedly
    """

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        check: Callable[[], None],
    ) -> None:
        self.console, self.steps = console, list[Step]()
        self._clock, self._sleep, self._check = clock, sleep, check
        self._began = clock()

    @property
    def seconds(self) -> float:
        return self._clock() - self._began

    @contextmanager
    def step(self, number: int, title: str) -> Iterator[Step]:
        """Run one step under its heading. It held when nothing in it raised."""
        step = Step(number=number, title=title)
        self.steps.append(step)
        began = self._clock()
        self.console.print(f"\n[bold]{number}  {title}[/bold]")
        try:
            yield step
            step.held = True
        finally:
            step.seconds = round(self._clock() - began, 2)

    def report(self, text: str, **numbers: Any) -> None:
        """Print a checked line and record its numbers for demo.json."""
        at_s = f"[dim]{self.seconds:5.0f} s[/dim]"
        self.console.print(f"{at_s} [green]✓[/green] {text}", soft_wrap=True)
        step = self.steps[-1]
        step.lines.append(_unmarked(text))
        step.numbers.update(numbers)

    def show(self, table: Any) -> None:
        """Print a table of the step."""
        self.console.print(table)

    def check(self, holds: bool, why: str) -> None:
        """Raise FailedError unless it holds."""
        if not holds:
            raise FailedError(f"step {self.steps[-1].number}: {why}")

    def wait_for(
        self,
        what: str,
        seconds: float,
        look: Callable[[], _T | None],
        seen: Callable[[], object] = lambda: "",
    ) -> _T:
        """Poll `look` until it returns something true, and return that.

        Raises FailedError after `seconds`, with the text of `seen`. Retries while the controller is
        unreachable.
        """
        end = self._clock() + seconds
        with self.console.status(f"[dim]{what}[/dim]"):
            while True:
                self._check()
                last = ""
                try:
                    if found := look():
                        return found
                except LinkError as error:
                    last = error.message
                if self._clock() > end:
                    raise self._late(what, seconds, last, seen)
                self._sleep(LOOK_EVERY_S)

    def _late(
        self, what: str, seconds: float, last: str, seen: Callable[[], object]
    ) -> FailedError:
        try:
            facts = last or str(seen())
        except (LinkError, ProblemError) as error:
            facts = error.message
        number = self.steps[-1].number if self.steps else 0
        return FailedError(
            f"step {number}: {what}: not within {seconds:.0f} s" + (f"; {facts}" if facts else "")
        )


def _unmarked(text: str) -> str:
    from rich.text import Text

    return Text.from_markup(text).plain
