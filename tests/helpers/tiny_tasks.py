"""Tiny tasks of lm-evaluation-harness, made in code: data and task files in one folder, no network."""

from __future__ import annotations

import json
from pathlib import Path

from maskpro_deploy.data import HELD_OUT, load_text

_COMMON = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
"""
_TASKS = {
    "tiny_choice": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 3
""",
    "tiny_text": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
    "tiny_answer": """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs:
  until: ["e"]
  max_gen_toks: 6
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
}


def write_tasks(folder: Path, documents: int = 6) -> Path:
    """The tasks `tiny_choice`, `tiny_text` and `tiny_answer`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "question": text[:60],
            "choices": [text[60:75], text[80:101], text[200:208]],
            "gold": i % 3,
            "text": text[: 300 + 200 * i],
        }
        for i, text in enumerate(load_text(HELD_OUT).documents[:documents])
    ]
    data = folder / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    for name, task in _TASKS.items():
        (folder / f"{name}.yaml").write_text(_COMMON.format(name=name, rows=data) + task)
    return folder
