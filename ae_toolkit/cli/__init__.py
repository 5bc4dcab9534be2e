"""The command line: `ae`, its groups and verbs, none of which knows a data type."""

from ae_toolkit.cli.app import main

__all__ = ["main"]
