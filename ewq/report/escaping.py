"""Text from data, made harmless for each place it is written to.

Names of models, prompts and generated text come from strangers: every format passes all of them
through the function of its kind.
"""

from __future__ import annotations

import re
from html import escape

# C0 and C1 controls but tab and newline, and halves of surrogate pairs, are not valid in HTML or
# UTF-8; explicit changes of direction would turn round the words that follow the text.
_INVALID = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_NAME = 40
"""Characters of a name inside a plot; longer ones keep their beginning and end."""
_MARKDOWN = re.compile(r"([\\`*_\[\]|#~$!])")


def printable(text: str) -> str:
    """Text that UTF-8 and HTML can hold: what they cannot becomes U+FFFD."""
    return _INVALID.sub("�", text.replace("\r\n", "\n"))


def terminal_line(text: str) -> str:
    """One line for a terminal, without escape sequences of its own."""
    return printable(text).replace("\n", " ")


def plot_text(text: str) -> str:
    """For names in plotly.js, which reads a few HTML tags and entities in them."""
    if len(text) > _LONGEST_NAME:
        text = f"{text[: _LONGEST_NAME - 13]}…{text[-12:]}"
    return escape(printable(text), quote=False)


def markdown_text(text: str) -> str:
    """One line of Markdown without markup, HTML or mention of anybody of its own."""
    line = " ".join(printable(text).split())
    plain = escape(line, quote=False).replace("@", "@\u200b").replace("://", ":\u200b//")
    return _MARKDOWN.sub(r"\\\1", plain)


def markdown_block(text: str) -> str:
    """Any text as a Markdown code block, longer fences than any inside it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{printable(text)}\n{fence}"


def csv_text(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    line = printable(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@", "\t")) else line
