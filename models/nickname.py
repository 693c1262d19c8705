"""Nicknames: text to be seen, and the form in which two of them are compared."""

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from models.base import storable

# Letters and digits that look like others (Unicode's confusables.txt, UTS 39), by the small Latin
# letter that they are taken for, small themselves. Written out, so that a newer table does not
# change the keys that are stored; docs/api.md has the rule.
_TAKEN_FOR = {
    "a": "ɑαаᎪᗅꓮ",
    "b": "ƅβвьᏏᏴᑲᖯᗷꓐꞵ",
    "c": "сᏟᴄⲥꓚ",
    "d": "ԁᎠᏧᑯᗞᗪꓒꓓ",
    "e": "εеҽᎬⴹꓰꬲ",
    "f": "ϝքᖴẝꓝꞙꬵ",
    "g": "ƍɡԍցᏀᏳᶃꓖ",
    "h": "ηнһհᎻᏂᕼⲏꓧ",
    "j": "ʝϳјᎫᒍꓙ",
    "k": "κкᏦᛕⲕꓗ",
    "l": "1i|ıǀɩɪιіӏ۱ᎥᏞᒪᛁⲓⳑⵏꓡꓲꙇ",
    "m": "μϻмᎷᗰᛖⲙꓟ",
    "n": "νոռⲛꓠ",
    "o": "0οσоօ۵०০੦૦ଠ୦௦౦೦ഠ൦๐໐ဝ၀ჿዐᴏᴑⲟⵔ〇ꓳꬽ",
    "p": "ρрᏢᑭⲣꓑ",
    "q": "ԛգզⵕ",
    "r": "ʀгᎡᎱᏒᖇᴦⲅꓣꭇꭈ",
    "s": "ƽѕտᏕᏚꓢꜱ",
    "t": "τтᎢⲧꓔ",
    "u": "ʋսሀᑌᴜꓴꞟꭎꭒ",
    "v": "ѵ۷Ꮩᐯᴠⴸꓦꛟ",
    "w": "ɯѡԝաᎳᏔᴡꓪ",
    "x": "χхᕁᕽᚷⲭⵝꓫꭓ",
    "y": "ɣʏγυуүყᎩᎽᶌỿⲩꓬꭚ",
    "z": "ζᏃᴢꓜ",
}
_LOOKS = {ord(char): latin for latin, chars in _TAKEN_FOR.items() for char in chars}
# Three letters look like one Latin letter when small and like another one when capital.
_SMALL_GREEK = str.maketrans("νυη", "vun")
_LATIN = re.compile("[A-Za-z]")
# Letters and marks that nobody sees: fillers, joiners, variation selectors.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
# Between a key and the id of a user whose nickname was taken before keys were unique.
_APART = "\t"


def nickname_key(nickname: str) -> str:
    """The form in which nicknames are compared: one for all that are read alike.

    Without regard to case (Unicode's case folding), to how text is encoded (NFKC), to what is not
    seen, and to letters that look like Latin ones. Empty for what shows nothing.
    """
    text = unicodedata.normalize("NFKC", nickname)
    if _LATIN.search(text):
        text = text.translate(_SMALL_GREEK)
    text = unicodedata.normalize("NFKC", text.casefold()).replace("\u2800", " ")
    seen = (
        char
        for char in _UNSEEN.sub("", text)
        if char.isspace() or unicodedata.category(char) not in {"Cc", "Cf"}
    )
    text = " ".join("".join(seen).split()).translate(_LOOKS)
    return text.replace("rn", "m").replace("l\u0307", "l")


def taken_key(key: str, user_id: int) -> str:
    """The key of a user who had a nickname when another one had it already."""
    return f"{key}{_APART}{user_id}"


def _seen(nickname: str) -> str:
    if not nickname_key(nickname):
        raise ValueError("must have a character that can be seen")
    return nickname


Nickname = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=50),
    storable,
    AfterValidator(_seen),
]
