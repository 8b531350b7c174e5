"""What a user sees when something goes wrong: one line for what the input or the machine did, a traceback for a bug."""

import contextlib
import errno
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

CLOSED_PIPE = 141  # exit code where the reader of the output has gone: 128 + SIGPIPE, as of any program in a pipe
OPENDELTA = "opendelta==0.3.2"  # as in requirements-no-deps.txt, which says why
_WRITING = ("PytorchStreamWriter", "inline_container.cc", "basic_ios::clear", "iostream error")
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class UserError(Exception):
    """Bad input. The message names the file, line, flag or tensor and says what was expected."""


def write_fault(error: BaseException) -> str:
    """Why a file could not be written, where this error says that: of the system, of torch or of safetensors; else empty."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    if type(error).__name__ == "SafetensorError" and "I/O error" in text:
        return text.split("I/O error:")[-1].split("(os error")[0].strip()
    if isinstance(error, RuntimeError) and any(sign in text for sign in _WRITING):
        return (
            text.rpartition("strerror: ")[2] if "strerror: " in text else f"{os.strerror(errno.ENOSPC)}?"
        )  # it does not say
    return ""


def reason(error: BaseException) -> str:
    """The line for an error that the input or the machine made; empty for a bug, whose traceback is wanted."""
    if isinstance(error, UserError):
        return " ".join(str(error).splitlines())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(s in str(error) for s in _MEMORY)):
        return "out of memory; a smaller --stack, batch, length or delta needs less"
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[error.start : error.end]!r} cannot be written as {error.encoding}"
    if isinstance(error, ModuleNotFoundError) and error.name == "opendelta":
        return f"opendelta is missing; a wheel cannot ask for it: pip install --no-deps {OPENDELTA}"
    fault = write_fault(error)
    names = [str(name) for name in (getattr(error, "filename", None), getattr(error, "filename2", None)) if name]
    return ": ".join([" ".join(fault.split()), *names]) if fault else ""


def shortened(line: str, most: int = 1000) -> str:
    """The line without its middle, where a name in it is far too long."""
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Turn every error that is no bug into one line on stderr and exit code 2; a closed pipe ends the command silently.

    What the terminal cannot show is printed as its code, e.g. \\xb1.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    threading.excepthook = _of_a_thread
    try:
        try:
            yield
        finally:
            _flush()
    except BrokenPipeError:
        sys.exit(CLOSED_PIPE)
    except KeyboardInterrupt:
        _end("stopped; the same command continues where it left off", 130)
    except Exception as error:
        if not (line := reason(error)):
            raise
        _end(f"error: {shortened(line)}", 2)


class Terminal(logging.StreamHandler):
    """Log entries on what is stderr at that time. A closed pipe ends the command, as `one_line` says."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exception(), BrokenPipeError):
            raise
        super().handleError(record)


class LogFile(logging.FileHandler):
    """Log entries in a file. A file that cannot be written any more is given up with a warning; the command goes on."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            return super().handleError(record)
        log = logging.getLogger(record.name)
        log.removeHandler(self)
        log.warning("%s cannot be written and ends here: %s", self.baseFilename, sys.exception())
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
            super().close()


def _of_a_thread(args) -> None:
    """The traceback of a bug only: what the machine did is told by the thread that needs the result."""
    if not reason(args.exc_value):
        threading.__excepthook__(args)


def _end(line: str, code: int) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        print(line, file=sys.stderr)
    sys.exit(code)


def _flush() -> None:
    """Write what was printed: a closed pipe or a full disk behind it shows here at the latest, not at the interpreter's end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise
