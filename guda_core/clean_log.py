"""Text from outside on its way to a terminal: what could steer a terminal is escaped, in log messages too."""

from __future__ import annotations

import logging
import sys

APART = str.maketrans("", "", "\u2068\u2069")  # the marks of `answers.sentences.apart`, which turn nothing


def clean(text: str) -> str:
    """The text with everything escaped that is not printable: control characters, bytes of a file's name that are no
    text, marks that turn the direction of writing. Line breaks stay. The marks that set a name apart are left out."""
    whole = text.translate(APART).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in whole)


class _Cleaned(logging.StreamHandler):
    """Log messages, with their tracebacks, as clean text on whatever stderr is then: a bar stands in for it."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


HANDLER = _Cleaned()


def log_cleaned(form: str = "%(message)s") -> None:
    """From here on log messages of this program are clean lines on stderr. Whoever has set up logging keeps that.

    form: of a line, as `logging.Formatter` takes it.
    """
    HANDLER.setFormatter(logging.Formatter(form))
    logging.basicConfig(handlers=[HANDLER])


def server_log_cleaned() -> None:
    """The same for what the server logs, which has set up a handler of its own when it begins. Left out is that a
    browser has dropped its connection, which Windows' event loop logs with a traceback."""
    server = logging.getLogger("uvicorn")
    server.handlers = [HANDLER for _ in server.handlers]
    logging.getLogger("asyncio").addFilter(_tells)


def _tells(record: logging.LogRecord) -> bool:
    """Whether it is no dropped connection, whose socket that event loop shuts down once more."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, ConnectionResetError) and "_call_connection_lost" in record.getMessage())
