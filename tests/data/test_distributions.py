import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import closing

import pytest
import torch

from ewq.data.distributions import PART_BYTES, Head, Rows, open_reference, require_disk_space
from ewq.data.windows import Window
from ewq.errors import InputError, MeasurementError
from ewq.model import ModelInfo

DiskUsage = namedtuple("DiskUsage", "total used free")
CPU = torch.device("cpu")


def rows(count, width=11):
    return torch.randn((count, width), generator=torch.Generator().manual_seed(count))


def info(vocab_size):
    return ModelInfo("some", "cpu", "float32", 64, vocab_size, 1000, 16.0)


def windows(tokens):
    return [Window("d", 0, tuple(range(tokens + 1)), 1, 0)]


def put_together(reference, begin, count):
    whole = torch.full((count, reference.source.vocab_size), torch.nan)
    for some, columns, part in reference.parts(begin, count, CPU):
        assert part.nbytes <= PART_BYTES
        whole[some, columns] = part
    return whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_come_back_bit_for_bit(tmp_path, dtype):
    first, second = rows(5).to(dtype), rows(3).to(dtype)
    with closing(Rows(tmp_path, 11, dtype)) as stored:
        stored.append(first)
        stored.append(second)
        assert stored.count == 8
        assert torch.equal(stored[4:7], torch.cat([first[4:], second[:2]]))
        assert torch.equal(stored[0:5], first)


def test_distributions_come_back_bit_for_bit_in_parts(tmp_path):
    table = rows(40, 150_000)  # 24 MB
    with closing(open_reference(tmp_path, windows(40), info(150_000), {}, None)) as reference:
        reference.append(table, None)
        assert torch.equal(put_together(reference, 0, 40), table)
        assert torch.equal(put_together(reference, 13, 9), table[13:22])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 3.0)])
def test_hidden_states_become_distributions(tmp_path, dtype, scale, cap):
    """Of 30,000 tokens: more than one part of float32."""
    weight, bias = rows(30_000, 8).bfloat16().to(dtype), rows(30_000, 1)[:, 0].to(dtype)
    hidden = rows(200, 8).to(dtype)
    logits = scale * torch.nn.functional.linear(hidden, weight, bias)
    logits = (cap * torch.tanh(logits / cap) if cap else logits).float()
    norms = logits.logsumexp(-1)
    head = Head(weight, bias, scale, cap)
    with closing(open_reference(tmp_path, windows(200), info(30_000), {}, head)) as reference:
        reference.append(hidden[:150], norms[:150])
        reference.append(hidden[150:], norms[150:])
        tolerance = 1e-5 if dtype == torch.float32 else 0.1
        expected = logits - norms[:, None]
        found = put_together(reference, 140, 60)
    assert torch.allclose(found, expected[140:], atol=tolerance)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32])
def test_a_head_takes_the_fewest_bits_that_hold_it(tmp_path, kept):
    weight = rows(500, 8).to(kept).float()
    with closing(open_reference(tmp_path, windows(1), info(500), {}, Head(weight))) as reference:
        assert reference.head.weight.dtype == kept
        assert torch.equal(reference.head.weight[:].float(), weight)
        assert reference.rows.dtype == torch.float32


def test_closing_may_be_repeated(tmp_path):
    reference = open_reference(tmp_path, windows(2), info(11), {}, Head(rows(11, 4)))
    for _ in range(2):
        reference.close()
    assert reference.rows.file.closed
    assert reference.head.weight.file.closed


def test_a_killed_recording_leaves_nothing(tmp_path):
    script = (
        "import os, sys, torch, pathlib\n"
        "from ewq.data.distributions import Rows\n"
        "Rows(pathlib.Path(sys.argv[1]), 11, torch.float32).append(torch.zeros(5, 11))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert died.returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_another_width_is_an_error(tmp_path):
    with closing(Rows(tmp_path, 11, torch.float32)) as stored:
        with pytest.raises(MeasurementError, match="12 wide instead of 11"):
            stored.append(rows(1, 12))


def test_a_full_disk_is_said_beforehand_with_what_would_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(0, 0, 10 * 1000**3))
    require_disk_space(tmp_path, 10_000, 4 * 152_064)  # 6.1 GB
    with pytest.raises(InputError, match=r"100000 tokens need 60.8 GB.*at most 15999 tokens"):
        open_reference(tmp_path, windows(100_000), info(152_064), {}, None)
    with pytest.raises(InputError, match=r"need 10.1 GB.*at most 95942 tokens"):
        require_disk_space(tmp_path, 100_000, 98_304, 300_000_000)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_one_line(tmp_path):
    """What another program takes after the check; the limit stands in for the disk."""
    stored = Rows(tmp_path, 1000, torch.float32)
    stored.append(rows(200, 1000))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, unlimited[1]))
    try:
        with pytest.raises(MeasurementError, match=r"stop at 200 rows.*EWQ_CACHE"):
            stored.append(rows(100, 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        stored.close()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the reference's.*Not a directory"):
        Rows(tmp_path / "file" / "folder", 11, torch.float32)
