"""The LightningModule, its optimizers and schedules, and the Trainer."""

from tinytf.training.optim.muon import MuonAdamW
from tinytf.training.optim.schedules import Constant, Cosine, Linear, Schedule

__all__ = ["Constant", "Cosine", "Linear", "MuonAdamW", "Schedule"]
