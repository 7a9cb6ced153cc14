"""The commands: their names, the module of each, and what each does in a line. Nothing is imported for it."""

from __future__ import annotations

COMMANDS = {
    "fit": ("tinytf.cli.fit", "train, or resume with --ckpt_path last"),
    "validate": ("tinytf.cli.fit", "evaluate a checkpoint on the validation split"),
    "test": ("tinytf.cli.fit", "evaluate a checkpoint on the test split"),
    "predict": ("tinytf.cli.fit", "the loss of each window of the validation split, as JSON lines"),
    "prepare": ("tinytf.cli.prepare", "tokenise a corpus ahead of fit"),
    "generate": ("tinytf.cli.generate", "write text with a checkpoint"),
    "inspect": ("tinytf.cli.inspect", "what a checkpoint is, or how two differ"),
    "export": ("tinytf.cli.export", "export a checkpoint and measure each file against it"),
    "verify": ("tinytf.cli.verify", "measure an export again"),
    "plan": ("tinytf.cli.plan", "what a config needs of memory and time, before anything is trained"),
    "runs": ("tinytf.cli.runs", "list the runs"),
    "config-schema": ("tinytf.cli.schema", "print a JSON Schema of the YAML files, for editors"),
    "completion": ("tinytf.cli.completion", "print the completions of bash or zsh"),
}
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
