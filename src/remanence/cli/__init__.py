"""The command line. Answers go to stdout, everything else to stderr; misuse is one line and exit code 2."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import RemanenceError, StorageError
from . import convert, demo, memory, talk, train
from .output import say

app = typer.Typer(
    name="remanence",
    help="A language model with a long-term memory inside.",
    epilog="Start with: remanence demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (talk.memorize, talk.ask, talk.chat, demo.demo, convert.convert):
    app.command()(command)
app.add_typer(memory.app, name="memory")
app.add_typer(train.app, name="train")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"remanence {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """What all commands share."""


def main() -> None:
    """Run the command line; turn every error on purpose into one line and exit code 2."""
    try:
        app()
    except RemanenceError as error:
        say(f"remanence: {error}")
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno is None:
            raise
        say(f"remanence: {StorageError(f'{error.strerror}: {error.filename or str()}'.rstrip(': '))}")
        sys.exit(2)
