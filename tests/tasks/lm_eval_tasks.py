"""Tasks of lm-evaluation-harness on the spot: a YAML file and its documents as JSON lines."""

import json

import yaml

METRICS = {
    "multiple_choice": ("acc", "acc_norm", "brier_score"),
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("word_perplexity", "bits_per_byte"),
    "generate_until": ("exact_match",),
}
THINGS = ("grass", "the sky", "blood", "a tomato", "the sea", "a lemon", "snow", "coal")
COLOURS = ("red", "green", "blue", "yellow")


def choices(things=THINGS):
    """Documents with a question, four choices, and the number of the right one."""
    return [
        {
            "text": f"Question: what is the colour of {thing}?\nAnswer:",
            "choices": COLOURS,
            "answer": i % 4,
        }
        for i, thing in enumerate(things)
    ]


def write_task(folder, kind, documents, name="own", **config):
    """The task file, whose data lie beside it under their whole path."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in documents))
    made = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": kind,
        "doc_to_text": "" if kind == "loglikelihood_rolling" else "{{text}}",
        "doc_to_target": "{{answer}}" if kind != "loglikelihood_rolling" else "{{text}}",
        "metric_list": [{"metric": metric} for metric in METRICS[kind]],
        "metadata": {"version": 2.0},
        **config,
    }
    if kind == "multiple_choice":
        made["doc_to_choice"] = "{{choices}}"
    if kind == "generate_until":
        made.setdefault("generation_kwargs", {"until": ["\n"], "max_gen_toks": 12})
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(made))
    return file
