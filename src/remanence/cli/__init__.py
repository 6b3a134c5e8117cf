"""The command line. Answers go to stdout, everything else to stderr.

Exit codes: 0 done. 1 a question was answered with no, or damage was found. 2 refused: misuse, bad input, a disk that
will not; one line on stderr says why, or with --json one object {"error": {"type": ..., "message": ...}} on stdout. 130
and 143: ended by Ctrl-C or SIGTERM; what was acknowledged is kept. 141: whoever read the output had enough, as in
`... | head -1`.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from .. import __version__
from ..environment import keep_little
from ..errors import RemanenceError, StorageError
from . import convert, demo, eval, forgetting, mcp, memory, prepare, serve, talk, train
from .output import NoOutput, OutputClosed, drop_stdout, error_dict, put_json, say
from .stopping import Stopped

app = typer.Typer(
    name="remanence",
    help="A language model with a long-term memory inside.",
    epilog="Start with: remanence demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    talk.memorize,
    talk.ask,
    talk.chat,
    forgetting.forget,
    mcp.mcp,
    demo.demo,
    prepare.prepare,
    convert.convert,
):
    app.command()(command)
app.add_typer(memory.app, name="memory")
app.add_typer(train.app, name="train")
app.add_typer(eval.app, name="eval")
app.add_typer(serve.app, name="serve")

_USAGE: Any = typer.BadParameter.__base__  # click's UsageError, wherever this version of typer has it
_OUTPUT_CLOSED = 141  # what a shell says of a program that SIGPIPE ended


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
    """Run the command line and exit; every error on purpose is one line, or one JSON object, and an exit code."""
    _fill_streams()
    keep_little()
    arguments = sys.argv[1:]
    as_json = "--json" in arguments[: arguments.index("--") if "--" in arguments else None]
    try:
        code = _run(arguments, as_json)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OutputClosed, BrokenPipeError):
        drop_stdout()
        code = _OUTPUT_CLOSED
    except OSError as error:
        drop_stdout()
        say(f"remanence: cannot write to standard output: {error.strerror}.")
        code = 2
    sys.exit(code)


def _run(arguments: list[str], as_json: bool) -> int:
    """Run a command; its exit code."""

    def refuse(kind: str, message: str, code: int = 2) -> int:
        if as_json:
            put_json({"error": error_dict(kind, message)})
        else:
            say(f"remanence: {message}")
        return code

    try:
        result = app(arguments, prog_name="remanence", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        if code == 130:  # Ctrl-C in a command that handles none
            say("remanence: stopped.")
    except Stopped as stopped:
        return refuse("Stopped", stopped.line, stopped.code) if stopped.line else stopped.code
    except typer.Abort as error:
        code = 130 if isinstance(error.__cause__, KeyboardInterrupt) else 1
        say("remanence: stopped." if code == 130 else "remanence: nothing was changed.")
    except _USAGE as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed already
            return 2
        return refuse("UsageError", _usage(error, arguments))
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # so typer and rich end when their reader is gone
            raise OutputClosed from None
        raise
    except NoOutput as error:
        say(f"remanence: {error}")
        return 2
    except RemanenceError as error:
        return refuse(type(error).__name__, str(error))
    except OSError as error:
        if error.errno is None:
            raise
        sys.stdout.flush()  # raises if it was stdout that refused
        return refuse("StorageError", str(StorageError(f"{error.strerror}: {error.filename or ''}".rstrip(": "))))
    return code


def _usage(error: Any, arguments: list[str]) -> str:
    """A usage error in one line that quotes no text: a question without quotes arrives as words too many."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if "extra argument" in message:
        message = "too many words; put a question, or a name with spaces, in quotes"
    for argument in arguments:
        if " " in argument:
            message = message.replace(repr(argument), "...").replace(argument, "...")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else " ".join(["remanence", *_command(arguments)])
    return f"{message[:1].lower()}{message[1:]}; see: {path} --help"


def _command(arguments: list[str]) -> list[str]:
    """The words that name a command."""
    groups = {"memory", "train", "eval", "serve"}
    return [word for word in arguments[: 2 if arguments[:1] and arguments[0] in groups else 1] if word[:1] != "-"]


def _fill_streams() -> None:
    """Put something in the place of streams that were closed before the start.

    Otherwise the next file that is opened becomes standard output. What is written to a closed stdout must fail, so it
    goes where writing is refused.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    elif hasattr(sys.stdout, "reconfigure"):  # a path may hold any bytes, a terminal may not take every letter
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
