"""Makes text safe to display: names in untrusted records could contain terminal control codes."""

import re
from typing import Final

# Control characters, marks that reorder or hide text, and code points that no encoding can write. The tab is
# included, the newline is not.
_CONTROL: Final = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters that make a spreadsheet evaluate a cell; the last four are full-width."""


def printable(text: str) -> str:
    r"""The text with every control character escaped (``\x1b``); newlines are kept.

    Characters that JSON does not escape get JSON's own form (``\u009b``), so that JSON text stays valid and
    keeps its meaning.
    """
    # This check is fast, and most text has no such characters.
    return text if text.isprintable() else _CONTROL.sub(_spelled, text)


def in_line(text: str) -> str:
    r"""The same as one line, for names: newlines are escaped too (``\n``)."""
    return printable(text).replace("\n", "\\n")


def in_cell(text: str) -> str:
    """A text for a CSV cell, on one line; text that a spreadsheet would evaluate gets a leading quote."""
    risky = text.lstrip().startswith(_FORMULA) or text.startswith(("\t", "\r"))
    return f"'{in_line(text)}" if risky else in_line(text)


def _spelled(found: re.Match[str]) -> str:
    letter = found[0]
    code = ord(letter)
    if code < 0x7F:
        return {"\t": "\\t", "\r": "\\r"}.get(letter, f"\\x{code:02x}")
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
