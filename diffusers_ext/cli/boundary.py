"""Where every program ends: whatever goes wrong becomes one sentence and an exit status.

`guarded` runs the body of a program. Help goes to the standard output, an error to the standard error; with `debug` its
traceback comes first. Exit statuses: 0 for success, 1 for an error, 128 + N after signal N (130 for Ctrl-C).
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..settings import HelpRequested

_LONGEST = 1000  # characters of a message
# Errors that the package raises, or a library about what the user gave: their message is the sentence.
_FORESEEN = (ValueError, OSError, ImportError)
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "bad alloc")
_NO_SPACE = (
    "No space left on device",
    "File too large",
    "os error 28",
    "code: 28",
    "Disk quota exceeded",
    "PytorchStreamWriter failed",
)
_LESS_MEMORY = "Use smaller batches, fewer images at a time, a lower resolution or a smaller network."


def guarded(body: Callable[[], None], debug: bool = False) -> int:
    """Run the body; the exit status of the program.

    Args:
        body: what the program does.
        debug: print the traceback of an error.
    """
    try:
        with _quiet_libraries():
            body()
            sys.stdout.flush()
    except HelpRequested as asked:
        text = str(asked)
        return guarded(lambda: print(text))
    except BrokenPipeError:  # the reader, such as `head`, has left; nothing is to be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException as error:
        if debug:
            traceback.print_exc()
        sentence, status = explained(error)
        print(f"error: {sentence}" if status == 1 else sentence, file=sys.stderr)
        return status
    return 0


def explained(error: BaseException) -> tuple[str, int]:
    """(one sentence on an error, exit status)."""
    if (signal_number := getattr(error, "signal_number", None)) is not None:  # training that was asked to stop
        return _one_line(str(error)), 128 + signal_number
    if _was_interrupted(error):
        return "Stopped by Ctrl-C.", 130
    message = _one_line(str(error))
    if _is_no_memory(error, message):
        reason = _one_line(message, 200) or type(error).__name__
        return f"Out of memory ({reason}). {_LESS_MEMORY}", 1
    if _is_no_space(error, message):
        return f"The disk is full ({_one_line(message, 300)}). Make room, then run the same command again.", 1
    if isinstance(error, OSError) and error.errno is not None and error.strerror and error.filename is not None:
        return f"{error.strerror}: '{_one_line(str(error.filename), 200)}'.", 1
    if isinstance(error, _FORESEEN) or _is_foreseen_by_us(error):
        return message or f"{type(error).__name__}.", 1
    return f"Unexpected {type(error).__name__}{_place(error)}: {message or 'no message'} (--debug shows more)", 1


def _was_interrupted(error: BaseException) -> bool:
    """Whether this is a Ctrl-C, or what a library raised because of one: `import numpy` makes it an ImportError."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _is_no_memory(error: BaseException, message: str) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in message.lower() for words in _NO_MEMORY)


def _is_no_space(error: BaseException, message: str) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(words in message for words in _NO_SPACE)


def _is_foreseen_by_us(error: BaseException) -> bool:
    """Whether the package raised an error class of its own, whose messages are written for users."""
    return type(error).__module__.split(".")[0] == __name__.split(".")[0]


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""


def _one_line(text: str, longest: int = _LONGEST) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


class _Needless(logging.Filter):
    """Drops a warning of diffusers' about a list of modules that is empty."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "should be kept in float32: []" not in record.getMessage()


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    logger, needless = logging.getLogger("diffusers.models.modeling_utils"), _Needless()
    logger.addFilter(needless)
    try:
        yield
    finally:
        logger.removeFilter(needless)
