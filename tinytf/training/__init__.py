"""The LightningModule, its optimizers and schedules, and the Trainer."""

from tinytf.training.muon import MuonAdamW
from tinytf.training.schedules import Constant, Cosine, Linear, Schedule

__all__ = ["Constant", "Cosine", "Linear", "MuonAdamW", "Schedule"]
