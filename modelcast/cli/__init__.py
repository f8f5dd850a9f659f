"""The command line: root command, options every command takes, output, errors as exit codes."""

from modelcast.cli.app import main

__all__ = ["main"]
