"""Python's warnings and tinytf's own log records, handed on through the standard `logging`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

LOGGERS = ("tinytf", "py.warnings")

Sink = Callable[[dict[str, Any]], None]


class LogCapture(logging.Handler):
    """Gives each record to `sink` as plain fields: ``level``, ``logger``, ``message``.

    What was shown on stderr before is still shown there.
    """

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink
        self._shown: list[logging.Logger] = []

    def install(self) -> None:
        """Begin to take what is logged and warned."""
        logging.captureWarnings(True)
        for logger in map(logging.getLogger, LOGGERS):
            # Python's last resort prints what no handler takes; once this one takes it, it must be asked to go on.
            if logging.lastResort is not None and not _speaks(logger):
                logger.addHandler(logging.lastResort)
                self._shown.append(logger)
            logger.addHandler(self)

    def remove(self) -> None:
        """End it, and leave logging as it was."""
        for logger in map(logging.getLogger, LOGGERS):
            logger.removeHandler(self)
        while self._shown:
            assert logging.lastResort is not None
            self._shown.pop().removeHandler(logging.lastResort)
        logging.captureWarnings(False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.sink({"level": record.levelname, "logger": record.name, "message": record.getMessage().rstrip()})
        except Exception:
            self.handleError(record)


def _speaks(logger: logging.Logger) -> bool:
    """Whether anything but a NullHandler listens to a logger or those above it."""
    current: logging.Logger | None = logger
    while current is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in current.handlers):
            return True
        current = current.parent if current.propagate else None
    return False
