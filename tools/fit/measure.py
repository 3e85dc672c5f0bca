"""What plans of types are worth: KLD of fitted plans beside recipes, uniform types and draws.

    python tools/fit/measure.py MODEL [--sampled N] [--recipes Q3_K_M,Q4_K_M,Q5_K_M] [-o FILE.json]

Weights are rounded in memory by ggml's own quantizer and put into the transformers model, so that
one forward pass a plan is all it takes; ``--check`` compares one plan with its real file. Without
``--sampled`` the model is calibrated on the text that ewq carries and measured on ewq's other
texts; with it, on sequences that the model itself writes, by two seeds, for models of no text.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ewq.checkpoint.embedded import embedded_model, fixture_path
from ewq.checkpoint.gguf_header import read_header
from ewq.checkpoint.loading import load_tokenizer
from ewq.checkpoint.opening import open_checkpoint
from ewq.data.texts import load_texts
from ewq.errors import PlanError
from ewq.fit.prepare import calibrate, converted, importance_of, open_fitting
from ewq.fit.run import recipe_bytes
from ewq.gguf.quantize import recipe_types
from ewq.planning.analysis import analyze
from ewq.sensitivity.calibration import Calibrating, Calibration, make_calibration
from ewq.sensitivity.measure import load_model

RULE = {"kind": "measurement"}


def say(text):
    """A line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def sampled(model, count, length, seed):
    """Sequences that the model writes, from random first tokens of its vocabulary or BOS."""
    torch.manual_seed(seed)
    bos = model.config.bos_token_id
    ids = new = torch.full((count, 1), bos) if bos is not None else prompts(model, count)
    cache = None
    with torch.no_grad():
        while ids.shape[1] < length:
            out = model(input_ids=new, past_key_values=cache, use_cache=True)
            new, cache = torch.multinomial(out.logits[:, -1].softmax(-1), 1), out.past_key_values
            ids = torch.cat([ids, new], dim=1)
    return Calibration(tuple(tuple(map(int, row)) for row in ids))


def prompts(model, count):
    """The last tokens of the vocabulary in pairs: IgLM's chain and species."""
    size = model.config.vocab_size
    chains = torch.randint(size - 2, size, (count, 1))
    return torch.cat([chains, torch.randint(size - 8, size - 2, (count, 1))], dim=1)


class Bench:
    """A model whose matrices are replaced plan by plan."""

    def __init__(self, checkpoint, fitting, sequences):
        self.fitting, self.sequences = fitting, sequences
        self.model = load_model(checkpoint, "cpu", "float32")
        self.rounded = {}
        self.raw = {}
        with torch.no_grad():
            self.reference = [self.logprobs(ids) for ids in sequences]

    def logprobs(self, ids):
        logits = self.model(input_ids=torch.tensor([ids])).logits[0].float()
        return logits.log_softmax(-1)

    def values(self, tensor, type_name, with_imatrix):
        key = (tensor.name, type_name, with_imatrix)
        if key not in self.rounded:
            matrix = tensor.matrix
            sums = self.fitting.sensitivity.matrices[matrix.name]
            use = with_imatrix and not sums.is_lookup
            importance = as_llama_cpp_reads(sums) if use else None
            rows = matrix.read(0, np.arange(matrix.rows))
            found = self.fitting.target.rounded(rows, type_name, importance)
            self.rounded[key] = torch.from_numpy(found.T.copy() if matrix.transposed else found)
        return self.rounded[key]

    def measure(self, types, with_imatrix=True):
        """KLD in nats of every token by sequence, share of the same top token, NLL change."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for tensor in self.fitting.target.tensors:
                name = tensor.matrix.name
                self.raw.setdefault(name, parameters[name].clone())
                parameters[name].copy_(self.values(tensor, types[tensor.name], with_imatrix))
            klds, same, change = [], [], []
            for ids, base in zip(self.sequences, self.reference, strict=True):
                mine = self.logprobs(ids)
                klds.append(float((base.exp() * (base - mine)).sum(-1).mean()))
                same.append(float((base.argmax(-1) == mine.argmax(-1)).float().mean()))
                following = torch.tensor(ids[1:])[:, None]
                change.append(float((base[:-1] - mine[:-1]).gather(1, following).mean()))
            for name, values in self.raw.items():
                parameters[name].copy_(values)
        return {"kld": klds, "same_top": float(np.mean(same)), "ln_ppl": float(np.mean(change))}


def as_llama_cpp_reads(sums):
    """Mean squared inputs by way of the file's float32 sums and their count."""
    count = np.float32(sums.tokens[0])
    return (sums.importance()[0] * sums.tokens[0]).astype(np.float32) / count


def ratio(one, other):
    """Ratio of two mean KLDs on the same sequences, and its standard error."""
    a, b = np.array(one["kld"]), np.array(other["kld"])
    value = a.mean() / b.mean()
    return value, (a - value * b).std(ddof=1) / b.mean() / math.sqrt(len(a))


def drawn_types(fitting, budget, seed):
    """The best plan of a size were sensitivities drawn by lot instead of measured."""
    draw = np.random.default_rng(seed)
    costs = {}
    for tensor in fitting.target.tensors:
        factor = draw.lognormal(0, 1) * tensor.matrix.numel
        own = fitting.costs[tensor.name]
        top = max(own.values()) or 1
        costs[tensor.name] = {name: factor * cost / top for name, cost in own.items()}
    blind = type(fitting)(
        fitting.checkpoint, fitting.layout, fitting.target, fitting.sensitivity, costs
    )
    return blind.within(budget, RULE).types


def best_uniform(fitting, budget):
    """Of the types that all tensors can take (or a next larger one), the one expected best."""
    stored = fitting.target.fixed_stored_bytes
    found = []
    for option in fitting.options(fitting.target.tensors):
        if option.weight + stored <= budget:
            found.append((option.cost, option.types))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def spearman(bench, fitting, count, seed=0):
    """Expected against measured KLD of single tensors in single types."""
    from scipy.stats import spearmanr

    draw = np.random.default_rng(seed)
    pairs = [(t, name) for t in fitting.target.tensors for name in t.types[:-1]]
    chosen = [pairs[i] for i in draw.choice(len(pairs), min(count, len(pairs)), replace=False)]
    unrounded = {t.name: t.types[-1] for t in fitting.target.tensors}
    expected = [fitting.costs[t.name][name] for t, name in chosen]
    measured = [
        float(np.mean(bench.measure({**unrounded, t.name: name})["kld"])) for t, name in chosen
    ]
    return float(spearmanr(expected, measured).statistic), len(chosen)


def rows_of_size(bench, fitting, base, recipe, draws):
    """All rivals at the size of one recipe."""
    checkpoint = fitting.checkpoint
    budget = recipe_bytes(checkpoint, recipe)
    names = {tensor.name for tensor in fitting.target.tensors}
    raw = {tensor.name: tensor.dtype for tensor in read_header(base).tensors}
    chosen = {**raw, **recipe_types(base, recipe)}
    plan_of = {f"{recipe} plain": ({n: chosen[n] for n in names}, False)}
    plan_of[f"{recipe} imatrix"] = (plan_of[f"{recipe} plain"][0], True)
    uniform = best_uniform(fitting, budget)
    if uniform:
        plan_of["best uniform type"] = (uniform, True)
    for granularity in ("tensor", "kind", "block"):
        try:
            plan = fitting.within(budget, RULE, granularity)
        except PlanError:
            continue
        plan_of[f"fit by {granularity}"] = (plan.types, True)
    for seed in range(draws):
        plan_of[f"draw {seed}"] = (drawn_types(fitting, budget, seed), True)
    rows = {}
    for label, (types, with_imatrix) in plan_of.items():
        began = time.perf_counter()
        found = bench.measure(types, with_imatrix)
        known = {n: types[n] for n in names}
        found["expected"] = fitting.of_types(known, RULE).expected_kld.value
        found["bytes"] = fitting.of_types(known, RULE).size_bytes
        found["seconds"] = time.perf_counter() - began
        rows[label] = found
        say(
            f"  {label:<20} {found['bytes']:>12,} bytes  KLD {1e3 * np.mean(found['kld']):8.3f} "
            f"mnat (expected {1e3 * found['expected']:8.3f})  top {found['same_top']:.4f}  "
            f"ln ppl {found['ln_ppl']:+.4f}",
        )
    for label in list(rows):
        rows[label]["ratio"] = ratio(rows[label], rows[f"{recipe} imatrix"])
    value, error = rows["fit by tensor"]["ratio"]
    say(f"  fit / {recipe} with imatrix: {value:.3f} ± {error:.3f}")
    return rows


def rows_of_bitsandbytes(checkpoint, calibration, how, evaluation, draws):
    """At the bytes of ewq-0.65: its own plan, its reverse, draws, and the fitted ones."""
    fitting = open_fitting(checkpoint, "bitsandbytes", how, calibration=calibration)
    bench = Bench(checkpoint, fitting, evaluation)
    analysis = analyze(checkpoint)
    own = analysis.plan(0.65)
    size = own.size_bytes
    kind = {"raw": "raw", "8bit": "int8", "4bit": "nf4"}
    plans = {"ewq-0.65": own, "reverse": None} | {f"random {s}": s for s in range(draws)}
    rows = {}
    for label, plan in plans.items():
        if plan is None or isinstance(plan, int):
            scorer = "reverse" if plan is None else "random"
            plan = analysis.plan(target_size_bytes=size, scorer=scorer, seed=plan or 0)
        types = {t.name: kind[plan.weights[t.name]] for t in fitting.target.tensors}
        rows[label] = bench.measure(types) | {"bytes": plan.size_bytes}
    for granularity in ("tensor", "block"):
        plan = fitting.within(size, RULE, granularity)
        rows[f"fit by {granularity}"] = bench.measure(plan.types) | {"bytes": plan.size_bytes}
    for label, row in rows.items():
        mean = 1e3 * np.mean(row["kld"])
        say(f"  {label:<14} {row['bytes']:>12,} bytes  KLD {mean:8.3f} mnat")
    return rows


def check_file(bench, fitting, base, recipe):
    """A fitted plan's real file, dequantised by gguf-py, against the weights measured above."""
    from gguf import GGUFReader, dequantize

    from ewq.gguf.export import export_gguf
    from ewq.gguf.recipe import make_recipe

    plan = fitting.within(recipe_bytes(fitting.checkpoint, recipe), RULE)
    out = Path("fit-check.gguf")
    made = make_recipe(plan=plan, imatrix=importance_of(fitting.sensitivity, base))
    export_gguf(fitting.checkpoint.path, out, made, base=base)
    stored = {t.name: t for t in GGUFReader(out).tensors}
    same, of_types = 0, float(np.mean(bench.measure(plan.types)["kld"]))
    for tensor in fitting.target.tensors:
        values = dequantize(stored[tensor.name].data, stored[tensor.name].tensor_type)
        values = in_transformers_order(values, tensor.name, fitting.checkpoint.config)
        values = values.T.copy() if tensor.matrix.transposed else values
        key = (tensor.name, plan.types[tensor.name], True)
        same += bool(np.array_equal(values, bench.rounded[key].numpy()))
        bench.rounded[key] = torch.from_numpy(values)
    say(f"  {same} of {len(fitting.target.tensors)} tensors hold the same values in the file")
    klds = {
        "of its types": of_types,
        "of the file's values": float(np.mean(bench.measure(plan.types)["kld"])),
        "in llama.cpp": through_llama_cpp(bench, fitting, out),
        "of the unquantized file in llama.cpp": through_llama_cpp(bench, fitting, base),
    }
    out.unlink()
    say("  KLD, mnat: " + ", ".join(f"{name} {1e3 * kld:.4f}" for name, kld in klds.items()))
    return {"same": same, "of": len(fitting.target.tensors), "klds": klds}


def in_transformers_order(values, name, config):
    """llama.cpp keeps the rows of a Llama's queries and keys in another order."""
    part = next((part for part in ("attn_q.", "attn_k.") if part in name), None)
    if part is None or config["model_type"] != "llama":
        return values
    heads = config["num_attention_heads"]
    if part == "attn_k.":
        heads = config.get("num_key_value_heads") or heads
    halves = values.reshape(heads, -1, 2, values.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def through_llama_cpp(bench, fitting, path):
    """Mean KLD of a GGUF file in llama.cpp from the transformers model, in nats per token."""
    from ewq.backends.llama_cpp import load_llama_cpp

    checkpoint = fitting.checkpoint
    engine = load_llama_cpp(path, tokenizer=load_tokenizer(checkpoint.path, checkpoint.model))
    klds = []
    for ids, base in zip(bench.sequences, bench.reference, strict=True):
        theirs = torch.cat(list(engine.logprobs(ids, 1)))
        klds.append(float((base[:-1].exp() * (base[:-1] - theirs)).sum(-1).mean()))
    engine.close()
    return float(np.mean(klds))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="folder (default: the embedded model)")
    parser.add_argument("--sampled", type=int, help="sequences the model writes, of --length")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--recipes", default="Q3_K_M,Q4_K_M,Q5_K_M")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--singles", type=int, default=0, help="tensors measured one at a time")
    parser.add_argument("--windows", type=int, default=12, help="evaluation sequences of text")
    parser.add_argument("--bitsandbytes", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("-o", "--out", type=Path)
    asked = parser.parse_args()
    checkpoint = open_checkpoint(asked.model or embedded_model())
    how = Calibrating()
    if asked.sampled:
        model = load_model(checkpoint, "cpu", "float32")
        calibration = sampled(model, asked.sampled, asked.length, seed=1)
        evaluation = sampled(model, asked.sampled, asked.length, seed=2).sequences
    else:
        calibration = calibrate(checkpoint, how)
        tokenizer = load_tokenizer(checkpoint.path, checkpoint.model)
        texts = load_texts(fixture_path("texts"))
        evaluation = make_calibration(
            texts, tokenizer, Calibrating(sequences=asked.windows)
        ).sequences
    began = time.process_time()
    fitting = open_fitting(checkpoint, "gguf", how, calibration=calibration)
    say(f"{checkpoint.model}: prepared in {time.process_time() - began:.0f} s of this process")
    base = converted(checkpoint)
    bench = Bench(checkpoint, fitting, evaluation)
    results = {"model": checkpoint.model, "sequences": len(evaluation), "sizes": {}}

    def keep():
        """What was measured is on disk before anything else is tried."""
        if asked.out:
            asked.out.write_text(json.dumps(results, indent=1))

    for recipe in filter(None, asked.recipes.split(",")):
        say(recipe)
        results["sizes"][recipe] = rows_of_size(bench, fitting, base, recipe, asked.draws)
        keep()
    if asked.singles:
        results["spearman"] = spearman(bench, fitting, asked.singles)
        say(f"spearman of single tensors {results['spearman']}")
        keep()
    if asked.bitsandbytes:
        say("bitsandbytes")
        results["bitsandbytes"] = rows_of_bitsandbytes(
            checkpoint, calibration, how, evaluation, asked.draws
        )
        keep()
    if asked.check:
        results["file"] = check_file(bench, fitting, base, "Q4_K_M")
        keep()


if __name__ == "__main__":
    main()
