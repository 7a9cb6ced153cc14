"""Cases: command lines of the real parsers' flags with nasty values, and mutations of files that were right."""

from __future__ import annotations

import argparse
import io
import json
import math
import pickle
import re
import struct
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib import import_module
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.sandbox import CONFIG, Case, Sandbox
from tinytf.cli.config.parser import parser_of
from tinytf.cli.main import COMMANDS, TRAINER_COMMANDS

Draw = Callable[[st.SearchStrategy[Any]], Any]

# -- values --------------------------------------------------------------------------------------------------------

NUMBERS = [
    "-1", "0", "1", "2", "-0", "+1", "1.5", "1e3", "1e-320", "1e999", "nan", ".nan", "-inf", ".inf",
    "1_000", "\uff11\uff12", "\u0663", "0x10", "0o7", "99999999999", "100000", "1" * 23, "9" * 400,
    "9" * 5_000, "-2", "[0,0]", "1,2", "1e8",
]  # fmt: skip
WORDS = [
    "", " ", "\n", "\t", "true", "null", "None", "~", "auto", "cuda", "tpu", "gpu", "best", "last", "char", "bpe",
    "-", "--", "*", "?", "[a-z]", "**/*.txt", "%s", "%(default)s", "{x}", "$HOME", "é", "\udcff", "\u202egnp.exe",
    "\x1b[2J\x07", "x" * 5_000, "a\nb", "val/loss", "int8.kl=-1", "int8.kl=nan", "nope", "onnx", "a=b", "=", "#",
    "\ufeff", "\u2028",
]  # fmt: skip
YAMLS = [
    "[]", "{}", "[1", "{a: 1}", "[" * 3_000, "{" * 3_000, "a: b", "*a", "&a [*a]", "!!float abc", "!!binary x",
    "!!set {a}", "2020-13-45", "2020-01-01", "!!python/object/apply:os.system [touch ../canary/ran]", "!!str", "? a",
    "- a", "|", "'", '"', "{0..99999999}", "<<: *a", "&a [x,x,x,x,x,x,x,x,x]", "[[], {}, null]", "{1: 2}", "@x", "`x",
]  # fmt: skip
CLASSES = [
    "os.system", "builtins.exec", "builtins.eval", "subprocess.Popen", "torch.load", "torch.optim.SparseAdam",
    "torch.optim.Adam", "torch.optim.LBFGS", "tinytf.training.Constant", "lightning.pytorch.callbacks.EarlyStopping",
    "EarlyStopping", "Callback", "no.such.module", "tests.fuzz", "..", "LICENSE", "start.yaml",
    "lightning.pytorch.loggers.CSVLogger", '{class_path: os.system, init_args: {command: "touch ../canary/ran"}}',
    '[{class_path: subprocess.Popen, init_args: {args: [touch, ../canary/ran]}}]',
    '{"class_path": "builtins.exec", "init_args": {"source": "open(\'../canary/ran\', \'w\')"}}',
    '{class_path: torch.optim.Adam, init_args: {lr: -1}}', '{class_path: torch.optim.Adam, dict_kwargs: {x: 1}}',
]  # fmt: skip
PATHS = [
    "text.txt", "records.jsonl", "pairs.jsonl", "start.yaml", "pipe", "many", "loop", "gone", "gone/x", "text.txt/x",
    ".", "..", "/dev/zero", "/dev/full", "/dev/null", "/proc/self/mem", "/proc/x", "../canary/kept.txt",
    "../canary/folder", "~", "~nosuch/x", "http://[::1", "http://127.0.0.1:9/x",
    "http://u:p@127.0.0.1:9/x.txt#sha256=" + "0" * 64, "file:///dev/zero", "s3://a/b", "hf://a/b", "memory://x",
    "zip://a::text.txt", "stranger/model.ckpt", "bundle", "checkpoints", "tokenizer.json", "x/" * 3_000,
    "resolved.yaml", "bundle/model_kv.onnx", "bundle/model.f32.gguf", "bundle/huggingface",
    "checkpoints/mine/version_0/best.ckpt",
]  # fmt: skip
TEXTS = st.sampled_from([*NUMBERS, *WORDS, *YAMLS, *CLASSES, *PATHS])

nasty_text = (
    TEXTS
    | TEXTS
    | TEXTS
    | st.integers().map(str)
    | st.floats().map(repr)
    | st.text(max_size=20)
    | st.lists(TEXTS.filter(lambda text: len(text) < 50), max_size=3).map(json.dumps)
)
"""What follows a flag, or stands bare in a YAML file."""

nested = st.sampled_from([30, 900, 5_000]).map(lambda depth: f"nested-{depth}-deep")
nasty_value = (
    nasty_text
    | st.sampled_from(
        [None, True, False, 0, 1, -1, 2**31, 2**63, 2**70, 1e308, 1e-320, -0.0, math.nan, math.inf, [], {}, [[]]]
    )
    | st.integers()
    | st.floats()
    | st.sampled_from(CLASSES[:12]).map(
        lambda name: {"class_path": name, "init_args": {"command": "touch ../canary/ran"}}
    )
    | nested
)
"""What stands in a tree of JSON or YAML; ``nested-…-deep`` is a place holder for `deepen`."""


def deepen(text: str) -> str:
    """The text of a tree, its place holders replaced."""
    return re.sub(r'["\']?nested-(\d+)-deep["\']?', lambda match: "[" * int(match[1]) + "]" * int(match[1]), text)


# -- mutations -----------------------------------------------------------------------------------------------------


def mutate_bytes(draw: Draw, content: bytes, first: int | None = None) -> bytes:
    """A few flips, cuts, insertions; within the ``first`` bytes, if given."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, min(len(changed), first or len(changed)) - 1)))
        how = draw(st.sampled_from(["flip", "flip", "cut", "insert", "delete", "double", "fill"]))
        if how == "flip" and changed:
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del changed[place:]
        elif how == "insert":
            changed[place:place] = draw(
                st.binary(max_size=8) | nasty_text.map(lambda text: text.encode("utf-8", "replace"))
            )
        elif how == "delete":
            del changed[place : place + draw(st.integers(1, 64))]
        elif how == "double":
            changed[place:place] = changed[place : place + draw(st.integers(1, 2_000))]
        elif how == "fill":
            changed[place : place + 8] = draw(
                st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\0\n\r\x1b[2J\x85"])
            )
    return bytes(changed)


def mutate_tree(draw: Draw, tree: Any, within: str | None = None) -> Any:
    """A copy of nested dicts and lists with one to three places changed, deleted, swapped or added."""
    tree = copy(tree)
    for _ in range(draw(st.integers(1, 3))):
        parent = tree if within is None else tree[within]
        while True:
            if not isinstance(parent, (dict, list)) or not parent:
                break
            keys = list(parent) if isinstance(parent, dict) else range(len(parent))
            key = draw(st.sampled_from(list(keys)))
            inner = parent[key]
            if isinstance(inner, (dict, list)) and inner and draw(st.integers(0, 4)):
                parent = inner
                continue
            how = draw(st.sampled_from(["set", "set", "set", "set", "delete", "add", "swap", "type"]))
            if how == "set":
                parent[key] = draw(nasty_value)
            elif how == "delete":
                del parent[key]
            elif how == "add" and isinstance(parent, dict):
                parent[draw(st.text(max_size=8) | st.sampled_from([*WORDS[:4], "class_path", "../x", "/x"]))] = draw(
                    nasty_value
                )
            elif how == "add":
                parent.insert(0, draw(nasty_value))
            elif how == "swap":
                other = draw(st.sampled_from(list(keys)))
                parent[key], parent[other] = parent[other], parent[key]
            else:
                parent[key] = draw(st.sampled_from([str(inner)[:2_000], [inner], {"x": inner}, len(str(inner)[:99])]))
            break
    return tree


def copy(tree: Any) -> Any:
    """A copy of the containers alone."""
    if isinstance(tree, dict):
        return {key: copy(value) for key, value in tree.items()}
    return [copy(value) for value in tree] if isinstance(tree, list) else tree


def mutate_json(draw: Draw, content: bytes) -> bytes:
    """JSON, as a tree or as bytes."""
    if draw(st.integers(0, 3)) == 0:
        return mutate_bytes(draw, content)
    return deepen(json.dumps(mutate_tree(draw, json.loads(content)))).encode("utf-8", "replace")


def mutate_yaml(draw: Draw, content: bytes) -> bytes:
    """YAML, as a tree, as bytes, or with a bare text in a line."""
    how = draw(st.integers(0, 3))
    if how == 0:
        return mutate_bytes(draw, content)
    if how == 1:
        lines = content.decode().splitlines()
        number = draw(st.integers(0, len(lines) - 1))
        key = lines[number].partition(":")[0]
        lines[number if draw(st.booleans()) else number + 1 : number + 1] = [f"{key}: {draw(nasty_text)}"]
        return "\n".join(lines).encode("utf-8", "replace")
    tree = mutate_tree(draw, yaml.safe_load(content))
    return deepen(yaml.safe_dump(tree, sort_keys=False, allow_unicode=draw(st.booleans()))).encode("utf-8", "replace")


# -- command lines -------------------------------------------------------------------------------------------------

CHECKPOINT = "stranger/model.ckpt"
BASE = {
    "fit": ["--config=start.yaml"],
    "validate": [f"--ckpt_path={CHECKPOINT}", "--data.corpus=text.txt", "--trainer.accelerator=cpu"],
    "generate": [f"--ckpt_path={CHECKPOINT}", "--max_new_tokens=2"],
    "inspect": [f"--ckpt_path={CHECKPOINT}"],
    "export": [f"--ckpt_path={CHECKPOINT}", "--formats=gguf-f32"],
    "verify": ["bundle"],
    "prepare": ["--data.corpus=text.txt"],
    "plan": ["--config=start.yaml", "--tflops=1", "--vocab_size=99"],
    "completion": ["bash"],
}
"""What a command needs to reach the flags that are added; commands that are not here need nothing."""

UNREAD = BASE | {"export": ["--ckpt_path=gone.ckpt"], "verify": ["gone"]}
"""The same for cases that are to take milliseconds."""


@cache
def flags_of(command: str) -> list[tuple[str, tuple[str, ...] | None]]:
    """The flags of a command's own parser: each with what it may be followed by, or None if nothing follows it."""
    module = import_module(f"tinytf.cli.{COMMANDS[command][0].partition(':')[0]}")
    like = "validate" if command in ("test", "predict") else command
    parser: argparse.ArgumentParser = parser_of(command) if command in TRAINER_COMMANDS else module.parser()
    actions = [*parser._actions, *(parser_of("fit")._actions if like == "plan" else ())]
    return [
        (option, None if action.nargs == 0 else tuple(map(str, action.choices or ())))
        for action in actions
        for option in action.option_strings
        if option.startswith("--") and not option.endswith("help")
    ]


@st.composite
def command_lines(draw: Draw, commands: tuple[str, ...], run: bool) -> Case:
    """Flags of one command, with nasty values; parsed alone if not ``run``, as far as a command can do that."""
    command = draw(st.sampled_from(commands))
    base = BASE if run else UNREAD
    argv = [command, *base.get("validate" if command in ("test", "predict") else command, [])]
    flags = flags_of(command)
    for _ in range(draw(st.integers(1, 4))):
        flag, choices = draw(st.sampled_from(flags or [("--none", ())]))
        if choices is None:
            argv.append(flag + draw(st.sampled_from(["", "", "", "=1", "=", "x"])))
            continue
        value = draw(st.sampled_from(choices) | nasty_text if choices else nasty_text).replace("\0", "")
        argv += draw(st.sampled_from([[f"{flag}={value}"], [f"{flag}={value}"], [flag, value], [flag]]))
    if draw(st.integers(0, 9)) == 0:
        argv.insert(draw(st.integers(0, len(argv))), draw(nasty_text).replace("\0", ""))
    if not run and command in TRAINER_COMMANDS:
        argv.append("--print_config")
    return Case("argv run" if run else "argv", argv, users=True)


# -- files ---------------------------------------------------------------------------------------------------------


class Files:
    """Strategies that mutate the files of a sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.content = sandbox.content
        self.bundle = {
            path.relative_to(sandbox.template / "work").as_posix(): path.read_bytes()
            for path in (sandbox.template / "work/bundle").rglob("*")
            if path.is_file()
        }
        self.journal = "checkpoints/mine/version_0/metrics.jsonl"

    def config(self) -> st.SearchStrategy[Case]:
        commands = [["fit", "--print_config"], ["fit"], ["plan", "--tflops=1", "--vocab_size=9"], ["prepare"]]

        @st.composite
        def cases(draw: Draw) -> Case:
            content = mutate_yaml(draw, draw(st.sampled_from([CONFIG.encode(), self.content("resolved.yaml")])))
            command = draw(st.sampled_from([*commands, *commands[2:]]))
            return Case("config", [*command, "--config=a.yaml"], {"a.yaml": content}, users=True)

        return cases()

    def checkpoint(self) -> st.SearchStrategy[Case]:
        import torch

        original = self.content(CHECKPOINT)
        tree = torch.load(io.BytesIO(original), weights_only=True)
        text = "--data.corpus=text.txt"
        commands = [
            ["inspect"], ["inspect", "--json"], ["inspect", f"--diff={CHECKPOINT}"], ["generate", "--max_new_tokens=2"],
            ["validate"], ["validate", text], ["predict", text], ["fit", "--config=start.yaml"], ["fit"],
            ["plan", "--tflops=1"], ["export", "--formats=gguf-f32"],
            ["export", "--formats=gguf-f32", "--text=text.txt"],
        ]  # fmt: skip

        @st.composite
        def cases(draw: Draw) -> Case:
            how = draw(st.integers(0, 7))
            if how == 0:
                content = mutate_bytes(draw, original)
            elif how == 1:
                content = pickle.dumps(Payload("touch ../canary/ran"))
                if draw(st.booleans()):
                    buffer = io.BytesIO()
                    torch.save({**tree, draw(st.sampled_from(list(tree))): Payload("touch ../canary/ran")}, buffer)
                    content = buffer.getvalue()
            else:
                within = "tinytf" if how < 6 else None
                buffer = io.BytesIO()
                torch.save(real(mutate_tree(draw, tree, within)), buffer)
                content = buffer.getvalue()
            command = draw(st.sampled_from(commands))
            own = draw(st.integers(0, 3)) == 0
            name = "checkpoints/mine/version_0/last.ckpt" if own else CHECKPOINT
            return Case("checkpoint", [*command, f"--ckpt_path={name}"], {name: content})

        return cases()

    def export(self) -> st.SearchStrategy[Case]:
        names = sorted(self.bundle)

        @st.composite
        def cases(draw: Draw) -> Case:
            name = draw(st.sampled_from([*names, *["bundle/export.json"] * 4]))
            old = self.bundle[name]
            if name.endswith((".json", ".jsonl")):
                new = mutate_json(draw, old)
            elif name.endswith(".safetensors"):
                new = self.safetensors(draw, old)
            elif name.endswith(".onnx"):
                new = mutate_onnx(draw, old)
            else:
                new = mutate_bytes(draw, old, draw(st.sampled_from([64, 2_000, None])))
            files = {name: new}
            if name != "bundle/export.json":  # A hostile manifest states the checksums of its hostile files.
                manifest = self.bundle["bundle/export.json"].replace(digest(old), digest(new))
                files["bundle/export.json"] = manifest
            command = draw(st.sampled_from([["verify", "bundle"], ["verify", "bundle", "--json"]]))
            if name.endswith(".onnx"):
                command = draw(st.sampled_from([command, ["generate", f"--model={name}", "--max_new_tokens=2"]]))
            return Case("bundle", command, files)

        return cases()

    def safetensors(self, draw: Draw, old: bytes) -> bytes:
        if draw(st.booleans()):
            return mutate_bytes(draw, old, 2_000)
        size = struct.unpack("<Q", old[:8])[0]
        header = mutate_json(draw, old[8 : 8 + size])
        stated = draw(st.sampled_from([len(header), len(header), len(header), 0, 2**63, 10**9]))
        return struct.pack("<Q", stated) + header + old[8 + size :]

    def tokenizer(self) -> st.SearchStrategy[Case]:
        original = self.content("tokenizer.json")

        @st.composite
        def cases(draw: Draw) -> Case:
            command = draw(st.sampled_from([["prepare", "--data.corpus=text.txt"], ["fit", "--config=start.yaml"]]))
            files = {"other.json": mutate_json(draw, original)}
            return Case("tokenizer", [*command, "--data.tokenizer=other.json"], files)

        return cases()

    def run_files(self) -> st.SearchStrategy[Case]:
        """The journal of a run, and what else lies in its folder."""
        lines = self.content(self.journal).splitlines()
        folder = self.journal.rpartition("/")[0]

        @st.composite
        def cases(draw: Draw) -> Case:
            name, how = self.journal, draw(st.integers(0, 4))
            if how == 0:
                content = mutate_bytes(draw, b"\n".join(lines) + b"\n")
            elif how == 4:
                name = f"{folder}/{draw(st.sampled_from(['config.yaml', 'last.ckpt', 'best.ckpt', 'x.ckpt', '.lock']))}"
                content = draw(nasty_text).encode("utf-8", "replace")
            else:
                changed = list(lines)
                number = draw(st.integers(0, len(lines) - 1))
                changed[number] = mutate_json(draw, lines[number])
                if draw(st.integers(0, 3)) == 0:
                    other = draw(st.integers(0, len(lines) - 1))
                    changed[number], changed[other] = changed[other], changed[number]
                content = b"\n".join(changed) + b"\n"
            commands = [["runs"], ["runs", "--json"], ["runs", "--sort=best_val_loss"], ["inspect", "--ckpt_path=last"]]
            resume = ["fit", "--ckpt_path=last", "--trainer.max_steps=2"]
            return Case("run", draw(st.sampled_from([*commands, *commands, resume])), {name: content})

        return cases()

    def corpus(self) -> st.SearchStrategy[Case]:
        text, records = self.content("text.txt"), self.content("records.jsonl").splitlines()

        @st.composite
        def cases(draw: Draw) -> Case:
            suffix = draw(
                st.sampled_from([".txt", ".jsonl", ".jsonl", ".jsonl.gz", ".parquet", ".zip", ".csv", ".ndjson", ""])
            )
            if suffix in (".jsonl", ".ndjson") and draw(st.integers(0, 3)):
                changed = list(draw(st.sampled_from([records, self.content("pairs.jsonl").splitlines()])))
                for _ in range(draw(st.integers(1, 2))):
                    number = draw(st.integers(0, len(changed) - 1))
                    changed[number] = mutate_json(draw, changed[number])
                content = b"\n".join(changed)
            else:
                content = mutate_bytes(draw, text)
            command = draw(st.sampled_from([["prepare"], ["prepare", "--json"], ["fit", "--config=start.yaml"]]))
            more = draw(
                st.sampled_from(
                    [[], [], ["--data.tokenizer=bpe", "--data.vocab_size=300"], ["--data.split_by=document"]]
                )
            )
            return Case("corpus", [*command, f"--data.corpus=given{suffix}", *more], {f"given{suffix}": content})

        return cases()


class Payload:
    """A pickle that runs a program when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


def real(tree: Any) -> Any:
    """The tree without place holders, as deep as pickle can write."""
    if isinstance(tree, str) and (place := re.fullmatch(r"nested-(\d+)-deep", tree)):
        inner: Any = []
        for _ in range(min(200, int(place[1]))):
            inner = [inner]
        return inner
    if isinstance(tree, dict):
        return {key: real(value) for key, value in tree.items()}
    return [real(value) for value in tree] if isinstance(tree, list) else tree


def mutate_onnx(draw: Draw, content: bytes) -> bytes:
    """A graph's bytes, or a value of its metadata, or a dimension."""
    import onnx

    if draw(st.integers(0, 2)) == 0:
        return mutate_bytes(draw, content, draw(st.sampled_from([200, None])))
    model = onnx.load_model_from_string(content)
    prop = draw(st.sampled_from(list(model.metadata_props)))
    how = draw(st.integers(0, 4))
    if how == 0:
        model.metadata_props.remove(prop)
    elif how == 1:
        prop.value = draw(nasty_text).encode("utf-8", "replace").decode()
    elif how == 2 and model.graph.initializer:
        tensor = draw(st.sampled_from(list(model.graph.initializer)))
        tensor.dims[:] = draw(st.lists(st.integers(-1, 2**40), max_size=3))
    else:
        try:
            prop.value = mutate_json(draw, prop.value.encode()).decode("utf-8", "replace")
        except ValueError:
            prop.value = mutate_bytes(draw, prop.value.encode()).decode("utf-8", "replace")
    return bytes(model.SerializeToString())


def digest(content: bytes) -> bytes:
    return sha256(content).hexdigest().encode()


SHARES = {
    "light": 0.5,
    "argv": 0.28,
    "argv run": 0.03,
    "config": 0.06,
    "checkpoint": 0.04,
    "run": 0.04,
    "bundle": 0.02,
    "corpus": 0.02,
    "tokenizer": 0.01,
}
"""Of a long run: most of it is what takes milliseconds."""


def strategies(sandbox: Sandbox) -> dict[str, st.SearchStrategy[Case]]:
    """Each class of cases."""
    files = Files(sandbox)
    light = tuple(name for name in COMMANDS if name not in TRAINER_COMMANDS)
    return {
        "light": command_lines(light, run=False),
        "argv": command_lines(TRAINER_COMMANDS, run=False),
        "argv run": command_lines((*TRAINER_COMMANDS, "fit", "export", "verify", "generate"), run=True),
        "config": files.config(),
        "checkpoint": files.checkpoint(),
        "run": files.run_files(),
        "bundle": files.export(),
        "corpus": files.corpus(),
        "tokenizer": files.tokenizer(),
    }
