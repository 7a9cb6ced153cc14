"""Commands run in a forked child, in a folder of their own, watched: what they print, open, change, and how they end.

The child runs `tinytf.cli.main.main`, whose imports the parent has done, so that a case costs milliseconds. It has
limits of memory, processor time and file size. An audit hook sees what Python opens for writing, connects to or
starts; what it must not, it is refused and counted. After each case the folder is compared with what it was.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MEMORY = 6 * 2**30
"""Bytes of address space: torch, Lightning and onnxruntime together have mapped 2 GiB before the first case."""

FILE_SIZE = 256 * 2**20
SECONDS = 60.0
"""Of a case, before it is stopped by SIGTERM; the longest right one, an export, takes 3 on a slow core that is free."""

PATIENCE = 6.0
"""Of a case that asks for more work than there is time for: it is right to go on, and to end when it is told to."""

GRACE = 10.0
LONGEST = 300.0
"""Seconds of the processor: in case the parent was killed."""
BATCH = 40
"""Cases of one child: forking takes as long as refusing a flag."""

TEXT = "\n".join(" ".join(f"{word}{number % 7}" for word in ("to", "be", "or", "not", "that")) for number in range(150))

CONFIG = """\
name: mine
trainer: {max_steps: 1, val_check_interval: 1, log_every_n_steps: 1, limit_val_batches: 1, accelerator: cpu,
  enable_progress_bar: false}
model: {d_model: 32, n_heads: 1, n_layers: 1, d_ff: 32, max_seq_len: 32}
data: {corpus: text.txt, batch_size: 2, seq_len: 16}
tracking: {samples: {every_n_validations: 0}}
"""

OWN = ("work/checkpoints/", "cache/", "tmp/", "home/.cache/")
"""Where a command may change what is there."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
CONNECTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"}
PROGRAMS = {"git", "uname", "g++", "openssl", "python", "python3", Path(sys.executable).name}
"""What tinytf and torch start; the third and the fourth are those of torch.compile."""


@dataclass(frozen=True)
class Case:
    """One command line, and the files that lie there.

    Args:
        kind: its class, for the counts.
        argv: of the command.
        files: what is written over the folder of the sandbox first, by relative path.
        users: whether addresses and destinations are the user's own word: fetching is refused, but no failure.
    """

    kind: str
    argv: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    users: bool = False

    def __repr__(self) -> str:
        files = {
            name: content if len(content) < 2_000 else f"{len(content)} bytes" for name, content in self.files.items()
        }
        return f"{self.kind}: tinytf {self.argv}" + (f" with {files}" if files else "")


@dataclass
class Result:
    """How a case ended.

    Args:
        code: the exit code; negative if a signal ended the process, None if it did not end.
        late: whether it had to be stopped.
        seen: what the audit hook refused.
    """

    code: int | None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    memory: int = 0
    late: bool = False
    seen: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        return "late" if self.late else f"exit {self.code}"

    def problem(self, case: Case) -> str:
        """What is wrong with this end; empty if nothing is."""
        last = next((line for line in reversed(self.stderr.splitlines()) if line.strip()), "")
        if self.seen:
            return f"it did what it must not: {self.seen[0][:200]}"
        if self.changed:
            return f"changed outside its folders: {self.changed[:5]}"
        if "Traceback (most recent call last)" in self.stderr:
            frames = re.findall(r'tinytf/([\w/]+\.py)", line (\d+)', self.stderr)
            return f"traceback at {':'.join(frames[-1]) if frames else '?'}: {last[:200]}"
        errors = [line for line in self.stderr.splitlines() if line.startswith("tinytf: error: ")]
        if self.code is None or (self.late and not asks_for_much(case)):
            return f"no end after {SECONDS:g} s ({self.outcome}): {last[:100]}"
        if self.late:
            return ""
        if self.code < 0:
            return f"killed by signal {-self.code}: {last[:200]}"
        failed = self.code == 1 and "failed" in self.stdout  # An export with an artifact past its threshold.
        if self.code in (1, 2) and not errors and not failed:
            return f"exit {self.code} without a line"
        if self.code not in (0, 1, 2) and not 128 < self.code < 160:
            return f"exit {self.code}"
        if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", self.stderr):
            return "control characters on the screen"
        if any(len(line) > 3_000 for line in errors):
            return f"an error of {max(map(len, errors))} characters"
        return ""


def asks_for_much(case: Case) -> bool:
    """Whether a user's own numbers may mean more work than the time there is."""
    return case.users and bool(re.search(r"\d{4}|e\d|=-1|_", " ".join(case.argv)) or case.files)


class Sandbox:
    """A folder with a run, its export, texts and traps; cases run in it.

    Args:
        root: a folder that does not exist yet.
        template: what `make_template` made.
    """

    def __init__(self, root: Path, template: Path) -> None:
        self.root, self.work, self.template = root.resolve(), root.resolve() / "work", template
        self.child: Child | None = None
        warm_up()
        self._restore()

    @classmethod
    def make_template(cls, root: Path, formats: str) -> Path:
        """Fill a folder by training for a step and exporting in these formats; returns it."""
        (root / "work").mkdir(parents=True)
        sandbox = cls(root, root)
        records = "".join(f'{{"text": "{line}"}}\n' for line in TEXT.splitlines())
        pairs = "".join(f'{{"prompt": "{line}", "completion": " yes"}}\n' for line in TEXT.splitlines()[:40])
        files = {
            "work/start.yaml": CONFIG, "work/text.txt": TEXT, "work/records.jsonl": records, "work/pairs.jsonl": pairs,
            "work/LICENSE": "class_path: os.system\ninit_args: {command: touch ../canary/ran}\n",
            "work/many/a.txt": TEXT, "work/many/b.txt": TEXT, "cache/kept": "", "home/kept": "", "tmp/kept": "",
            "canary/kept.txt": "kept", "canary/folder/kept.txt": "kept",
        }  # fmt: skip
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        sandbox._start(["fit", "--config", "start.yaml"])
        sandbox._start(["export", "--ckpt_path", "best", "--formats", formats, "--output_dir", "bundle"])
        (sandbox.work / "loop").symlink_to("loop")
        (sandbox.work / "stranger").mkdir()
        shutil.copy(sandbox.work / "checkpoints/mine/version_0/last.ckpt", sandbox.work / "stranger/model.ckpt")
        shutil.copy(sandbox.work / "checkpoints/mine/version_0/config.yaml", sandbox.work / "resolved.yaml")
        shutil.copy(sandbox.work / "bundle/tokenizer.json", sandbox.work / "tokenizer.json")
        return root

    def _start(self, argv: list[str]) -> None:
        child = Child(self.root)
        result = self._result(Case("start", argv), child, seconds=LONGEST)
        child.end()
        if result.code:
            raise AssertionError(f"{argv}: {result.outcome}\n{result.stderr[-3000:]}")

    def content(self, name: str) -> bytes:
        """A file of the folder as it was before any case."""
        return (self.template / "work" / name).read_bytes()

    def result(self, case: Case) -> Result:
        """How a case ends."""
        child = self.child = self.child or Child(self.root)
        for name, content in case.files.items():
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(content)
        before = self._look() if case.files else self.state
        result = self._result(case, child, PATIENCE if asks_for_much(case) else SECONDS)
        if child.dead or child.cases >= BATCH:
            self.renew()
        after = self._look()
        if before != after:
            result.changed = [name for name in sorted({*before, *after}) if self._forbidden(name, before, after, case)]
        if self.state != after:
            self._restore()
        return result

    def _result(self, case: Case, child: Child, seconds: float) -> Result:
        for name in ("stdout", "stderr"):
            (self.root.parent / f"{self.root.name}.{name}").write_bytes(b"")
        result = child.run(case, seconds)
        for name in ("stdout", "stderr"):
            path = self.root.parent / f"{self.root.name}.{name}"
            with path.open("rb") as file:
                setattr(result, name, file.read(2**20).decode("utf-8", "replace"))
        return result

    def renew(self) -> None:
        """End the child, so that the next case has one of its own."""
        if self.child:
            self.child.end()
        self.child = None

    def close(self) -> None:
        """End the child, and remove the folder."""
        self.renew()
        shutil.rmtree(self.root)

    # -- what changed --------------------------------------------------------------------------------------------------

    def _look(self) -> dict[str, tuple[int, ...]]:
        """Mode, size, inode and time of change of all that is there; folders change with their files."""
        found = {}
        for folder, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                path = os.path.join(folder, name)  # noqa: PTH118 - a Path takes longer than the look
                status = os.lstat(path)
                facts = (status.st_mode, status.st_size, status.st_ino, status.st_ctime_ns)
                found[path[len(str(self.root)) + 1 :]] = facts if name in files else facts[:1]
        return found

    def _forbidden(self, name: str, before: dict[str, Any], after: dict[str, Any], case: Case) -> bool:
        if before.get(name) == after.get(name) or any(f"{name}/".startswith(own) for own in OWN):
            return False
        if name == "canary/ran":
            return True
        if name in before:  # Changed or deleted; an export replaces its own files.
            return not (case.argv[:1] == ["export"] and name.startswith("work/stranger/"))
        # What is new may lie where the user says.
        named = [place for word in case.argv for place in (word, word.partition("=")[2])] if case.users else []
        named += ["stranger/export"] if case.argv[:1] == ["export"] else []
        if case.users and case.files:
            return False  # A config of the user's names folders of its own.
        places = [os.path.normpath(self.work / word) for word in named if "\0" not in word and word]
        path = str(self.root / name)
        return not any(
            path == place or path.startswith((f"{place}/", f"{place}-")) or place.startswith(f"{path}/")
            for place in places
        )

    def _restore(self) -> None:
        if self.root != self.template:
            # A child works in the folder: it stays, and so its inode, and its content is made anew.
            for path in [path for folder in self.root.glob("*") for path in folder.iterdir()]:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            shutil.copytree(self.template, self.root, symlinks=True, dirs_exist_ok=True)
            os.mkfifo(self.work / "pipe")
        self.state = self._look()


class Child:
    """A forked process that runs cases one after the other."""

    def __init__(self, root: Path) -> None:
        self.cases, self.dead = 0, False
        self.pipe, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self.pipe.close()
            serve(root, theirs)
        theirs.close()

    def run(self, case: Case, limit: float) -> Result:
        begun, late, code = time.monotonic(), False, None
        self.cases += 1
        self.pipe.send(case)
        seen: list[str] = []
        memory = 0
        for seconds, number in ((limit, signal.SIGTERM), (GRACE, signal.SIGKILL), (GRACE, signal.SIGKILL)):
            try:
                if self.pipe.poll(seconds):
                    code, seen, memory = self.pipe.recv()
                    break
                late = True
                os.killpg(self.pid, number) if number == signal.SIGKILL else os.kill(self.pid, number)
            except (EOFError, ConnectionResetError, ProcessLookupError):
                code, self.dead = self._wait(), True
                break
        killed = late and code == -signal.SIGKILL
        return Result(None if killed else code, seconds=time.monotonic() - begun, memory=memory, late=late, seen=seen)

    def _wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        self.pipe.close()
        if not self.dead:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(self.pid, signal.SIGKILL)
            self._wait()


# -- in the child ------------------------------------------------------------------------------------------------------


def warm_up() -> None:
    """Import what commands import, and build the parsers, once for all children."""
    from tinytf.cli.config.parser import CommandLine, Description, parser_of
    from tinytf.cli.main import COMMANDS, TRAINER_COMMANDS

    for place, _ in COMMANDS.values():
        import_module(f"tinytf.cli.{place.partition(':')[0]}")
    for name in (
        "tinytf.export.bundle",
        "tinytf.export.verify",
        "onnxruntime",
        "transformers",
        "gguf",
        "safetensors.torch",
    ):
        try:
            import_module(name)
        except ImportError:  # Without the extra, the commands refuse what needs it.
            continue
    parsers = {command: parser_of(command) for command in TRAINER_COMMANDS}
    build = CommandLine.setup_parser

    def stands(self: CommandLine, *args: Any) -> None:
        if isinstance(self, Description):  # What describes a parser may change it.
            build(self, *args)
        else:
            self.parser = parsers[self.command]

    CommandLine.setup_parser = stands  # type: ignore[method-assign, assignment]
    gc.freeze()  # Else each child copies all pages at its first collection.


def serve(root: Path, pipe: Connection) -> None:
    """Run cases until the pipe is closed; never returns."""
    os.setpgid(0, 0)
    os.environ |= {"HOME": str(root / "home"), "TINYTF_CACHE": str(root / "cache"), "TMPDIR": str(root / "tmp")}
    os.environ |= {"XDG_CACHE_HOME": str(root / "home/.cache"), "WANDB_MODE": "offline", "GIT_CEILING_DIRECTORIES": "/"}
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(root / "tmp/inductor")
    import faulthandler
    import resource  # Windows has none, and the module is imported there, to be skipped.
    import tempfile

    faulthandler.disable()  # Pytest's writes to the parent's screen.
    tempfile.tempdir = str(root / "tmp")
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    seen: list[str] = []
    switch = watch(root, seen)
    try:
        while True:
            case: Case = pipe.recv()
            code = 99
            with output(root):
                os.chdir(root / "work")
                resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + LONGEST), -1))
                switch["case"] = case
                try:
                    code = call(case.argv)
                except BaseException:
                    traceback.print_exc()
                switch["case"] = None
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            pipe.send((code, list(seen), peak))
            seen.clear()
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)


def call(argv: list[str]) -> int:
    from tinytf.cli.main import main

    try:
        return main(list(argv))
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        sys.stderr.write(f"{stop.code}\n")
        return 1


@contextmanager
def output(root: Path) -> Iterator[None]:
    streams = []
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        file = os.open(root.parent / f"{root.name}.{name}", os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
        streams.append(os.fdopen(descriptor, "w", closefd=False, encoding="utf-8", errors="backslashreplace"))
    sys.stdout, sys.stderr = streams
    yield
    for stream in streams:
        stream.flush()


def watch(root: Path, seen: list[str]) -> dict[str, Case | None]:
    """Refuse and note writing outside the sandbox, connecting, and starting programs, while a case runs."""
    switch: dict[str, Case | None] = {"case": None}
    allowed = (str(root), "/dev/null", "/dev/shm", "/dev/tty", "/proc/self", f"/proc/{os.getpid()}")

    def outside(path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        full = os.path.realpath(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100 - Path asks the file system
        return not full.startswith(allowed)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        case = switch["case"]
        if case is None:
            return
        wrong = ""
        if event == "open":
            wrong = f"open {args[0]!r}" if isinstance(args[2], int) and args[2] & WRITES and outside(args[0]) else ""
        elif event in CHANGES:
            wrong = f"{event} {args!r}" if any(map(outside, args[:2])) else ""
        elif event in CONNECTS:
            if isinstance(args[-1], (str, bytes)):  # A socket of this machine's file system, between processes.
                return
            if case.users:
                raise OSError(101, "Network is unreachable")
            wrong = f"{event} {args!r}"
        elif event in STARTS:
            program = args[0] if args[0] is not None else (args[1] or [""])[0]
            program = program[0] if isinstance(program, (list, tuple)) else program
            name = Path(os.fsdecode(program)).name
            wrong = f"{event} {args[:2]!r}" if event == "os.system" or name not in PROGRAMS else ""
        if wrong:
            if not (case.users and event in {"open", *CHANGES}):  # The user's own word; it is refused all the same.
                seen.append(wrong)
            raise PermissionError(13, "Permission denied")

    sys.addaudithook(hook)
    return switch
