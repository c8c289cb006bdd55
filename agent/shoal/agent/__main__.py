"""`python -m shoal.agent`, and the entry point of `shoal-agent`."""

from shoal.agent.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
