"""Importance matrices as ``llama-imatrix`` writes them."""

import numpy as np
import pytest

from ewq.errors import CheckpointError, InputError
from ewq.gguf.imatrix import read_imatrix
from tests.gguf.models import require_gguf

COLUMNS = 4


def save_gguf(path, sums, counts):
    """One tensor ``w``: sums ``[experts, columns]`` and counts ``[experts, 1]``."""
    require_gguf()
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_tensor("w.in_sum2", np.asarray(sums, np.float32))
    writer.add_tensor("w.counts", np.asarray(counts, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_means_of_experts_are_each_over_its_own_count(tmp_path):
    path = save_gguf(tmp_path / "m.gguf", [[2, 4, 6, 8], [3, 3, 3, 9]], [[2], [3]])
    assert read_imatrix(path)["w"].tolist() == [1, 2, 3, 4, 1, 1, 1, 3]


def test_an_expert_that_was_never_chosen_is_equally_important_in_all_columns(tmp_path):
    path = save_gguf(tmp_path / "m.gguf", [[2, 4, 6, 8], [0, 0, 0, 0]], [[2], [0]])
    assert read_imatrix(path)["w"].tolist() == [1, 2, 3, 4, 1, 1, 1, 1]


DAMAGED = {
    "empty": b"",
    "GGUF of nothing": b"GGUF" + bytes(3),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_one_line(tmp_path, data):
    require_gguf()
    path = tmp_path / "m.dat"
    path.write_bytes(data)
    with pytest.raises((InputError, CheckpointError)) as caught:
        read_imatrix(path)
    assert "\n" not in str(caught.value)
