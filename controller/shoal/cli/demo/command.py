"""x"""

import click

from shoal.cli.verb import Verb


@click.command(cls=Verb)
def demo() -> None:
    """x"""
