"""docs/families.md says what can be exported; the converter must be able to do it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.architectures import ARCHITECTURES
from tests.gguf.models import require_converter

PAGE = Path(__file__).parent.parent.parent / "docs" / "families.md"
IMPORT_ALL = """
import json, sys
sys.path.insert(0, sys.argv[1])
from conversion import get_model_class
failed = {}
for name in json.load(sys.stdin):
    try:
        get_model_class(name)
    except Exception as error:
        failed[name] = repr(error)
print("RESULT" + json.dumps(failed))
"""


def rows():
    """Family, class and the three answers of every row of the page."""
    found = re.findall(
        r"^\| (\S+) \| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    assert found
    return found


def test_the_page_has_every_family_that_is_planned():
    assert [row[0] for row in rows()] == list(ARCHITECTURES)


def test_the_converter_imports_every_family_that_the_page_claims():
    script = require_converter()
    claimed = sorted({class_name for _, class_name, converts, *_ in rows() if converts == "yes"})
    assert "Glm4ForCausalLM" in claimed
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT_ALL, str(script.parent)],
        input=json.dumps(claimed),
        capture_output=True,
        text=True,
    )
    [answer] = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert json.loads(answer.removeprefix("RESULT")) == {}
