"""What the command lines share: exit codes and how a message reaches a person."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from adept_tune.errors import AdeptError

DONE, BAD_INPUT, NOTHING_FINISHED, INTERRUPTED = 0, 2, 3, 130


def treat_termination_as_interrupt() -> None:
    """Let SIGTERM do what Ctrl-C does. Libraries that set their own handler call for a second time."""
    with contextlib.suppress(ValueError):  # signals can only be set in the main thread
        signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))


def guarded(run: Callable[[], int]) -> int:
    """Run a command; bad input becomes one message and exit code 2, an interrupt exit code 130."""
    treat_termination_as_interrupt()
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
