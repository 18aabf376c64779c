"""The command line `cyclic`: collects the commands of `commands/`, and turns errors into messages and exit codes."""

import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cyclic_cli import console, environment, registry
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

SUMMARY = "Learn joint representations of medical images and reports by cycle consistency, without labels."
EXIT_CODES = (
    "Exit codes: 0 success; 1 failure, or no usable input; 2 wrong command line; 8 with --strict if some inputs were "
    "unusable; 130 after Ctrl-C; 143 after SIGTERM (the state is saved: requeue the job)."
)


class ErrorGroup(TyperGroup):
    """A group of commands that turns expected errors into messages and exit codes. A bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        signal.signal(signal.SIGTERM, _stop)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Terminated:
            console.print_line("Ended by SIGTERM. The same command continues the work where that is possible.")
            raise typer.Exit(143) from None
        except KeyboardInterrupt:
            console.print_line("Interrupted. The same command continues the work where that is possible.")
            raise typer.Exit(130) from None
        except CyclicError as error:
            if error.everywhere and not environment.is_main_process():
                raise typer.Exit(0) from error  # only rank 0 prints the error
            console.show(error)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:  # such as an unreadable folder or a full disk
            console.show(
                CyclicError(f"{error.filename or 'A file'}: {error.strerror}.", "Check the path and the disk.")
            )
            raise typer.Exit(1) from error


def _stop(number: int, frame: FrameType | None) -> None:
    raise Terminated


app = typer.Typer(
    cls=ErrorGroup,
    help=SUMMARY,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None if os.environ.get("TERM") == "dumb" else "rich",
    pretty_exceptions_enable=False,  # local variables may hold report text
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # imported here, because it takes a tenth of the time of `cyclic --help`

        typer.echo(f"cyclic {version('cyclic-cli')}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Defines the options of `cyclic` itself."""


app.command()(demo)
app.command()(prepare)
app.command(short_help=f"Train a model ({', '.join(registry.names('models'))}) on a dataset.")(train)
app.command()(reconstruct)
app.command()(embed)
app.command()(search)
app.command()(evaluate)
app.command()(export)
app.command()(info)
