"""What was most likely meant by a name that nobody knows: "did you mean ...?"; one spelling."""

import re
import unicodedata
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` was most likely meant to be, if any looks like it."""
    # Of names that differ only in their case the first: the project's own.
    by_lower = {str(candidate).lower(): candidate for candidate in reversed(list(names))}
    lower = str(name)[:100].lower()
    initials = ''.join(word[:1] for word in lower.split('_'))  # learning_rate: lr
    found = get_close_matches(lower, by_lower, n=1, cutoff=0.7) or [
        each for each in by_lower if each == initials or each.startswith(f'{lower}_')
    ]
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """' (did you mean 'lr'?)', or nothing."""
    near = nearest(name, names)
    return f' (did you mean {near!r}?)' if near is not None else ''


def is_slip(name: str, key: str) -> bool:
    """Whether `name` is `key` misspelt, and neither a word of its own nor another of its kind.

    arch2 and optimizer_d are of another kind, recall_10 and recall_20 both meant.
    """
    one, other = (re.findall(r'\d+', each) for each in (name, key))
    if one != other or re.match(rf'{re.escape(key)}(_|$)', name):
        return False
    return SequenceMatcher(None, name[:100].lower(), key.lower()).ratio() > 0.83


def composed(text: str) -> str:
    """As people type it: macOS takes Hangul apart, and letters from their accents."""
    return unicodedata.normalize('NFC', text)
