"""Which law a section is of: "of the Indian Penal Code", "IPC" and "Indian Penal Code, 1860" are one."""

from __future__ import annotations

import re

NOT_INITIALS = frozenset("of and the for to in on a an from against with by act".split())
ALIASES = {
    "crpc": "ccp",
    "cpc": "ccip",
    "rti": "ri",
    "poca": "pc",
    "pocso": "pcso",
}
"""Short forms whose letters are not the initials that `law_after` takes -> what the long form gives."""
LONG = {"code of civil procedure": "ccip", "civil procedure code": "ccip", "criminal procedure code": "ccp"}
"""Long forms whose initials are those of another law, or that are written in two orders."""
WORD = r"[A-Z][A-Za-z'-]*"
NAME = rf"{WORD}(?:\s+(?:(?:of|the|and|for|to|in|on|from|against|with|by)\s+)*{WORD}){{0,9}}"
KIND = "(?:Act|Code|Sanhita|Adhiniyam|Ordinance|Regulations?|Rules)"
SHORT = r"(?:(?:[A-Z][a-z]?\.){2,}(?:[A-Z]\.?)?|(?=[A-Za-z]{3})[A-Z][A-Za-z]?[A-Z][A-Za-z]{0,4})(?:\s+Act)?"
AFTER = re.compile(
    rf"\s*,?\s*(?:(?:of|in|under)\s+(?:the\s+)?)?(?P<name>{NAME}\s+{KIND}|Code\s+of\s+{NAME}|{SHORT})(?!\w)"
)


def law_after(text: str, end: int) -> str:
    """A short key of the law that is named right after position `end`; empty if none is.

    A name becomes the initials of its words without the small ones and "Act"; the year is not part of it.
    """
    found = AFTER.match(text, end)
    if not found:
        return ""
    name = " ".join(found["name"].split())
    short = re.sub(r"\s+act$", "", name.lower()).strip(".")
    if short in NOT_INITIALS:
        return ""  # A text in capitals: "SECTION 302 AND SECTION 304".
    if short in LONG:
        return LONG[short]
    if " " not in short:
        return ALIASES.get(short, ALIASES.get(short.replace(".", ""), short.replace(".", "")))
    return "".join(word[0] for word in re.split(r"[\s-]+", short) if word not in NOT_INITIALS)
