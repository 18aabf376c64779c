"""`cyclic` and `python -m cyclic_cli`."""

import os
import sys

from cyclic_cli.cli import app


def main() -> None:
    """Run the command line. A reader that closes the pipe early (`| head`) ends it quietly."""
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
