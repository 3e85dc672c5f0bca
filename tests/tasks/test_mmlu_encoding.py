import pytest
from tokenizers import processors

from ewq.errors import InputError
from ewq.tasks.mmlu_scores import common_prefix, encode, encode_pairs
from tests.tasks.mmlu_fakes import BOS, byte_tokenizer


@pytest.mark.parametrize("bos", [True, False])
def test_pairs_join_to_the_encoding_of_the_whole(bos):
    tokenizer = byte_tokenizer(bos=bos)
    contexts, continuations = ["Answer:", "The following"], [" A", " question"]
    heads, tails = encode_pairs(tokenizer, contexts, continuations)
    for head, tail, context, continuation in zip(
        heads, tails, contexts, continuations, strict=True
    ):
        assert head + tail == tokenizer.encode(context + continuation)


def test_trailing_spaces_belong_to_the_continuation():
    tokenizer = byte_tokenizer(bos=False)
    assert encode_pairs(tokenizer, ["Answer: "], ["A"]) == encode_pairs(
        tokenizer, ["Answer:"], [" A"]
    )


def test_a_written_bos_is_not_doubled():
    tokenizer = byte_tokenizer(bos=True)
    assert encode(tokenizer, [f"{BOS}Answer"]) == encode(tokenizer, ["Answer"])


def test_a_tokenizer_that_ends_every_text_is_an_error():
    """Its end-of-text token would be scored as the continuation, the same one for every answer."""
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.eos_token = BOS
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {BOS}", special_tokens=[(BOS, 0)]
    )
    with pytest.raises(InputError, match="ends every text"):
        encode_pairs(tokenizer, ["Answer:"], [" A"])


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([[1, 2, 3]], [1, 2, 3]),
        ([[1, 2, 3], [1, 2, 4], [1, 2]], [1, 2]),
        ([[1], [2]], []),
        ([[5, 1], [5, 9], [5, 3]], [5]),
        ([[1, 2], [1, 2]], [1, 2]),
    ],
)
def test_common_prefix(rows, shared):
    assert common_prefix(rows) == shared
