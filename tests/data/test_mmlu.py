import codecs
from collections import Counter

import pytest

from ewq.checkpoint.embedded import fixture_path
from ewq.data import mmlu as module
from ewq.data.mmlu import GROUP_OF, GROUPS, MmluData, Question, from_rows, load_mmlu
from ewq.errors import InputError

ROW = '"What, exactly, is 1+1?",1,2,3,"a ""4""",B\n'


def write(folder, subject="anatomy", test=ROW, dev=ROW):
    for split, text in (("test", test), ("dev", dev)):
        (folder / split).mkdir(exist_ok=True)
        if text is not None:
            (folder / split / f"{subject}_{split}.csv").write_text(text, encoding="utf-8")
    return folder


def make(sizes):
    questions = [
        Question(subject, f"{subject} {i}?", ("a", "b", "c", "d"), i % 4)
        for subject, size in sizes.items()
        for i in range(size)
    ]
    return MmluData(tuple(questions), {}, "made up")


def test_a_row_is_read_with_its_quotes_and_commas(tmp_path):
    data = load_mmlu(write(tmp_path))
    expected = Question("anatomy", "What, exactly, is 1+1?", ("1", "2", "3", 'a "4"'), 1)
    assert data.test == (expected,)
    assert data.dev == {"anatomy": (expected,)}


def test_subjects_are_in_order_whatever_their_files_sort_like(tmp_path):
    for subject in ("b", "a_b", "a"):
        write(tmp_path, subject)
    assert list(load_mmlu(tmp_path).subjects) == ["a", "a_b", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROW + "too,few,columns,A\n", "anatomy_test.csv: row 2: 4 columns"),
        (ROW + ROW + "q,1,2,3,4,E\n", "anatomy_test.csv: row 3: answer 'E'"),
        (ROW + "q,1,2,3,4,\n", "row 2: answer ''"),
        (ROW + "q,1,2,3,4,AB\n", "row 2: answer 'AB'"),
        (ROW + "\n", "row 2: 0 columns"),
        (ROW + '"never closed,1,2,3,4,A\n', "anatomy_test.csv: line"),
        ("", "anatomy_test.csv: no questions"),
    ],
    ids=["short", "letter E", "no letter", "two letters", "blank", "open quote", "empty file"],
)
def test_a_broken_row_is_one_line_with_file_and_row(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load_mmlu(write(tmp_path, test=text))
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "test" / "anatomy_test.csv").write_bytes(b"caf\xe9,1,2,3,4,A\n")
    with pytest.raises(InputError, match=r"anatomy_test\.csv"):
        load_mmlu(tmp_path)


def test_an_empty_folder_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"no test/SUBJECT_test\.csv") as caught:
        load_mmlu(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_dev_rows_leave_no_examples(tmp_path):
    assert load_mmlu(write(tmp_path, dev=None)).dev == {"anatomy": ()}


def test_the_fixture_questions_load_with_five_examples_each():
    data = load_mmlu(fixture_path("mmlu"))
    assert all(len(data.dev[subject]) >= 5 for subject in data.subjects)
    assert set(data.subjects) <= set(GROUP_OF)


def test_the_digest_sees_every_part(tmp_path):
    base = load_mmlu(write(tmp_path))
    other_answer = load_mmlu(write(tmp_path, test=ROW.replace(",B\n", ",C\n")))
    other_example = load_mmlu(write(tmp_path, dev=ROW.replace("1+1", "2+2")))
    assert len({base.digest, other_answer.digest, other_example.digest}) == 3
    assert load_mmlu(write(tmp_path)).digest == base.digest


def test_a_subset_is_proportional_and_keeps_the_order():
    data = make({"a": 100, "b": 50, "c": 10, "d": 3})
    subset = data.subset(82, seed=1)
    assert subset.subjects == {"a": 50, "b": 25, "c": 5, "d": 2}
    positions = [data.test.index(question) for question in subset.test]
    assert positions == sorted(set(positions))


def test_a_subset_depends_on_its_seed_only():
    data = make({"a": 40, "b": 40})
    assert data.subset(20, 1).digest == data.subset(20, 1).digest
    assert data.subset(20, 1).digest != data.subset(20, 2).digest


def test_a_subset_is_pinned_across_versions():
    """Membership is part of stored history: this list must never change."""
    chosen = [q.text for q in make({"a": 6, "b": 4}).subset(5, seed=0).test]
    assert chosen == ["a 1?", "a 2?", "a 5?", "b 0?", "b 1?"]


def test_a_subset_of_everything_is_everything():
    data = make({"a": 3, "b": 2})
    assert data.subset(5).test == data.test


@pytest.mark.parametrize("n", [0, -1, 6])
def test_an_impossible_subset_is_refused(n):
    with pytest.raises(InputError, match=str(n)):
        make({"a": 3, "b": 2}).subset(n)


def test_rows_of_the_hub_become_the_same_data(tmp_path):
    row = {
        "subject": "anatomy",
        "question": "What, exactly, is 1+1?",
        "choices": ["1", "2", "3", 'a "4"'],
        "answer": 1,
    }
    assert from_rows([row], [row], "hub").digest == load_mmlu(write(tmp_path)).digest


@pytest.mark.parametrize(
    "change", [{"choices": ["1", "2", "3"]}, {"answer": 4}, {"question": "\u200b"}]
)
def test_a_broken_row_of_the_hub_is_numbered(change):
    row = {"subject": "anatomy", "question": "?", "choices": list("1234"), "answer": 1}
    with pytest.raises(InputError, match="test: row 2"):
        from_rows([row], [row, row | change], "hub")


def test_an_unreachable_hub_is_one_line(monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match="cais/mmlu from the hub: no route") as caught:
        load_mmlu(module.HUB)
    assert "\n" not in str(caught.value)


def test_the_groups_divide_the_57_subjects():
    assert Counter(GROUP_OF.values()) == {
        "stem": 19,
        "humanities": 13,
        "social_sciences": 12,
        "other": 13,
    }
    assert sum(len(names) for names in GROUPS.values()) == len(GROUP_OF) == 57


@pytest.mark.parametrize("row", [ROW, "bare question,1,2,3,4,A\n"], ids=["quoted", "bare"])
def test_a_byte_order_mark_is_no_part_of_a_question(tmp_path, row):
    write(tmp_path, test=row, dev=row)
    plain = load_mmlu(tmp_path)
    for file in tmp_path.glob("*/*.csv"):
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert load_mmlu(tmp_path).test == plain.test
    assert load_mmlu(tmp_path).digest == plain.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"caf\xe9,1,2,3,4,A\n", r"not UTF-8 text \(byte 3\)", id="Latin-1"),
        pytest.param("a,1,2,3,4,A\n".encode("utf-16-le"), "byte 1 is NUL", id="UTF-16"),
        pytest.param("\u200b ,1,2,3,4,A\n".encode(), "row 1: .*empty", id="invisible"),
    ],
)
def test_questions_that_cannot_be_read_are_errors(tmp_path, content, message):
    write(tmp_path)
    (tmp_path / "test" / "anatomy_test.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_mmlu(tmp_path)


def test_rows_end_at_line_ends_of_the_file_only(tmp_path):
    write(tmp_path, test="one\u2028two\x85three,1,2,3,4,A\r\n")
    (question,) = load_mmlu(tmp_path).test
    assert question.text == "one\u2028two\x85three"


def test_an_endless_answer_is_not_repeated_in_full(tmp_path):
    write(tmp_path, test=f"a,1,2,3,4,{'A' * 9000}\n")
    with pytest.raises(InputError, match="expected one of A") as caught:
        load_mmlu(tmp_path)
    assert len(str(caught.value)) < 500
