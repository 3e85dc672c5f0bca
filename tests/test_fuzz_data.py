"""Mutated texts and question files: a right result, or one line that names the file.

``EWQ_FUZZ_EXAMPLES`` says how many of each are tried.
"""

import codecs
import os
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ewq.data.mmlu import load_mmlu
from ewq.data.texts import load_texts
from ewq.data.windows import DEFINITIONS, make_windows
from ewq.errors import EwqError
from ewq.tasks.mmlu import question_text
from tests.harness.fakes import ByteTokenizer

FUZZED = settings(
    max_examples=int(os.environ.get("EWQ_FUZZ_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LONGEST_LINE = 500
SNIPPETS = (
    codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF32_BE, b"\0", b"\xff", b"\xe2\x80",
    "\u2028".encode(), "\u200b".encode(), "\x85".encode(), b"\x1c", b"\r", b"\r\n", b"\n", b'"',
    b'""', b",", b",,,", b"\xed\xa0\x80", "\U0001f600".encode(), b" " * 50, b"a" * 3000, b"<s>",
)  # fmt: skip
TEXT = "Ein Satz.\nThe quick brown fox — đường phố — jumps.\n\n= Title =\n".encode() * 3
QUESTIONS = b'"What, exactly, is 1+1?",1,2,3,"a ""4""",B\nbare?,one,two,three,four,A\n' * 3


@st.composite
def mutated(draw, original):
    """The original with up to six pieces cut, repeated, or replaced by something odd."""
    content = original
    for _ in range(draw(st.integers(0, 6))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.sampled_from([0, 1, 2, 7, 60, 10_000])))
        piece = draw(
            st.sampled_from([*SNIPPETS, content[begin:end] * 2, b""]) | st.binary(max_size=4)
        )
        content = content[:begin] + piece + content[end:]
    return content


def require_one_line(error: EwqError, file: Path, *, named: bool = True) -> None:
    event("refused")
    message = str(error)
    assert str(file) in message or not named
    assert "\n" not in message
    assert len(message) < LONGEST_LINE + 2 * len(str(file))


@FUZZED
@given(content=mutated(TEXT), name=st.sampled_from(["a.txt", "wiki.test.raw"]))
def test_mutated_texts(tmp_path, content, name):
    file = tmp_path / name
    file.write_bytes(content)
    try:
        texts = load_texts(file)
    except EwqError as error:
        require_one_line(error, file)
        return
    (document,) = texts.documents
    assert document.text.encode() == content.removeprefix(codecs.BOM_UTF8)
    lines = document.text.split("\n") if name == "wiki.test.raw" else [document.text]
    shown = [row.removesuffix("\n") for row in document.rows() if row]
    assert shown == [line.removesuffix("\n") for line in lines if line.strip()]
    for definition in DEFINITIONS.values():
        check_windows(texts, definition.with_window(16), file)


def check_windows(texts, definition, file):
    try:
        windows = make_windows(texts, ByteTokenizer(), definition)
    except EwqError as error:
        require_one_line(error, file, named=False)
        return
    size = len(texts.documents[0].text.encode())
    joined_with = 2 * len(texts.documents[0].rows())
    assert sum(window.scored for window in windows) >= 2
    assert 0 <= sum(window.scored_bytes for window in windows) <= size + joined_with
    assert all(1 <= window.start < len(window.ids) <= 16 for window in windows)


@FUZZED
@given(test=mutated(QUESTIONS), dev=mutated(QUESTIONS))
def test_mutated_questions(tmp_path, test, dev):
    for split, content in (("test", test), ("dev", dev)):
        folder = tmp_path / split
        folder.mkdir(exist_ok=True)
        (folder / f"law_{split}.csv").write_bytes(content)
    try:
        data = load_mmlu(tmp_path)
    except EwqError as error:
        require_one_line(error, tmp_path)
        return
    assert data.digest == load_mmlu(tmp_path).digest
    for question in (*data.test, *data.dev["law"]):
        assert len(question.choices) == 4
        assert 0 <= question.answer < 4
        assert question_text(question).endswith("\nAnswer:")
