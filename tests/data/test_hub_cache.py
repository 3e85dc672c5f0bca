"""What was downloaded once is found again without a network, by ``datasets`` itself."""

import json
import os
import subprocess
import sys

from tests.data.hub_cache import keep_as_downloaded

MMLU = """
from ewq.data.mmlu import load_mmlu
data = load_mmlu("hub")
found = [data.test[0].text, data.dev["anatomy"][0].text]
"""
WIKITEXT = """
from ewq.data.texts import load_texts
found = [document.text for document in load_texts("hub").documents]
"""
NOTHING = """
from ewq.data.mmlu import load_mmlu
from ewq.errors import InputError
try:
    load_mmlu("hub")
except InputError as error:
    found = [str(error)]
"""


def offline(cache, code):
    """``found`` of a process that has no hub."""
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    code += "\nimport json\nprint('found:' + json.dumps(found))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("found:")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("found:"))


def question(text):
    return {"question": text, "subject": "anatomy", "choices": list("wxyz"), "answer": 2}


def test_mmlu_comes_from_the_cache_of_an_earlier_download(tmp_path):
    splits = {"dev": [question("worked?")], "test": [question("asked?")]}
    keep_as_downloaded(tmp_path / "cache", tmp_path, "cais/mmlu", "all", splits)
    assert offline(tmp_path / "cache", MMLU) == ["asked?", "worked?"]


def test_wikitext_comes_from_the_cache_of_an_earlier_download(tmp_path):
    splits = {"test": [{"text": ""}, {"text": " = Title = \n"}]}
    repository, config = "Salesforce/wikitext", "wikitext-2-raw-v1"
    keep_as_downloaded(tmp_path / "cache", tmp_path, repository, config, splits)
    assert offline(tmp_path / "cache", WIKITEXT) == [" \n = Title = \n"]


def test_an_empty_cache_without_a_network_is_one_line(tmp_path):
    (said,) = offline(tmp_path / "cache", NOTHING)
    assert said.startswith("cannot load cais/mmlu from the hub: ")
    assert "\n" not in said
