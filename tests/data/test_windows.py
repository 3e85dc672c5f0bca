import pytest

from ewq.data.texts import Document, text_set
from ewq.data.windows import DEFINITIONS, bos_token, make_windows, require_tokens, window_notes
from ewq.errors import InputError
from tests.tasks.numpy_model import ALPHABET, BOS, CharTokenizer

BOTH = pytest.mark.parametrize("adds_bos", [True, False], ids=["bos", "no bos"])
SIZES = [("a", 20), ("b", 3), ("c", 16)]
"""Three windows of eight scored tokens, one, and two."""
NAMED = pytest.mark.parametrize("name", DEFINITIONS)


def ids_of(text):
    return tuple(ALPHABET.index(character) for character in text)


def windows_of(text, name, window, adds_bos, **limits):
    texts = text_set([Document("d", "1", text)])
    return make_windows(
        texts, CharTokenizer(adds_bos), DEFINITIONS[name].with_window(window), **limits
    )


def test_only_a_tokenizer_that_adds_bos_has_one():
    assert bos_token(CharTokenizer(True)) == BOS
    assert bos_token(CharTokenizer(False)) is None
    silent = CharTokenizer(False)
    silent.bos_token_id = BOS  # knows a BOS, but does not put it before texts (Qwen)
    assert bos_token(silent) is None


@NAMED
@BOTH
def test_no_token_is_scored_without_one_before_it(name, adds_bos):
    windows = windows_of("the quick brown fox jumps over it", name, 8, adds_bos)
    assert windows
    assert all(window.start >= 1 and window.scored >= 1 for window in windows)


@NAMED
@BOTH
def test_no_window_is_longer_than_asked(name, adds_bos):
    windows = windows_of("the quick brown fox jumps over it", name, 8, adds_bos)
    assert max(len(window.ids) for window in windows) == 8


def test_with_bos_every_token_of_a_document_is_scored_once():
    text = "the quick brown fox jumps over it"
    windows = windows_of(text, "disjoint", 8, adds_bos=True)
    scored = sum((window.ids[window.start :] for window in windows), ())
    assert scored == ids_of(text)
    assert sum(window.scored_bytes for window in windows) == len(text.encode())


def test_disjoint_windows_without_bos_each_lose_their_first_token():
    windows = windows_of("abcdefghij", "disjoint", 4, adds_bos=False)
    scored = [window.ids[window.start :] for window in windows]
    assert scored == [ids_of("bcd"), ids_of("fgh"), ids_of("j")]


def test_papers_join_rows_and_drop_the_incomplete_window():
    texts = text_set([Document("d", "1", "abc"), Document("d", "2", "defgh")])
    windows = make_windows(texts, CharTokenizer(False), DEFINITIONS["papers"].with_window(4))
    joined = ids_of("abc\n\ndefgh")
    assert [window.ids for window in windows] == [joined[:4], joined[4:8]]


def test_papers_put_bos_before_the_text_only():
    windows = windows_of("abcdefgh", "papers", 4, adds_bos=True)
    assert [window.ids for window in windows] == [(BOS, 0, 1, 2), (3, 4, 5, 6)]


def test_bytes_are_those_of_the_scored_text():
    (window,) = windows_of("aơưb", "disjoint", 8, adds_bos=False)
    assert window.scored_bytes == len("ơưb".encode())


def test_a_tokenizer_without_positions_spreads_the_bytes():
    tokenizer = CharTokenizer(True)
    tokenizer.is_fast = False
    texts = text_set([Document("d", "1", "abơưab")])
    windows = make_windows(texts, tokenizer, DEFINITIONS["disjoint"].with_window(4))
    assert sum(window.scored_bytes for window in windows) == len("abơưab".encode())


def test_a_limit_ends_each_domain_after_the_window_that_reaches_it():
    texts = text_set([Document("a", "1", "a" * 40), Document("b", "1", "b" * 40)])
    windows = make_windows(
        texts, CharTokenizer(True), DEFINITIONS["disjoint"].with_window(9), max_tokens=10
    )
    assert [(window.domain, window.scored) for window in windows] == [
        ("a", 8),
        ("a", 8),
        ("b", 8),
        ("b", 8),
    ]


def test_documents_give_a_window_in_turn_up_to_the_limit():
    documents = [Document("d", str(i), letter * size) for i, (letter, size) in enumerate(SIZES)]
    limits = {None: [0, 0, 0, 1, 2, 2], 11: [0, 1], 12: [0, 1, 2], 20: [0, 0, 1, 2]}
    for limit, numbers in limits.items():
        definition = DEFINITIONS["disjoint"].with_window(9)
        windows = make_windows(text_set(documents), CharTokenizer(True), definition, limit)
        assert [window.document for window in windows] == numbers


def test_documents_beyond_the_limit_are_not_read():
    class Counting(CharTokenizer):
        calls = 0

        def __call__(self, *arguments, **options):
            self.calls += 1
            return super().__call__(*arguments, **options)

    tokenizer = Counting(True)
    texts = text_set([Document("d", str(i), "abcdefgh") for i in range(100)])
    assert len(make_windows(texts, tokenizer, DEFINITIONS["disjoint"], max_tokens=20)) == 3
    assert tokenizer.calls == 3


def test_a_short_context_shrinks_the_window():
    assert DEFINITIONS["papers"].fit(100).window == 100
    assert DEFINITIONS["disjoint"].fit(100_000) == DEFINITIONS["disjoint"]


def test_a_text_too_short_for_a_window_is_an_error():
    with pytest.raises(InputError, match="0 tokens to score are not enough for one papers window"):
        windows_of("abc", "papers", 16, adds_bos=True)


@BOTH
@pytest.mark.parametrize("text", ["a", "ab", "abc"])
def test_a_text_of_one_scored_token_has_no_error_and_is_refused(text, adds_bos):
    scored = len(text) - (not adds_bos)
    if scored >= 2:
        assert sum(w.scored for w in windows_of(text, "disjoint", 8, adds_bos)) == scored
    else:
        with pytest.raises(InputError, match=f"{scored} tokens to score .* an error: 2 are needed"):
            windows_of(text, "disjoint", 8, adds_bos)


def test_texts_too_short_are_told_from_the_tokenizer_alone():
    long, short = Document("long", "1", "a" * 2000), Document("short", "1", "a")
    require_tokens(text_set([long]), None, DEFINITIONS["disjoint"])
    with pytest.raises(InputError, match="'short' are too short"):
        require_tokens(text_set([long, short]), CharTokenizer(True), DEFINITIONS["disjoint"])
    with pytest.raises(InputError, match=r"'long' are too short: .* one papers window of 2048"):
        require_tokens(text_set([long]), CharTokenizer(True), DEFINITIONS["papers"])
    require_tokens(text_set([long]), CharTokenizer(True), DEFINITIONS["papers"].fit(1024))


class SpellingTokenizer(CharTokenizer):
    """Makes one token of the BOS where a text spells it out, as transformers' tokenizers do."""

    bos_token = "<s>"

    def __call__(self, text, **options):
        if not text.startswith(self.bos_token):
            return super().__call__(text, **options)
        rest = super().__call__(text.removeprefix(self.bos_token), **options)
        return {
            "input_ids": [BOS, *rest["input_ids"]],
            "offset_mapping": [(0, 3), *((a + 3, b + 3) for a, b in rest["offset_mapping"])],
        }


@NAMED
def test_a_bos_spelt_out_is_counted_once(name):
    definition = DEFINITIONS[name].with_window(8)
    plain, spelt = (
        text_set([Document("d", str(n), f"{bos}the quick brown fox {n}") for n in range(2)])
        for bos in ("", "<s>")
    )
    tokenizer = SpellingTokenizer(True)
    assert make_windows(spelt, tokenizer, definition) == make_windows(plain, tokenizer, definition)
    assert window_notes(plain, tokenizer, definition, 8) == ()
    (note,) = window_notes(spelt, tokenizer, definition, 8)
    assert "2 of 2 texts spell out '<s>'" in note


def test_a_bos_that_the_tokenizer_does_not_add_is_text():
    texts = text_set([Document("d", "1", "<s>abc")])
    tokenizer = SpellingTokenizer(False)
    (window,) = make_windows(texts, tokenizer, DEFINITIONS["disjoint"])
    assert window.ids[0] == BOS
    assert window_notes(texts, tokenizer, DEFINITIONS["disjoint"], 4096) == ()
