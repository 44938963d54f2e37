"""Text for people: untrusted words made harmless, long ones cut, and how numbers are written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# What makes a link, an address or a mention of the words around it: of any scheme and of none, of
# www, of an e-mail address, @name, #123 and GH-123, and of a bare domain, which chats link too. The
# last one begins a comment of HTML, which some renderers look for before anything is escaped.
LINKING = re.compile(
    r"(?<!\[)://(?=\S)|(?<!\w)(?<!\[:)//(?=\S)|(?<=www)\.|(?<=\bmailto):|(?<=\bxmpp):|@(?=\w)|#(?=\d)"
    r"|(?<=\bGH)-(?=\d)|(?<=\w)\.(?=(?:ai|app|com|dev|edu|gov|io|net|org)\b)|(?<=<)!(?=-)",
    re.IGNORECASE,
)
# The beginnings of Markdown's code, links, images, HTML, entities and table cells.
MARKUP = re.compile(r"[\\|\[*`]|<(?=[A-Za-z/!?])|&(?=#?\w+;)")


def one_line(text: str) -> str:
    """Untrusted text as one line: no control characters, direction marks or lone surrogates."""
    visible = "".join(
        " " if unicodedata.category(character)[0] == "C" else character for character in text
    )
    return " ".join(visible.split())


def unlinked(text: str) -> str:
    """Untrusted text as one line in which nothing is a link: "https[://]example[.]com".

    Renderers make links of bare addresses whatever the format, and no escape of Markdown's stops
    all of them: Prefect does it in logs, MLflow in values, chats in notices, GitHub after Markdown.
    """
    return LINKING.sub(lambda found: f"[{found[0]}]", one_line(text))


def in_markdown(text: str) -> str:
    """Untrusted text as one line that Markdown shows as it is, also in a table's cell.

    No link, image, mention, HTML or code.
    """
    return MARKUP.sub(r"\\\g<0>", unlinked(text))


def shortened(text: str, most: int) -> str:
    """The text; if it is longer than `most` characters, its beginning and "..."."""
    return text if len(text) <= most else f"{text[: most - 3].rstrip()}..."


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def numbered(trials: Sequence[int]) -> str:
    """Trials by their numbers: "trial 2", "trials 2, 5"."""
    return f"trial{'' if len(trials) == 1 else 's'} {', '.join(map(str, trials))}"


def score(bits_per_byte: float | None) -> str:
    """With all the digits that tell two scores apart; a dash for None."""
    return "-" if bits_per_byte is None else f"{bits_per_byte:.6f}"


def difference(bits_per_byte: float | None, other: float | None) -> str:
    """One score minus another, with its sign unless it rounds to 0; a dash for the unknown."""
    if bits_per_byte is None or other is None:
        return "-"
    shown = f"{bits_per_byte - other:+.6f}"
    return shown if float(shown) else shown[1:]


def short_commit(commit: str | None) -> str:
    """The first characters of a commit; a dash for None."""
    return (commit or "-")[:7]


def money(dollars: float | None) -> str:
    """Whole cents, or fractions of a cent for small sums; "unknown" for None."""
    if dollars is None:
        return "unknown"
    if 0 < dollars < 0.1:
        return f"${dollars:.4f}" if dollars >= 0.0001 else "under $0.0001"
    return f"${dollars:,.2f}"
