"""Logs: structlog for everything, the libraries' own lines included, on standard error."""

import json
import logging
import re
import sys
from io import StringIO
from typing import Any, TextIO

import orjson
import structlog

from app import telemetry
from config.settings import Settings

# What could end a line, colour or move a terminal's text, or turn its direction.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def _plain(text: str) -> str:
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _escape(
    logger: Any, method: str, entry: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Keep each line one line, whatever a client sent; JSON does so by itself."""
    for name, value in entry.items():
        if name != "exc_info" and not isinstance(value, int | float | None):
            entry[name] = _plain(value if isinstance(value, str) else repr(value))
    return entry


def _traceback(sio: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """A traceback, each line of it indented: none looks like a line of the log."""
    text = StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    sio.write(
        "\n".join(_plain(f"  {line}") if line else "" for line in text.getvalue().split("\n"))
    )


def _json(entry: structlog.typing.EventDict, **how: Any) -> bytes:
    """In ASCII, so that no character ends a line or turns its direction."""
    try:
        line = orjson.dumps(entry, **how)
    except TypeError:  # It holds half a surrogate pair, or a number of more than 64 bits.
        line = b"\xff"
    return line if line.isascii() else json.dumps(entry, **how).encode()


def configure(settings: Settings) -> None:
    """Send all log lines one way: readable on a terminal, JSON elsewhere."""
    as_json = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([telemetry.add_ids] if telemetry.wanted() else []),
    ]
    # Past Python's logging, which takes three quarters of the time of a line.
    straight: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=_json),
    ]
    structlog.configure(
        processors=[
            *shared,
            *(straight if as_json else [structlog.stdlib.ProcessorFormatter.wrap_for_formatter]),
        ],
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer)
        if as_json
        else structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        cache_logger_on_first_use=True,
    )
    rendered: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [
            _escape,
            # The default shows local variables too, which hold passwords and tokens.
            structlog.dev.ConsoleRenderer(exception_formatter=_traceback),
        ]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
    # They tell of each step that they take; what matters of it reaches our own lines.
    # `config.db` is the name by which SQLAlchemy logs of our pool.
    chatty_ones = ("aiobotocore", "botocore", "boto3", "alembic", "asyncio", "pyvips", "uvicorn")
    for chatty in (*chatty_ones, "config.db"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.root.level))
