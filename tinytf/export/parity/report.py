"""The table that a person reads: one row per artifact, from the content of ``export.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinytf.utils.text import printable, table

COLUMNS = ("format", "file", "MB", "max abs", "/std", "top-1", "KL", "loss", "greedy", "prefill", "decode", "", "")
SPEEDS = ("prefill_tokens_per_sec", "decode_tokens_per_sec", "decode_times_eager")
NUMBERS = range(2, len(COLUMNS) - 1)


def report(content: dict[str, Any]) -> str:
    """Reference first, then every artifact, then in words what failed and what was not verified."""
    entries = [*content["artifacts"], *content["failed"]]
    skipped = content.get("skipped", [])
    rows = [COLUMNS, _reference_row(content, entries), *(_row(entry) for entry in entries)]
    rows += [(entry["name"], *[""] * (len(COLUMNS) - 2), "skipped") for entry in skipped]
    notes = [f"{entry['name']}: {note}" for entry in entries for note in _notes(entry)]
    notes += [f"{entry['name']}: skipped: {entry['reason']}" for entry in skipped]
    rows = [tuple(map(printable, row)) for row in rows]  # A name or a reason may be a stranger's.
    return "\n".join([printable(_heading(content)), table(rows, right=NUMBERS), *map(printable, notes)])


def _heading(content: dict[str, Any]) -> str:
    model, text, machine = content["model"], content["evaluation"], content["machine"]
    return (
        f"{content['name']}: {model['parameters']:,} parameters, step {content['checkpoint'].get('step')}; compared on "
        f"{text['tokens']:,} tokens ({text['source']}); tokens/s at batch 1, {machine['threads']} thread(s), "
        f"{machine['processor']}"
    )


def _reference_row(content: dict[str, Any], entries: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    losses = [entry["measured"]["reference_loss"] for entry in entries if "measured" in entry]
    speed = content["reference"]
    loss = f"{losses[0]:.4f}" if losses else ""
    size = f"{4 * content['model']['parameters'] / 1e6:.1f}"
    prefill, decode = (f"{speed[f'{kind}_tokens_per_sec']:.0f}" for kind in ("prefill", "decode"))
    return ("(checkpoint)", "eager fp32, cached", size, "", "", "", "", loss, "", prefill, decode, "1.0x", "")


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    size = f"{entry['bytes'] / 1e6:.1f}" if "bytes" in entry else ""
    measured = entry.get("measured")
    numbers: tuple[str, ...] = ("",) * 6
    if measured:
        numbers = (
            f"{measured['max_abs']:.1e}",
            f"{measured['relative']:.1e}",
            f"{measured['top1']:.4f}",
            f"{measured['kl']:.1e}",
            f"{measured['loss'] - measured['reference_loss']:+.5f}",
            f"{measured['greedy'] * measured['greedy_tokens']:.0f}/{measured['greedy_tokens']}",
        )
    speeds: tuple[str, ...] = ("",) * 3
    if all(name in entry for name in SPEEDS):
        prefill, decode, times = (entry[name] for name in SPEEDS)
        speeds = (f"{prefill:.0f}", f"{decode:.0f}", f"{times:.1f}x")
    return (entry["name"], entry["file"], size, *numbers, *speeds, entry["status"])


def _notes(entry: dict[str, Any]) -> list[str]:
    reasons = [] if entry["status"] == "passed" else entry["reasons"]
    return [*(f"{entry['status']}: {reason}" for reason in reasons), *([entry["label"]] if "label" in entry else [])]
