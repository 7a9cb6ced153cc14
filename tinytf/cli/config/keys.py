"""Which keys there are: Lightning's, with help of ours; those of other programs, refused; the nearest to a typo."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tinytf.errors import UserError

HELP = {
    "config": "YAML file with settings; may be given several times, later files and flags win.",
    "ckpt_path": "Checkpoint to start from: a file, a run's folder, or best or last, those of the newest run. Of a "
    "folder fit takes the last one, as it resumes, and every other command the best one.",
    "verbose": "Print the table of results.",
    "return_predictions": "Keep the predictions, to print them as JSON lines.",
    "trainer.accelerator": "Hardware to run on: auto takes what is there, else cpu, gpu, cuda, mps or tpu.",
    "trainer.strategy": "How several devices work together, such as ddp or fsdp2; auto is ddp where there are several.",
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
"""In place of Lightning's help, which speaks of epochs, in markup, of defaults that are not ours."""

STEPS = "steps are the only unit: use trainer.max_steps and trainer.val_check_interval"
STREAM = "training data is one endless stream of windows"
REFUSED = {
    "trainer.max_epochs": STEPS,
    "trainer.min_epochs": STEPS,
    "trainer.check_val_every_n_epoch": STEPS,
    "trainer.limit_train_batches": f"{STREAM}; shorten the run with trainer.max_steps",
    "trainer.overfit_batches": f"{STREAM}; use --config debug/overfit, or a short file as data.corpus",
    "trainer.reload_dataloaders_every_n_epochs": STREAM,
    "trainer.use_distributed_sampler": f"{STREAM}, and each process reads its own part of it",
    "trainer.max_time": "use --trainer.callbacks Timer --trainer.callbacks.duration 00:02:00:00 (two hours), or send a "
    "signal, such as by timeout --signal=TERM 2h tinytf fit",
    "trainer.default_root_dir": "use checkpoint.dir",
    "trainer.enable_checkpointing": "use checkpoint.save_top_k and checkpoint.every_n_steps",
    "trainer.fast_dev_run": "use --config debug/step, or trainer.max_steps 2",
    "trainer.barebones": "turn off what you do not want by its own key",
    "trainer.sync_batchnorm": "the model has no batch norm",
    "trainer.model_registry": "use tracking.mlflow or tracking.wandb",
    "weights_only": "checkpoints are never unpickled",
    "model.vocab_size": "the tokenizer decides it; data.vocab_size is what a bpe tokenizer is trained to",
    "model.bytes_per_token": "the data decides it",
    "model.seed": "use seed_everything",
    "data.seed": "use seed_everything",
    "config": "a file does not include others; give each with --config",
}
"""Keys that other programs have, or that are decided elsewhere: what to use."""


OTHER_WORDS = {
    "seed_everything": "seed random_seed",
    "name": "run_name exp_name experiment_name",
    "ckpt_path": "resume resume_from resume_from_checkpoint init_from checkpoint ckpt load",
    "trainer.max_steps": "max_iters iters iterations num_iterations total_steps num_steps train_steps steps",
    "trainer.max_epochs": "epochs num_epochs n_epochs num_train_epochs",
    "trainer.val_check_interval": "eval_interval eval_steps eval_every",
    "trainer.limit_val_batches": "eval_iters max_eval_batches",
    "trainer.log_every_n_steps": "log_interval logging_steps log_every",
    "trainer.accumulate_grad_batches": "gradient_accumulation_steps grad_accum accumulate gradient_accumulation_iters",
    "trainer.gradient_clip_val": "grad_clip max_grad_norm max_norm clip",
    "trainer.precision": "dtype bf16 fp16 amp torch_dtype mixed_precision",
    "trainer.accelerator": "device backend gpu",
    "trainer.devices": "gpus n_gpu num_gpus num_devices nproc_per_node",
    "trainer.num_nodes": "nodes nnodes",
    "model.d_model": "n_embd n_embed hidden_size embed_dim dim",
    "model.n_layers": "n_layer num_layers num_hidden_layers depth",
    "model.n_heads": "n_head num_heads num_attention_heads",
    "model.n_kv_heads": "n_query_groups num_key_value_heads",
    "model.d_ff": "intermediate_size ffn_dim",
    "model.max_seq_len": "max_position_embeddings n_ctx n_positions context_length",
    "model.norm_eps": "rms_norm_eps layer_norm_eps",
    "model.compile": "torch_compile",
    "model.activation_checkpointing": "gradient_checkpointing",
    "model.optimizer": "optim",
    "model.optimizer.lr": "learning_rate max_lr peak_lr",
    "model.optimizer.betas": "beta1 beta2 adam_beta1 adam_beta2",
    "model.optimizer.eps": "adam_epsilon epsilon",
    "model.schedule": "scheduler lr_scheduler lr_scheduler_type lr_schedule",
    "model.schedule.warmup_steps": "warmup_iters lr_warmup_steps warmup warmup_ratio",
    "model.schedule.final_fraction": "min_lr",
    "model.schedule.end_step": "lr_decay_iters",
    "data.batch_size": "micro_batch_size per_device_train_batch_size train_batch_size",
    "data.seq_len": "block_size context_size max_length max_seq_length sequence_length",
    "data.num_workers": "dataloader_num_workers",
    "data.corpus": "dataset dataset_name train_file data_path data_dir input input_file text",
    "data.val_corpus": "validation_file val_file",
    "data.tokenizer": "tokenizer_name tokenizer_name_or_path tokenizer_path",
    "checkpoint.dir": "out_dir output_dir default_root_dir save_dir",
    "checkpoint.every_n_steps": "save_interval save_steps save_every",
    "checkpoint.keep_last": "save_total_limit",
    "tracking.wandb": "wandb_log report_to",
}
"""Words of nanoGPT, litgpt, Hugging Face's Trainer and torchrun for a key of ours, by the last part of theirs."""


class ConfigError(UserError):
    """One wrong key or value.

    Args:
        key: dotted; empty if the error concerns none.
        text: what is wrong, without the file and line.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


def unknown_key(key: str, known: Iterable[str], command: str = "tinytf fit") -> ConfigError:
    """The error for a key that does not exist, with the nearest ones that do.

    Args:
        key: as it was given, dotted.
        known: the keys of the command, with the arguments of its classes.
        command: whose --help lists them.
    """
    choices = list(known)
    near = nearest(key, choices)
    refused = next((name for name in (key, *near) if name in REFUSED), None)
    if refused:
        return ConfigError(key, f"{key} is not a setting of tinytf: {REFUSED[refused]}")
    if "model.optimizer.lr" in near and "model.optimizer.muon_lr" in choices:
        near.append("model.optimizer.muon_lr")  # The matrices' own, under MuonAdamW.
    if near:
        return ConfigError(key, f"unknown key {key}; did you mean {' or '.join(near)}?")
    section = key.rpartition(".")[0]
    around = [name for name in choices if section and name.rpartition(".")[0] == section]
    hint = f"there are {', '.join(around)}" if 0 < len(around) <= 10 else f"see {command} --help"
    return ConfigError(key, f"unknown key {key}; {hint}")


def nearest(key: str, choices: list[str]) -> list[str]:
    """The keys that a mistyped one may mean, three at most: by its end, by another program's word, by its letters."""
    words = key.lower().replace("-", "_")
    last = words.rpartition(".")[2]
    theirs = [name for name, other in OTHER_WORDS.items() if last in other.split()]
    found = [
        [name for name in choices if name.endswith(f".{words}") and "." in words],
        [name for name in theirs if name in choices or name in REFUSED],
        [name for name in choices if name.rpartition(".")[2] == last],
    ]
    if same := next(filter(None, found), None):
        return difflib.get_close_matches(words, same, n=3, cutoff=0)
    if same := [name for name in REFUSED if name.endswith(f".{last}")]:
        return same[:1]
    if near := difflib.get_close_matches(words, choices, n=1, cutoff=0.75):
        return near
    ends = {name.rpartition(".")[2]: name for name in reversed(choices)}
    return [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.8)]


def check_keys(content: Mapping[str, Any], keys: Keys, prefix: str = "") -> None:
    """Raise `ConfigError` at the first key of a config file that the parser does not have."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in REFUSED:
            raise unknown_key(key, ())
        if key in keys.sections:
            if isinstance(value, Mapping):
                check_keys(value, keys, f"{key}.")
            elif value is not None:
                raise ConfigError(key, f"{key}: expected keys and values, got {shown(value)}")
        elif key.removesuffix("+") not in keys.settings and not isinstance(name, str):
            raise ConfigError(str(key), f"{prefix}{name}: expected a text as key, got {shown(name)}")
        elif key.removesuffix("+") not in keys.settings:
            # The nearest key of a misspelled section is that of its first key.
            inner = f"{key}.{next(iter(value))}" if isinstance(value, Mapping) and value and not prefix else key
            raise unknown_key(inner, keys.all, keys.command)


def check_flags(flags: Iterable[str], keys: Keys) -> None:
    """Raise `ConfigError` at the first flag that the parser does not have."""
    for flag in flags:
        name = flag.partition("=")[0].removeprefix("--").removesuffix("+")
        if not flag.startswith("--") or name in ("help", "print_config") or name.endswith(".help"):
            continue
        if name in REFUSED and name != "config":
            raise unknown_key(name, ())
        inside_class = any(name.startswith(f"{key}.") for key in keys.settings)
        if name in keys.sections:
            # jsonargparse would read its value as a file, from any address that fsspec knows.
            raise ConfigError(name, f"--{name}: it is a section: give --{name}.KEY, or a file with --config")
        if name not in keys.settings and not inside_class:
            raise unknown_key(name, keys.all, keys.command)


class Keys:
    """The keys of a parser: ``settings`` take a value (which may be a class with arguments), ``sections`` hold keys.

    ``all`` are the settings and the arguments of the classes that are their defaults.
    """

    def __init__(self, dotted: Iterable[str], command: str = "tinytf fit") -> None:
        self.command = command
        dotted = list(dotted)
        classes = {key.removesuffix(".class_path") for key in dotted if key.endswith(".class_path")}
        inside = tuple(f"{key}." for key in classes)
        self.settings = [key for key in dotted if not key.startswith(inside)] + sorted(classes)
        self.all = [*self.settings, *(key.replace(".init_args.", ".") for key in dotted if ".init_args." in key)]
        parents = {key.rsplit(".", depth)[0] for key in self.settings for depth in range(1, key.count(".") + 1)}
        self.sections = parents - set(self.settings)

    def named_in(self, message: str) -> list[str]:
        """The settings that a message names; after the first, it leaves out the section if that is the same."""
        dotted = [word.rstrip(".") for word in re.findall(r"\b[a-z_]+(?:\.\w+)+", message)]
        section = dotted[0].rpartition(".")[0] if dotted else ""
        bare = [f"{section}.{word}" for word in re.findall(r"\w+", message)]
        return list(dict.fromkeys(key for key in [*dotted, *bare] if key in self.settings))


def set_help_texts(actions: list[Any]) -> None:
    """Put `HELP` in its place."""
    for action in actions:
        if action.dest in HELP:
            action.help = HELP[action.dest].replace("%", "%%")


def shown(value: Any) -> str:
    """A value as a config file writes it, short enough for a line."""
    text = " ".join(str(value).split())
    return {"None": "null", "True": "true", "False": "false"}.get(text, text[:80])
