"""Text for people: candidates' words made harmless, and how numbers are written."""

from __future__ import annotations

import unicodedata


def one_line(text: str) -> str:
    """A candidate's words as one line.

    Without control characters, direction marks and halves of surrogate pairs.
    """
    visible = "".join(
        " " if unicodedata.category(character)[0] == "C" else character for character in text
    )
    return " ".join(visible.split())


def cut(text: str, longest: int) -> str:
    """The text, with "..." for its end if it has more than `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def score(bits_per_byte: float | None) -> str:
    """With all the digits that tell two scores apart; a dash for None."""
    return "-" if bits_per_byte is None else f"{bits_per_byte:.6f}"


def short(commit: str | None) -> str:
    """The first characters of a commit; a dash for None."""
    return (commit or "-")[:7]


def money(dollars: float | None) -> str:
    """Cents for a sum, parts of a cent where a model is cheap; "unknown" for None."""
    if dollars is None:
        return "unknown"
    if 0 < dollars < 0.1:
        return f"${dollars:.4f}" if dollars >= 0.0001 else "under $0.0001"
    return f"${dollars:,.2f}"
