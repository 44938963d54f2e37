"""What renderers make links, addresses and mentions of, where nothing marks them as such."""

from __future__ import annotations

import re

FINDERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:https?|ftp)://[^\s/$.?#].[^\s)\"(]*",  # Prefect's log rows
        r"(?:https?://|ftp://|www(?=\.))[-.\w]+",  # GitHub, and MLflow's and Prefect's Markdown
        r"[-.\w+]+@[-\w]+(?:\.[-\w]+)+",  # the same, of e-mail addresses
        r"\b(?:mailto|xmpp):\S+@\S+",
        r"\w://\S",  # chats, of schemes of applications
        r"(?<![\w:])//\w",  # markdown-it
        r"\b[\w-]+\.(?:com|net|org|io)\b",  # Slack and Discord
        r"(?<![\w/])@\w",  # GitHub's mentions, and MLflow's in notes
        r"(?<![\w&])(?:#|GH-)\d",  # GitHub's issues
        r"<!--",
    )
)
# Each tries at least one of them.
EVIL = (
    *("https://evil.example/x", "HTTP://localhost:80", "ftp://evil.org/a", "slack://evil"),
    *("www.evil.example", "//evil.com/x", "evil.org", "a@evil.example", "mailto:a@evil.example"),
    *("@octocat", "user@host", "#123", "GH-123", "owner/repo#12", "<https://evil.example>"),
    *("![x](http://evil.com/t.png)", "[x](//evil.com)", "<img src=http://evil.com>", "<!--", "-->"),
    *("&#104;ttps://evil.com", "https&colon;//evil.com", "a&#64;evil.example", "http\\://evil.com"),
    *("`https://evil.com`", "``", "<script>", "</td>", "|", "\\", "**x**", "[x][y]", "\u202e"),
)


def links(text: str) -> list[str]:
    """Every part of the text that some renderer would make a link of."""
    return [found[0] for finder in FINDERS for found in finder.finditer(text)]
