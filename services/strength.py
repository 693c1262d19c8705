"""How easily a password is guessed: zxcvbn (Wheeler, USENIX Security 2016), and its advice."""

import re
from collections.abc import Sequence

from zxcvbn_rs_py import zxcvbn

# Of 0 to 4; below, it falls to under a million guesses.
LEAST = 2
# Characters that are looked at: the time grows with them, and fast where many stand for letters
# ("4@8(…"). Of 32 it is a tenth of a second at worst, and a fifth of a millisecond as a rule.
LOOKED_AT = 32


def advice(password: str, known: Sequence[str]) -> str | None:
    """What is wrong with a password that is easily guessed, in sentences; None for a good one.

    `known` is what a guesser knows of its owner: the address, the nickname, and
    with them all their parts.
    """
    words = [re.findall(r"[^\W_]+", text) for text in known]
    parts = [*known, *("".join(each) for each in words), *(word for each in words for word in each)]
    found = zxcvbn(password[:LOOKED_AT], parts)
    if int(found.score) >= LEAST:
        return None
    feedback = found.feedback
    said = [feedback.warning, *feedback.suggestions] if feedback else []
    sentences = [str(each) for each in said if each is not None]
    return " ".join(["This password is easily guessed.", *sentences])
