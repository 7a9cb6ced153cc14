"""A run's loss curve as a picture: `python -m tinytf.tracking.curve <run folder> <file>`; needs matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

from tinytf.tracking.jsonl import FILE_NAME, read

SERIES = (("train/loss", "#9aa5b1", 1.0), ("val/loss", "#c0392b", 2.0))


def draw(run: Path, picture: Path) -> None:
    """Draw training and validation loss over steps."""
    import matplotlib.pyplot as plt

    rows = [record for record in read(run / FILE_NAME) if record["event"] == "metrics"]
    figure, axes = plt.subplots(figsize=(7, 3.5))
    for name, colour, width in SERIES:
        points = [(row["step"], row[name]) for row in rows if name in row]
        steps, losses = zip(*points, strict=True)
        marker = "o" if len(points) < 30 else None
        axes.plot(steps, losses, color=colour, linewidth=width, marker=marker, label=f"{name}  {losses[-1]:.4f}")
    axes.set(xlabel="optimizer step", ylabel="nats a token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
