"""What the command lines share: exit codes and how a message reaches a person."""

import sys
from collections.abc import Callable

from adept_tune.errors import AdeptError

DONE, BAD_INPUT, NOTHING_FINISHED, INTERRUPTED = 0, 2, 3, 130


def guarded(run: Callable[[], int]) -> int:
    """Run a command; bad input becomes one message and exit code 2, an interrupt exit code 130."""
    try:
        return run()
    except AdeptError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; what was done is kept", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        return DONE
