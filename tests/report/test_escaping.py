import json

import pytest

from ewq.report.escaping import (
    html_text,
    markdown_block,
    markdown_text,
    plot_text,
    printable,
    script_json,
)


@pytest.mark.parametrize(
    ("function", "text", "expected"),
    [
        (html_text, "<b a=\"1\" c='2'>&amp;", "&lt;b a=&quot;1&quot; c=&#x27;2&#x27;&gt;&amp;amp;"),
        (html_text, "tab\t and\nline", "tab\t and\nline"),
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


def test_script_json_cannot_end_its_element_and_reads_back():
    data = {"<!--": "</script><script>", "&": ["\u2028", 1.5, None]}
    text = script_json(data)
    assert not set("<>&") & set(text)
    assert json.loads(text) == data


def test_script_json_refuses_what_is_not_json():
    with pytest.raises(ValueError, match="JSON compliant"):
        script_json(float("nan"))
