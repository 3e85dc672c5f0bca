"""Which families that ewq plans can be exported: a tiny model of each, through the whole export.

Usage: python tools/gguf/families.py [NAME...]      writes docs/families.md (all names only)

Every architecture of ``tests/architectures.py`` is built with random weights and a tokenizer of
bytes, converted by llama.cpp's pinned converter, planned at 8 bits, matched tensor by tensor with
the converted file, and opened by llama.cpp. One child converts them all: importing transformers
takes longer than converting.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ewq.checkpoint.gguf_header import read_header
from ewq.errors import EwqError
from ewq.gguf import convert_child
from ewq.gguf.convert import PACKAGE, VERSION, find_converter
from ewq.gguf.probe import probe_file
from ewq.gguf.recipe import PlanRecipe, exact_types
from ewq.planning.analysis import analyze
from ewq.variants import Precision
from tests.architectures import ARCHITECTURES, build

PAGE = Path(__file__).parent.parent.parent / "docs" / "families.md"
CONVERT_ALL = """
import importlib.util, logging, sys
from pathlib import Path
_, child_path, script, *folders = sys.argv
spec = importlib.util.spec_from_file_location("child", child_path)
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
for folder in folders:
    try:
        child.main(Path(script), [folder, "--outtype", "f32", "--outfile", folder + ".gguf"])
        result = "yes"
    except SystemExit:
        result = "llama.cpp does not know it"
    except Exception as error:
        result = f"{type(error).__name__}: {error}".splitlines()[0]
    print("RESULT", Path(folder).name, result, sep="\\t", flush=True)
"""
YES = "yes"
SPECIAL = (
    "<pad>",
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<|user|>",
    "<|observation|>",
    "[gMASK]",
    "<sop>",
)
EQUAL_HEADS = {"num_key_value_heads": 4}
AS_PUBLISHED: dict[str, dict[str, object]] = {
    **dict.fromkeys(("olmoe", "dots1"), EQUAL_HEADS),
    "phi": {**EQUAL_HEADS, "intermediate_size": 128},
}
"""Arguments without which no published model of the family is."""


@dataclass
class Outcome:
    """What became of one architecture: ``yes``, or why not."""

    name: str
    class_name: str
    converted: str = "-"
    planned: str = "-"
    opened: str = "-"


def main(names: list[str]) -> None:
    """Try the architectures named, or all of them and write the page."""
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = [_saved(name, Path(scratch)) for name in names or ARCHITECTURES]
        _convert_all(outcomes, Path(scratch))
        for outcome in outcomes:
            if outcome.converted == YES:
                _use(outcome, Path(scratch))
            row = (outcome.name, outcome.converted, outcome.planned, outcome.opened)
            sys.stdout.write(" | ".join(row) + "\n")
    if not names:
        PAGE.write_text(_page(outcomes), encoding="utf-8")


def _saved(name: str, scratch: Path) -> Outcome:
    config_class, arguments = ARCHITECTURES[name]
    ARCHITECTURES[name] = config_class, {**arguments, **AS_PUBLISHED.get(name, {})}
    model = build(name)
    model.save_pretrained(_folder(scratch, name))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: 63 - len(SPECIAL)]
    pair = alphabet[0] + alphabet[1]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet, pair])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(alphabet[0], alphabet[1])]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(SPECIAL),
    )
    fast.save_pretrained(_folder(scratch, name))
    return Outcome(name, type(model).__name__)


def _folder(scratch: Path, name: str) -> Path:
    """Not called after the family: llama.cpp reads meaning into some names of models."""
    return scratch / f"model{list(ARCHITECTURES).index(name)}"


def _convert_all(outcomes: list[Outcome], scratch: Path) -> None:
    command = [sys.executable, "-P", "-c", CONVERT_ALL, convert_child.__file__]
    command += [str(find_converter()), *(str(_folder(scratch, of.name)) for of in outcomes)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("RESULT\t")]
    results = {name: result for _, name, result in lines}
    for outcome in outcomes:
        outcome.converted = results.get(_folder(scratch, outcome.name).name, "the converter ended")


def _use(outcome: Outcome, scratch: Path) -> None:
    folder = _folder(scratch, outcome.name)
    file = folder.with_suffix(".gguf")
    try:
        plan = analyze(folder, cache=False).uniform_plan(Precision.EIGHT_BIT)
        exact_types(read_header(file), PlanRecipe(plan))
        outcome.planned = YES
    except EwqError as error:
        outcome.planned = str(error)
    try:
        probe_file(file)
        outcome.opened = YES
    except EwqError as error:
        outcome.opened = str(error).removeprefix(f"{file}: ")


def _page(outcomes: list[Outcome]) -> str:
    whole = [of for of in outcomes if {of.converted, of.planned, of.opened} == {YES}]
    rows = [
        f"| {of.name} | `{of.class_name}` | "
        + " | ".join(_cell(step) for step in (of.converted, of.planned, of.opened))
        + " |"
        for of in outcomes
    ]
    return "\n".join(
        [
            "# Families: what can be planned, and what can be exported to GGUF",
            "",
            "Made by `tools/gguf/families.py`; every row is a tiny random model that went through",
            "planning, the converter and llama.cpp. All of them can be planned and quantized with",
            f"bitsandbytes; {len(whole)} of {len(outcomes)} can be exported by plan to a file that "
            "llama.cpp opens.",
            f"The converter is llama.cpp's own, from the sources of {PACKAGE} {VERSION}.",
            "",
            "A tiny model is no published one: some reasons below are those of its odd shape.",
            "",
            "| family | class | converts | plan fits the file | llama.cpp opens it |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:160]


if __name__ == "__main__":
    main(sys.argv[1:])
