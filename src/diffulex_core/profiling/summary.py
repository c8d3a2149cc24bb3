"""Summaries of a recording: its operations by the time spent in them, for people and for machines."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import torch

MOST_ROWS = 200
"""Operations in the summary for people."""


def write_summary(profiler: torch.profiler.profile, path_of: Callable[[str], Path]) -> list[Path]:
    """Write the operations of a recording as text, CSV and JSON.

    Args:
        profiler: one that has recorded.
        path_of: the path of the file with the given ending.
    """
    events = profiler.key_averages(group_by_input_shape=True)
    rows = [
        {
            "name": event.key,
            "count": event.count,
            "self_cpu_us": event.self_cpu_time_total,
            "total_cpu_us": event.cpu_time_total,
            "self_device_us": event.self_device_time_total,
            "total_device_us": event.device_time_total,
            "cpu_bytes": event.self_cpu_memory_usage,
            "device_bytes": event.self_device_memory_usage,
            "flops": event.flops,
            "shapes": event.input_shapes,
        }
        for event in events
    ]
    busy = "self_device_us" if any(row["self_device_us"] for row in rows) else "self_cpu_us"
    rows.sort(key=lambda row: -row[busy])
    order = "self_device_time_total" if busy == "self_device_us" else "self_cpu_time_total"
    text, sheet, data = path_of("summary.txt"), path_of("summary.csv"), path_of("summary.json")
    text.write_text(profiler.key_averages().table(sort_by=order, row_limit=MOST_ROWS), encoding="utf-8")
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["name"])
        writer.writeheader()
        writer.writerows(rows)
    data.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return [text, sheet, data]
