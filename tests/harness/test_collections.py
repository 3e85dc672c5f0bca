"""What the harness does to Python's garbage collector."""

import gc
import weakref

import pytest

from ewq.harness.handle import set_libraries_aside
from ewq.instruments.memory import collect_garbage


class Node:
    """Something that only a collection can free."""

    def __init__(self):
        self.me = self


@pytest.fixture(autouse=True)
def _as_before():
    yield
    gc.unfreeze()


def test_what_comes_after_the_libraries_stays_collectable():
    set_libraries_aside()
    assert gc.get_freeze_count()
    later = weakref.ref(Node())
    collect_garbage()
    assert later() is None


def test_a_second_call_sets_nothing_more_aside():
    set_libraries_aside()
    model = Node()
    set_libraries_aside()
    later = weakref.ref(model)
    del model
    collect_garbage()
    assert later() is None
