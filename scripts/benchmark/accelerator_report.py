"""The tables of accelerator.py, from the rows that are in its output folder."""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

# TFLOP/s of an H100 or H200 without sparsity, from the vendor's data sheet.
PEAKS = {"float32": 67.0, "tf32": 494.5, "bfloat16": 989.0}

# The billion-word benchmark's training text, with the marks around its sentences.
TOKENS_OF_AN_EPOCH = 829_250_940


def derived(step: str, rows: Dict[str, Any]) -> Dict[str, Any]:
    """Rows with what follows from others: shares of the peak, an epoch's time, ratios."""
    found = {}
    for name, row in rows.items():
        if not isinstance(row, dict):
            found[name] = row
            continue
        row = dict(row)
        others, _, side = name.rpartition(", ")
        peak = PEAKS.get(name.partition(", ")[0])
        if "TFLOP/s" in row and peak is not None:
            row["MFU"] = f"{row['TFLOP/s'] / peak:.1%}"
        if step == "training" and "tokens/s" in row:
            row["hours an epoch"] = TOKENS_OF_AN_EPOCH / row["tokens/s"] / 3600
        peer: Optional[Dict[str, Any]] = rows.get(f"{others}, peer")
        if side != "peer" and peer is not None and "tokens/s" in row and "tokens/s" in peer:
            row["times the peer"] = row["tokens/s"] / peer["tokens/s"]
        found[name] = row
    return found


def table(rows: Dict[str, Any]) -> List[str]:
    """Numbers as a list, rows as a table; what is longer stays in the JSON file."""
    of_columns = {key: value for key, value in rows.items() if isinstance(value, dict)}
    plain = {key: value for key, value in rows.items() if key not in of_columns}
    lines = [f"- {key}: {_shown(value)}" for key, value in plain.items()]
    columns = [
        column
        for column in dict.fromkeys(name for row in of_columns.values() for name in row)
        if not any(isinstance(row.get(column), (list, dict)) for row in of_columns.values())
    ]
    if of_columns:
        lines += ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
        lines += [
            f"| {key} | " + " | ".join(_shown(row.get(column, "")) for column in columns) + " |"
            for key, row in sorted(of_columns.items(), key=lambda item: _order(item[0]))
        ]
    return lines


def _order(name: str) -> List[Any]:
    """By precision, then by size: rows were measured in the order of their importance."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(", ")]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)


def write_report(out: Path, steps: Sequence[str]) -> str:
    """
    # Returns

    `str`
        What `report.md` in that folder says now.
    """
    lines: List[str] = []
    for name in steps:
        path = out / f"{name}.json"
        if path.exists():
            rows = derived(name, json.loads(path.read_text(encoding="utf-8")))
            lines += [f"## {name}", "", *table(rows), ""]
    if (out / "training.json").exists():
        peaks = ", ".join(f"{peak:g} in {precision}" for precision, peak in PEAKS.items())
        lines += [
            f"MFU is the share of an H100's TFLOP/s: {peaks}. An epoch has {TOKENS_OF_AN_EPOCH:,} "
            "tokens. Under autocast the peer runs in float16, as `use_amp` has it.",
            "",
        ]
    text = "\n".join(lines)
    (out / "report.md").write_text(text, encoding="utf-8")
    return text
