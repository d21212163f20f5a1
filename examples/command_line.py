"""What the commands that ask a model share: errors in one line, and an end by Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable

import transformers


def run(main: Callable[[], None]) -> None:
    """Run a command, without what transformers says of its own.

    Raises:
        SystemExit: what a user can put right, in one line; or Ctrl-C.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
