"""Addresses of clients and of proxies."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def parse_address(text: str) -> Address:
    """An address; IPv4 written as IPv6 (`::ffff:192.0.2.1`) is IPv4. Raises ValueError."""
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def parse_networks(text: str) -> tuple[Network, ...]:
    """Addresses and networks (CIDR), by commas. Raises ValueError with a sentence."""
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(
            f"it must be addresses or networks by commas, such as 10.0.0.0/8,2001:db8::1 ({error})"
        ) from None


@lru_cache(maxsize=10_000)
def counted_as(address: str) -> str:
    """What a client's address counts as: of IPv6 its /64, all of which one client has."""
    try:
        parsed = parse_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
