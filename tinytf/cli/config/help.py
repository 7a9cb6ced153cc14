"""What the help says of the keys that are Lightning's: unit and effect in one line, and only what is true here."""

from __future__ import annotations

from typing import Any

HELP = {
    "config": "YAML file with settings; may be given several times, later files and flags win.",
    "ckpt_path": "Checkpoint to start from: a file, or best or last, those of the newest run; null starts afresh.",
    "verbose": "Print the table of results.",
    "return_predictions": "Keep the predictions, to print them as JSON lines.",
    "trainer.accelerator": "Hardware to run on: auto takes what is there, else cpu, gpu, cuda, mps or tpu.",
    "trainer.strategy": "How several devices work together, such as ddp or fsdp; auto is ddp where there are several.",
    "trainer.devices": "Devices on each machine: their number, a list of their indices, -1 for all, or auto.",
    "trainer.num_nodes": "Machines that train together.",
    "trainer.logger": "Further loggers of Lightning, by class; true adds none, false takes those of tracking away too.",
    "trainer.callbacks": "Further callbacks, by class, such as EarlyStopping with monitor val/loss.",
    "trainer.min_steps": "Optimizer steps below which no callback stops the run; null sets none.",
    "trainer.limit_val_batches": "Validation batches to use: a whole number, or a fraction of all; null is all.",
    "trainer.limit_test_batches": "Test batches to use: a whole number, or a fraction of all; null is all.",
    "trainer.limit_predict_batches": "Batches to predict: a whole number, or a fraction of all; null is all.",
    "trainer.enable_progress_bar": "Show the progress on stderr, as a bar on a terminal and as lines elsewhere.",
    "trainer.gradient_clip_algorithm": "norm scales the whole gradient down, value cuts each entry; null is norm.",
    "trainer.deterministic": "Demand algorithms that give the same bits each time; warn only says where there is none.",
    "trainer.benchmark": "Let cuDNN time its algorithms and take the fastest; null leaves PyTorch's own setting.",
    "trainer.inference_mode": "Evaluate under torch.inference_mode, which is faster than torch.no_grad.",
    "trainer.profiler": "Lightning's profiler: simple, advanced, pytorch or a class; see tracking.profile too.",
    "trainer.detect_anomaly": "Find the operation whose gradient is NaN; slow, for debugging.",
    "trainer.plugins": "Plugins of Lightning, by class: precision, cluster environment, and the like.",
    "trainer.enable_autolog_hparams": "Give hyperparameters to the loggers at the start.",
}


def describe(actions: list[Any]) -> None:
    """Put these lines in place of Lightning's, which speak of epochs, of defaults that are not ours, in markup."""
    for action in actions:
        if action.dest in HELP:
            action.help = HELP[action.dest].replace("%", "%%")
