"""`ae music`"""

import click


@click.group()
def music() -> None:
    """Melodies."""
