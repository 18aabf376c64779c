"""`cyclic` and `python -m cyclic_cli`."""

import os
import sys

from cyclic_cli.cli import app


def main() -> None:
    """Run the command line. A reader that closes the pipe early (`| head`) ends it quietly."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:  # closed by whoever started this, as `>&-` does: or a file would take its place
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    # Read when torch is loaded: its threads sleep while they wait for one another. By themselves they spin, and on
    # cores that others use too training then is several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what it warns of is for who wrote the network
    # Or pydantic looks through every installed package for its plugins: a file each, slow on a cluster's file system.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        app(prog_name="cyclic")
    except SystemExit as end:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            end.code = 0
            # Python flushes stdout once more at exit: let it have somewhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


if __name__ == "__main__":
    main()
