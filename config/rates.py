"""How often each class of routes may be asked by one user or address, and how that is written."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from limits import parse_many

# What a request does to the service, and so how often it may come.
RouteClass = Literal["log-in", "sign-up", "write", "upload", "read"]


class Rate(NamedTuple):
    amount: int
    seconds: int


# No person reaches these, nor do a few dozen who share an address; a program in a loop does.
DEFAULTS: dict[RouteClass, Rate] = {
    "log-in": Rate(100, 60),
    "sign-up": Rate(100, 3600),
    "write": Rate(1200, 60),
    "upload": Rate(300, 60),
    "read": Rate(6000, 60),
}
OFF = "off"
_DAY = 86_400


def parse_rates(text: str) -> Mapping[RouteClass, Rate] | None:
    """The rates of a text such as `read=100/second,write=30 per 5 minutes`; None is `off`.

    What it does not name keeps its default. Raises ValueError with a sentence.
    """
    if text.strip().lower() == OFF:
        return None
    rates: dict[RouteClass, Rate] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, rate = (piece.strip() for piece in part.partition("="))
        known = next((known for known in DEFAULTS if known == name), None)
        if known is None:
            classes = ", ".join(DEFAULTS)
            raise ValueError(f"no class of routes is called {name[:40]!r}; there are {classes}")
        if known in rates:
            raise ValueError(f"{name} is limited twice")
        rates[known] = _rate(name, rate)
    return DEFAULTS | rates


def _rate(name: str, text: str) -> Rate:
    try:
        (item,) = parse_many(text)
    except ValueError:
        raise ValueError(
            f"{name} needs a limit such as {name}=600/minute (or off for all)"
        ) from None
    if item.amount < 1 or not 1 <= item.get_expiry() <= _DAY:
        raise ValueError(f"{name} must allow at least 1 request, in at most a day")
    return Rate(item.amount, item.get_expiry())
