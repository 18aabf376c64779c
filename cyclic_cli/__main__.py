"""Starts the command line, as `cyclic` or as `python -m cyclic_cli`."""

import os
import sys

from cyclic_cli.cli import app


def main() -> None:
    """Run the command line. It ends without an error if the reader of a pipe closes early, as in `| head`."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:  # closed, as by `>&-`: else the next opened file would get its number
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    # torch reads this when it is loaded. By default, its threads spin while they wait for each other, which makes
    # training several times slower on cores that other programs use too. With this setting they sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are for authors of networks, not for users
    # Otherwise pydantic opens a file of every installed package to look for plugins: slow on a cluster's file system.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        app(prog_name="cyclic")
    except SystemExit as end:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            end.code = 0
            # Python flushes stdout once more at exit, which would fail on the closed pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


if __name__ == "__main__":
    main()
