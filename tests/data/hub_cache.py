"""A cache of ``datasets`` as a download leaves it, made without a network."""

import json
from pathlib import Path

from datasets.packaged_modules.json.json import Json

COMMIT = "0" * 40


def keep_as_downloaded(cache, folder, repository, config, splits):
    """Store the rows of each split as ``repository``'s configuration; ``folder`` is for scratch."""
    files = {}
    for split, rows in splits.items():
        lines = folder / f"{split}.jsonl"
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files[split] = str(lines)
    builder = Json(cache_dir=str(folder / "prepared"), data_files=files)
    builder.download_and_prepare()
    # A download's folders are named by repository, configuration, version and commit.
    place = cache / repository.replace("/", "___") / config / "0.0.0" / COMMIT
    place.parent.mkdir(parents=True)
    prepared = Path(builder.cache_dir).rename(place)
    name = repository.rpartition("/")[2]
    for table in prepared.glob("*.arrow"):
        table.rename(table.with_name(f"{name}-{table.stem.rpartition('-')[2]}.arrow"))
    info = prepared / "dataset_info.json"
    named = json.loads(info.read_text()) | {"config_name": config, "dataset_name": name}
    info.write_text(json.dumps(named))
