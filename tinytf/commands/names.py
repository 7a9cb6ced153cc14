"""The commands: their names, the module of each, and what each does in a line. Nothing is imported for it."""

from __future__ import annotations

COMMANDS = {
    "fit": ("tinytf.commands.trainer", "train, or resume with --ckpt_path last"),
    "validate": ("tinytf.commands.trainer", "evaluate a checkpoint on the validation split"),
    "test": ("tinytf.commands.trainer", "evaluate a checkpoint on the test split"),
    "predict": ("tinytf.commands.trainer", "the loss of each window of the validation split, as JSON lines"),
    "prepare": ("tinytf.commands.prepare", "tokenise a corpus ahead of fit"),
    "generate": ("tinytf.commands.generate", "write text with a checkpoint"),
    "inspect": ("tinytf.commands.inspect", "what a checkpoint is, or how two differ"),
    "export": ("tinytf.commands.export", "export a checkpoint and measure each file against it"),
    "verify": ("tinytf.commands.verify", "measure an export again"),
    "plan": ("tinytf.commands.plan", "what a config needs of memory and time, before anything is trained"),
    "runs": ("tinytf.commands.runs", "list the runs"),
    "config-schema": ("tinytf.commands.schema", "print a JSON Schema of the YAML files, for editors"),
    "completion": ("tinytf.commands.completion", "print the completions of bash or zsh"),
}
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
