"""What commands share that print an error in one line, and whose help is their docstring."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

# What a user's mistake raises; anything else is a fault of the code, whose traceback is needed
ERRORS = (OSError, ImportError, ValueError)


def argument_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m MODULE`, whose help has the description as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def exit_code(action: Callable[[], None]) -> int:
    """Run a command: 0, or 1 after an error that is printed in one line."""
    try:
        action()
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
