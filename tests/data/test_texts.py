import codecs
import os
from pathlib import Path

import datasets
import pytest

from ewq.checkpoint.embedded import fixture_path
from ewq.data.texts import Document, load_texts, text_set
from ewq.errors import InputError

SHARED = Path(os.environ.get("EWQ_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
WIKITEXT = SHARED / "wikitext2" / "wiki.test.raw"


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def test_a_folder_holds_domains_as_folders_and_as_files(tmp_path):
    folder = write(
        tmp_path,
        {
            "news/02.txt": "two",
            "news/01.txt": "one",
            "code.txt": "def f(): ...",
            "news/notes.md": "no text",
            ".hidden/01.txt": "hidden",
            "LICENSE": "free",
        },
    )
    texts = load_texts(folder)
    assert [(d.domain, d.name, d.text) for d in texts.documents] == [
        ("code", "code.txt", "def f(): ..."),
        ("news", "01.txt", "one"),
        ("news", "02.txt", "two"),
    ]
    assert texts.domains == ("code", "news")
    assert [d.text for d in texts.of("news")] == ["one", "two"]


def test_the_digest_follows_texts_and_domains_but_not_file_names(tmp_path):
    first = load_texts(write(tmp_path / "a", {"news/01.txt": "one", "news/02.txt": "two"}))
    renamed = load_texts(write(tmp_path / "b", {"news/x.txt": "one", "news/y.txt": "two"}))
    shifted = load_texts(write(tmp_path / "c", {"news/01.txt": "onetwo"}))
    moved = load_texts(write(tmp_path / "d", {"code/01.txt": "one", "code/02.txt": "two"}))
    assert first.digest == renamed.digest
    assert len({first.digest, shifted.digest, moved.digest}) == 3
    assert first.digest.startswith("sha256:")


def test_line_ends_are_kept(tmp_path):
    write(tmp_path, {"a.txt": b"one\r\ntwo\n"})
    assert load_texts(tmp_path).documents[0].text == "one\r\ntwo\n"


def test_a_single_file_is_a_domain(tmp_path):
    write(tmp_path, {"novel.txt": "It was a dark night."})
    texts = load_texts(str(tmp_path / "novel.txt"))
    assert texts.domains == ("novel",)


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        pytest.param({}, "missing", "no texts at .*missing", id="nothing there"),
        pytest.param({"README.md": "hi"}, ".", "holds no texts", id="no texts"),
        pytest.param({"news/a.md": "hi"}, ".", "news holds no .txt", id="empty domain"),
        pytest.param({"news/a.txt": " \n"}, ".", "a.txt is empty", id="empty file"),
        pytest.param({"a.txt": "\u200b\u2060\ufeff\u00ad"}, ".", "no visible", id="zero width"),
        pytest.param({"a.txt": codecs.BOM_UTF8}, ".", "no visible", id="only a mark"),
        pytest.param({"a.txt": b"caf\xe9"}, ".", r"not UTF-8 text \(byte 3\)", id="encoding"),
        pytest.param(
            {"a.txt": codecs.BOM_UTF8 + b"caf\xe9"}, ".", r"\(byte 6\)", id="encoding after a mark"
        ),
        pytest.param({"a.txt": "hi".encode("utf-16")}, ".", r"\(byte 0\)", id="UTF-16"),
        pytest.param({"a.txt": "hi".encode("utf-16-le")}, ".", "byte 1 is NUL", id="bare UTF-16"),
        pytest.param({"a.txt/b.md": "hi"}, ".", "holds no .txt", id="folder called .txt"),
        pytest.param({"news/a.txt/b": "hi"}, ".", "cannot read .*a.txt", id="folder in a domain"),
    ],
)
def test_texts_that_cannot_be_read_are_errors(tmp_path, files, source, message):
    write(tmp_path, files)
    with pytest.raises(InputError, match=message):
        load_texts(tmp_path / source)


def test_wikitext_rows_are_lines_with_blank_ones_empty():
    document = Document("wikitext2", "wiki.test.raw", " \n = A = \n \n Text . \n", True)
    assert document.rows() == ["", " = A = \n", "", " Text . \n"]
    assert Document("news", "a.txt", "one\ntwo").rows() == ["one\ntwo"]


def test_the_hub_gives_the_same_texts_as_the_local_file(tmp_path, monkeypatch):
    raw = " \n = A = \n \n Text of A . \n"
    rows = {"text": ["", " = A = \n", "", " Text of A . \n"]}
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, split: asked.append((*names, split)) or rows
    )
    write(tmp_path, {"wiki.test.raw": raw})
    hub, local = load_texts("hub"), load_texts(tmp_path / "wiki.test.raw")
    assert hub == local
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match="give a folder"):
        load_texts("hub")


def test_embedded_texts_have_several_documents_per_domain():
    texts = load_texts(fixture_path("texts"))
    assert {"code", "literature", "vietnamese"} <= set(texts.domains)
    assert all(len(texts.of(domain)) >= 2 for domain in texts.domains)


@pytest.mark.skipif(not WIKITEXT.is_file(), reason="WikiText-2 is not here")
def test_wikitext_2_has_the_published_rows():
    (document,) = load_texts(WIKITEXT).documents
    assert len(document.rows()) == 4358
    assert document.domain == "wikitext2"


def test_text_set_keeps_the_order_given():
    documents = [Document("b", "1", "x"), Document("a", "1", "y")]
    assert text_set(documents).domains == ("b", "a")
    assert text_set(documents).digest != text_set(documents[::-1]).digest


def test_a_byte_order_mark_is_no_text(tmp_path):
    plain = load_texts(write(tmp_path / "a", {"news.txt": "café\r\n"}))
    marked = load_texts(write(tmp_path / "b", {"news.txt": codecs.BOM_UTF8 + "café\r\n".encode()}))
    assert marked.documents[0].text == "café\r\n"
    assert marked.digest == plain.digest


def test_rows_end_at_line_feeds_only(tmp_path):
    odd = "one\u2028still one\x85and\x0bone\x1c\r one"
    write(tmp_path, {"wiki.test.raw": f"{odd}\n \ntwo"})
    (document,) = load_texts(tmp_path / "wiki.test.raw").documents
    assert document.rows() == [f"{odd}\n", "", "two"]
