"""What is closed at the end of a `with`."""

import abc
from types import TracebackType
from typing import Self


class Closing(abc.ABC):
    """Closes itself, however the block ends.

    >>> class Door(Closing):
    ...     def close(self) -> None:
    ...         print("shut")
    >>> with Door():
    ...     print("through")
    through
    shut
    """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what it holds; again is no work."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
