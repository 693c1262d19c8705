"""Before anything is measured: all contenders give the same answers."""

import json
import re
import sys
from collections.abc import Mapping

import httpx

from bench.contenders import FASTIFY, SERVICE, STORE, Contender
from bench.data import cursor

# What each creation has of its own.
_OWN = re.compile(rb'("id":)\d+|("(?:create|update)_dt":)"[^"]*"')
_FORM = {"title": '같은 "제목" \\ /', "content": "본문\n내용\ttext <&> \u2028 \U0001f35a \x7f"}


def check(contenders: Mapping[str, Contender], feeds: int, token: str) -> None:
    """End with a sentence unless they agree: byte for byte, Fastify in what its JSON says."""
    # What is read is read by all before anything is created.
    for paths in (_paths(feeds), ["/api/feed/create"]):
        for path in paths:
            expected = _answer(contenders[SERVICE], path, token)
            for name, contender in contenders.items():
                if name == STORE:
                    continue
                answer = _answer(contender, path, token)
                if answer != expected and not (
                    name == FASTIFY and json.loads(answer) == json.loads(expected)
                ):
                    _differ(path, name, answer, expected)


def _paths(feeds: int) -> list[str]:
    ids = (1, 2, 3, 4, feeds // 2, feeds - 1, feeds)
    starts = (feeds, feeds - 7, feeds // 2, 10, 1)
    after = [f"/api/feed/list?limit=20&cursor={cursor(feeds, start)}" for start in starts]
    return [*(f"/api/feed/read/{id_}" for id_ in ids), "/api/feed/list?limit=20", *after]


def _answer(contender: Contender, path: str, token: str) -> bytes:
    url = contender.url + path
    if not path.endswith("/create"):
        return httpx.get(url, timeout=30).raise_for_status().content
    signed = {"Authorization": f"Bearer {token}"}
    created = httpx.post(url, data=_FORM, headers=signed, timeout=30).raise_for_status()
    return _OWN.sub(rb"\1\2", created.content)


def _differ(path: str, name: str, answer: bytes, expected: bytes) -> None:
    pairs = enumerate(zip(answer, expected, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(answer), len(expected)))
    shown = slice(max(0, same - 40), same + 80)
    sys.exit(
        f"{path}: answers differ from byte {same} on, so nothing was measured.\n"
        f"{name}: …{answer[shown].decode(errors='replace')}…\n"
        f"{SERVICE}: …{expected[shown].decode(errors='replace')}…"
    )
