"""Finding tasks of lm-evaluation-harness: by file, and what cannot be asked."""

import sys

import pytest

from ewq.data.lm_eval import load_documents
from ewq.errors import BackendUnavailable, InputError
from tests.tasks.lm_eval_tasks import choices, write_task

needs_lm_eval = pytest.mark.skipif("not __import__('importlib').util.find_spec('lm_eval')")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def written(folder, **changes):
    return str(write_task(folder, "multiple_choice", choices(), **changes))


def one_line(spec):
    with pytest.raises(InputError) as caught:
        load_documents(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_lm_eval_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    load_documents.__globals__["_manager"].cache_clear()
    with pytest.raises(
        BackendUnavailable, match=r"--ewq-lm-eval needs lm_eval.*: pip install 'ewq\[lm-eval\]'"
    ):
        load_documents(written(tmp_path))


@needs_lm_eval
def test_the_digest_follows_documents_and_prompts_not_places(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    one, same = (load_documents(written(folder)).digest for folder in folders)
    assert one == same
    assert load_documents(written(folders[0], doc_to_text="Q: {{text}}")).digest != one
    fewer = str(write_task(folders[1], "multiple_choice", choices()[:3]))
    assert load_documents(fewer).digest != one


@needs_lm_eval
def test_a_task_without_documents_is_one_line(tmp_path):
    empty = str(write_task(tmp_path, "multiple_choice", []))
    assert one_line(empty) == f"lm-eval task {empty} has no documents"


@needs_lm_eval
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test_split": "exam"}, "its data have no 'exam'"),
        ({"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}, "Unable to find"),
        ({"output_type": "guesses"}, "invalid output_type 'guesses'"),
        ({"doc_to_text": "{{ text"}, "unexpected end"),
        ({"unsafe_code": True}, "runs code that models write"),
    ],
)
def test_what_cannot_be_asked_is_one_line(tmp_path, changes, said):
    assert said in one_line(written(tmp_path, **changes))


@needs_lm_eval
@pytest.mark.parametrize("text", ["task: [", "letters: 1", "- 1"])
def test_a_file_that_is_no_task_is_one_line(tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    assert one_line(str(file)).startswith(f"cannot load lm-eval task {file}: ")


@needs_lm_eval
def test_an_unknown_name_is_one_line_with_the_nearest(monkeypatch):
    class Manager:
        all_tasks = ("hellaswag", "arc_easy", "arc_challenge")

    monkeypatch.setitem(load_documents.__globals__, "_manager", lambda with_its_own: Manager)
    assert one_line("helaswag") == (
        "--ewq-lm-eval helaswag: lm-eval has no such task; did you mean hellaswag?"
    )
    assert one_line("xyz").endswith("name a task or a .yaml file")
