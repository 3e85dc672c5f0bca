import os

import pytest

from ewq.report.formats import FORMATS
from ewq.report.sections import make_page
from ewq.storage.runs import read_run
from tests.report.browser import CHROMIUM, open_page
from tests.report.cases import CASES

SIZE_LIMIT_BYTES = 6_000_000
"""What a page may weigh; plotly.js is most of it."""
REQUIRED = "EWQ_REQUIRE_BROWSER" in os.environ
"""Set in CI, where a missing browser must not go unseen."""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not REQUIRED, reason="no Chromium: pages cannot be opened"
)


@pytest.mark.parametrize("case", CASES)
def test_page_opens_from_a_file_without_errors_or_requests_and_draws_every_plot(case, tmp_path):
    runs = [read_run(path) for path in CASES[case](tmp_path)]
    page = tmp_path / "report.html"
    page.write_text(FORMATS["html"](make_page(runs)), encoding="utf-8")
    assert page.stat().st_size < SIZE_LIMIT_BYTES

    opened = open_page(page, tmp_path / "profile")

    assert opened.console == []
    assert opened.requests == []
    assert opened.plots
    assert [name for name, drawn in opened.plots.items() if not drawn] == []
    assert "javascript:" not in "".join(_links(opened.dom))


def test_the_check_itself_sees_a_refused_script_a_request_and_an_undrawn_plot(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'">'
        '<script>1</script><img src="http://127.0.0.1:9/x.png"><div class="plot" id="p"></div>'
    )
    opened = open_page(page, tmp_path / "profile")
    assert opened.console
    assert opened.requests == ["http://127.0.0.1:9/x.png"]
    assert opened.plots == {"p": False}


def _links(dom: str) -> list[str]:
    """Addresses of the links in the page, plots' included."""
    body = dom[dom.index("<body") :]
    return [part.split('"', 1)[0] for part in body.split('href="')[1:]]
