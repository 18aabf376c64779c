"""The command line: the commands of `commands/` under one name, and the one place where errors become exit codes."""

import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cyclic_cli import config as settings
from cyclic_cli import console, registry
from cyclic_cli.commands.demo import demo
from cyclic_cli.commands.embed import embed
from cyclic_cli.commands.evaluate import evaluate
from cyclic_cli.commands.export import export
from cyclic_cli.commands.info import info
from cyclic_cli.commands.prepare import prepare
from cyclic_cli.commands.reconstruct import reconstruct
from cyclic_cli.commands.search import search
from cyclic_cli.commands.train import train
from cyclic_cli.errors import CyclicError, Terminated

EXIT_CODES = (
    "Exit codes: 0 success; 1 failure, also when not one input was usable; 2 wrong command line; 8 with --strict "
    "when some inputs were unusable; 130 after Ctrl-C; 143 after SIGTERM, with the state saved (requeue the job)."
)


class ErrorGroup(TyperGroup):
    """The one place where errors become lines and exit codes. A bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        signal.signal(signal.SIGTERM, _stop)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Terminated:
            console.say("Ended by SIGTERM. The same command continues where it can.")
            raise typer.Exit(143) from None
        except KeyboardInterrupt:
            console.say("Interrupted. The same command continues where it can.")
            raise typer.Exit(130) from None
        except CyclicError as error:
            if error.everywhere and not settings.is_main_process():
                raise typer.Exit(0) from error  # the first process says it; its exit code counts
            console.show(error)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:  # a folder that cannot be read or made, a disk that is full
            console.show(
                CyclicError(f"{error.filename or 'A file'}: {error.strerror}.", "Check the path and the disk.")
            )
            raise typer.Exit(1) from error


def _stop(number: int, frame: FrameType | None) -> None:
    raise Terminated


app = typer.Typer(
    cls=ErrorGroup,
    help="Joint image and text representations of diagnostic images, learned by cycle consistency, without labels.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None if os.environ.get("TERM") == "dumb" else "rich",
    pretty_exceptions_enable=False,  # local variables may hold report text
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # here, because its import takes a tenth of `cyclic --help`

        typer.echo(f"cyclic {version('cyclic-cli')}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Joint image and text representations of diagnostic images, learned by cycle consistency, without labels."""


app.command()(demo)
app.command()(prepare)
app.command(short_help=f"Train a model ({', '.join(registry.names('models'))}) on a dataset.")(train)
app.command()(reconstruct)
app.command()(embed)
app.command()(search)
app.command()(evaluate)
app.command()(export)
app.command()(info)
