import pytest

from ewq.report.document import (
    markdown_block,
    markdown_text,
    plot_text,
    printable,
)


@pytest.mark.parametrize(
    ("function", "text", "expected"),
    [
        (plot_text, "a<br>&lt;", "a&lt;br&gt;&amp;lt;"),
        (plot_text, "a" * 60 + "-Q4_K_M.gguf", "a" * 27 + "…-Q4_K_M.gguf"),
        (printable, "a\u202eb\u2066c", "a�b�c"),
        (printable, "a\x00\x1b[31m\ud800\r\nb", "a��[31m�\nb"),
        (markdown_text, "a|b `c` *d* <h>", "a\\|b \\`c\\` \\*d\\* &lt;h&gt;"),
        (markdown_text, "[e](f) #g _i_", "\\[e\\](f) \\#g \\_i\\_"),
        (markdown_text, "two\nlines  of @somebody", "two lines of @\u200bsomebody"),
        (markdown_block, "a ```` b", "`````text\na ```` b\n`````"),
    ],
)  # fmt: skip
def test_text_is_harmless_where_it_is_written(function, text, expected):
    assert function(text) == expected
