"""Files that hold weights: ours, and those of pretrained models."""
