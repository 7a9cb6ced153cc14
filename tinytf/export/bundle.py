"""Making a bundle: every artifact is written and compared in a temporary folder, and the whole is then published."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tinytf.data.tokenizer import added_to_texts, tokenizer_from_text
from tinytf.errors import RunError, UserError
from tinytf.export import manifest
from tinytf.export.folder import link_or_copy, publish, staging_folder
from tinytf.export.formats import FORMATS, Format
from tinytf.export.formats.card import bundle_card
from tinytf.export.formats.gguf import ollama
from tinytf.export.formats.huggingface import write_weights
from tinytf.export.formats.huggingface_onnx import ADDED, GRAPHS, add_graphs
from tinytf.export.formats.web import Runtime
from tinytf.export.parity.cases import held_out_text
from tinytf.export.parity.check import FAILED, CheckResult, ParityCheck, failed_result
from tinytf.export.parity.thresholds import with_overrides
from tinytf.utils.files import is_disk_full, remove, sha256_of
from tinytf.utils.text import printable
from tinytf.weights.checkpoint import LoadedModel, load_model
from tinytf.weights.huggingface import CHAT_TEMPLATE

Say = Callable[[str], None]


def export_checkpoint(
    ckpt_path: Path,
    formats: Sequence[Format],
    *,
    output_dir: Path | None = None,
    text: Path | None = None,
    own: bool = False,
    base: str | None = None,
    thresholds: Sequence[str] = (),
    threads: int = 1,
    runtime: Path | None = None,
    say: Say,
) -> dict[str, Any]:
    """Export one checkpoint: what `tinytf export` and the end of a training run do.

    Args:
        output_dir: None means ``export`` in the checkpoint's folder, where the export of an earlier one is replaced.
        text: held-out text; None means the run's validation split.
        own: whether the checkpoint is of the user's own runs, so that the text and the base that its config names may
            be opened.
        base: of a checkpoint of an adapter, its base model; None is the one that its config names.
        thresholds: settings such as ``int8.kl=1e-3``.
        threads: CPU threads.
        runtime: folder of the packages that the format web runs with, to be copied into its page.
        say: called with each line of progress.

    Returns:
        The content of ``export.json``; its ``failed`` lists what did not pass, and is not in the bundle.

    Raises:
        UserError: if checkpoint, text, thresholds or folder cannot be used, or a format cannot express the model.
        RunError: if the disk is full.
    """
    limits, page_runtime = with_overrides(thresholds), Runtime(runtime) if runtime is not None else None
    loaded = as_trained(load_model(ckpt_path, base, own=own), say)
    folder = output_dir or ckpt_path.resolve().parent / "export"
    # A link in a downloaded run could name any folder of the user's: only --output_dir, which is his own word, may.
    if output_dir is None and folder.is_symlink():
        raise UserError(f"{folder}: it is a link; give the folder that it names as --output_dir")
    check = ParityCheck.of(loaded, held_out_text(loaded, text, own=own), limits, threads)
    skipped = skipped_formats(formats, loaded)
    say_skipped(skipped, say)
    formats = [format for format in formats if format.name not in skipped]
    require_export_dir(folder)
    with staging_folder(folder) as staging:
        previous = PreviousExport.read(folder, loaded, formats, replace=output_dir is None, say=say)
        try:
            content = _make(check, formats, skipped, previous, page_runtime, staging, say)
            publish(staging / "bundle", folder)
        except OSError as error:
            if is_disk_full(error):
                raise RunError(f"the disk is full, and {folder} is as it was") from error
            raise
    say(f"wrote {folder}")
    return content


def _make(
    check: ParityCheck,
    formats: Sequence[Format],
    skipped: dict[str, str],
    previous: PreviousExport,
    page_runtime: Runtime | None,
    staging: Path,
    say: Say,
) -> dict[str, Any]:
    """Write and compare every artifact in ``work``, and put what passed and all else into ``bundle``."""
    work, bundle = staging / "work", staging / "bundle"
    work.mkdir()
    bundle.mkdir()
    done: dict[str, CheckResult] = {}
    results = [_export(format, check, work, done, say) for format in formats]
    for result in results:
        if page_runtime is not None and result.format.name == "web" and result.status != FAILED:
            page_runtime.add_to(result.path, check.loaded)
    kept = previous.kept + previous.still_valid([result.format.name for result in results if not result.path.exists()])
    for entry in kept:
        name = FORMATS[entry["name"]].file
        link_or_copy(previous.folder / name, bundle / name)
    content = _write_companions(bundle, check, results, work)
    content["artifacts"] = kept + content["artifacts"]
    content["skipped"] = [{"name": name, "reason": reason} for name, reason in skipped.items()]
    content["texts"] = _write_texts(bundle, check.loaded, [entry["name"] for entry in content["artifacts"]])
    for result in results:
        if result.status != FAILED:
            result.path.replace(bundle / result.format.file)
    add_graphs(bundle, content["artifacts"], check.loaded)
    previous.carry_over(bundle, say)
    manifest.write(bundle, content)
    return content


def as_trained(loaded: LoadedModel, say: Say) -> LoadedModel:
    """The model with a tokenizer that puts nothing around a text, unless the base that it was trained from knows it.

    Training encodes texts alone. A tokenizer of the user's may say by its post-processor that other programs put a
    token before them, which a model that was trained from scratch has never seen.
    """
    added = [str(loaded.tokenizer.id_to_token(number)) for number in added_to_texts(loaded.tokenizer)]
    base = loaded.entry.get("base")
    if not added or (isinstance(base, dict) and base.get("kind") != "tinytf"):
        return loaded
    say(f"tinytf: note: the tokenizer puts {' '.join(added)} around a text, and training did not: exported without it")
    content = json.loads(loaded.tokenizer.to_str()) | {"post_processor": None}
    return replace(loaded, tokenizer=tokenizer_from_text(json.dumps(content)))


def skipped_formats(formats: Sequence[Format], loaded: LoadedModel) -> dict[str, str]:
    """Why the model cannot be in formats that the user did not name, by their names; before any is written.

    Raises:
        UserError: if one that the user named cannot express this model, or none can.
    """
    if loaded.model.config.max_seq_len < 2:
        raise UserError("max_seq_len is 1: a model that reads one token writes no text to compare; there is no export")
    try:
        (loaded.chat_template or "").encode()
    except UnicodeEncodeError as error:
        raise UserError(f"checkpoint {loaded.path}: its chat_template cannot be written as UTF-8 ({error})") from None
    skipped: dict[str, str] = {}
    for format in formats:
        for needed in (format, FORMATS[format.base]) if format.base else (format,):
            reason = needed.implementation.unsupported_reason(loaded)
            if reason and format.named:
                raise UserError(f"format {format.name} cannot express this model: {reason}; leave it out of --formats")
            if reason:
                skipped[format.name] = reason
    if len(skipped) == len(formats):
        raise UserError(f"no format can express this model: {'; '.join(dict.fromkeys(skipped.values()))}")
    return skipped


def say_skipped(skipped: dict[str, str], say: Say) -> None:
    """A line for each reason why formats are left out."""
    for reason in dict.fromkeys(skipped.values()):
        names = ", ".join(name for name, why in skipped.items() if why == reason)
        say(f"tinytf: note: {names} skipped: the model cannot be in it, because {reason}")


def require_export_dir(folder: Path) -> None:
    """Raise UserError if a folder holds something, and not an export, or if there can be no folder of this name."""
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output_dir {folder}: it is a file; give a folder")
        if not folder.resolve().name:
            raise UserError(f"--output_dir {folder}: a bundle is renamed into place; give a folder that has a name")
        if not folder.exists() or (folder / manifest.NAME).exists():
            return
        strangers = sorted(path.name for path in folder.iterdir())
    except (OSError, RuntimeError) as error:  # RuntimeError: before 3.13, a link to itself.
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--output_dir {folder}: it cannot be written to ({why}); give another") from error
    if strangers:
        raise UserError(
            f"--output_dir {folder}: it holds {strangers[0]} and no {manifest.NAME}, so it is not an export; "
            "give an empty or a new folder"
        )


@dataclass(frozen=True)
class PreviousExport:
    """What an earlier export left in the folder.

    Args:
        kept: entries of its manifest that stay.
        redone: entries of the same checkpoint that are made again now.
        ours: paths in the folder that tinytf wrote, relative; everything else is the user's.
        edited: of these, texts for people that somebody changed since.
    """

    folder: Path
    kept: list[dict[str, Any]] = field(default_factory=list)
    redone: list[dict[str, Any]] = field(default_factory=list)
    ours: frozenset[str] = frozenset()
    edited: frozenset[str] = frozenset()

    @classmethod
    def read(
        cls, folder: Path, loaded: LoadedModel, formats: Sequence[Format], *, replace: bool, say: Say
    ) -> PreviousExport:
        """Raises UserError if the folder holds anything but an export that may be added to or replaced."""
        require_export_dir(folder)  # Once more under the lock: it may have changed since.
        if not (folder / manifest.NAME).exists():
            return cls(folder)
        old = manifest.read(folder)
        made, artifacts = old["checkpoint"], old["artifacts"]
        origin = printable(str(made["path"]))
        ours, edited = frozenset(manifest.own_paths(old)), frozenset(manifest.edited(folder, old))
        names = {format.name for format in formats}
        listed = {entry["name"] for entry in artifacts}
        for format in formats:
            if format.name not in listed and (folder / format.file).exists():
                raise UserError(f"{folder / format.file}: it is yours: move it away to export {format.name}")
        if names & {*GRAPHS, "huggingface"} and "huggingface" in names | listed:
            for theirs in (name for name in ADDED if name not in ours and (folder / name).exists()):
                raise UserError(f"{folder / theirs}: it is yours: move it away to export {', '.join(sorted(names))}")
        if loaded.chat_template is not None and CHAT_TEMPLATE not in ours and (folder / CHAT_TEMPLATE).exists():
            raise UserError(f"{folder / CHAT_TEMPLATE}: it is yours: move it away to export the model's")
        others = [entry for entry in artifacts if entry["name"] not in names and _is_whole(folder, entry, say)]
        if made["sha256"] == loaded.sha256:
            return cls(folder, others, [entry for entry in artifacts if entry["name"] in names], ours, edited)
        if not replace:
            raise UserError(
                f"--output_dir {folder}: it holds the export of another checkpoint ({origin}); "
                "give another folder, or delete it"
            )
        say(f"replacing the export of {origin} (step {made['step']})")
        return cls(folder, ours=ours, edited=edited)

    def still_valid(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Entries made again under these names, but in vain, whose earlier artifact is whole."""
        return [e for e in self.redone if e["name"] in names and not manifest.changes(self.folder, e)]

    def carry_over(self, bundle: Path, say: Say) -> None:
        """Put what the user added to the folder, and what he wrote in it, into the new bundle too."""
        for name in sorted(self.edited):
            say(f"{name}: it was edited, and stays as it is; delete it to have a new one")
            remove(bundle / name)
            link_or_copy(self.folder / name, bundle / name)
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if name in self.ours or os.path.lexists(bundle / name):
                continue
            if path.is_dir() and not path.is_symlink():
                (bundle / name).mkdir(parents=True)
            else:
                link_or_copy(path, bundle / name)


def _is_whole(folder: Path, entry: dict[str, Any], say: Say) -> bool:
    """Whether an artifact is still what was exported; one that was deleted is no longer listed."""
    changed = manifest.changes(folder, entry)
    if not (folder / FORMATS[entry["name"]].file).exists():
        say(f"{entry['name']}: {changed[0]}, so it is no longer listed")
        return False
    if changed:
        raise UserError(f"{folder}: {changed[0]}; add {entry['name']} to --formats, or delete {entry['file']}")
    return True


def _export(format: Format, check: ParityCheck, folder: Path, done: dict[str, CheckResult], say: Say) -> CheckResult:
    """Write and compare one format, its float32 base first, each once: later calls return what is in ``done``."""
    if format.name in done:
        return done[format.name]
    path, base = folder / format.file, None
    if format.base:
        base = _export(FORMATS[format.base], check, folder, done, say)
    try:
        if base and base.status == FAILED:
            reason = f"{format.base}, which it is made from, failed ({'; '.join(base.reasons)})"
            result = CheckResult(format, FAILED, path, reasons=[reason])
        else:
            say(f"{format.name}: writing")
            format.implementation.write(check.loaded, path, base.path if base else None)
            say(f"{format.name}: comparing with the model")
            result = check.run(format, path)
    except Exception as error:
        if is_disk_full(error):
            raise RunError(f"{format.name}: the disk is full, and the earlier export is as it was") from error
        # The other formats are worth having; this one's traceback is shown whole, and the command fails.
        say(traceback.format_exc())
        remove(path)
        result = failed_result(format, path, error)
    done[format.name] = result
    return result


def _write_texts(bundle: Path, loaded: LoadedModel, formats: Sequence[str]) -> dict[str, str]:
    """Write what people and Ollama read of a bundle with these formats; returns the sums of the files by name."""
    file = next((FORMATS[name].file for name in ("gguf-q8_0", "gguf-f16", "gguf-f32") if name in formats), None)
    for_ollama = ollama.modelfile(loaded, file) if file else None
    texts = {manifest.CARD: bundle_card(loaded, formats, modelfile=for_ollama is not None)}
    if for_ollama is not None:
        texts[ollama.NAME] = for_ollama
    for name, text in texts.items():
        (bundle / name).write_text(text, encoding="utf-8", newline="\n")
    return {name: sha256_of(bundle / name) for name in texts}


def _write_companions(bundle: Path, check: ParityCheck, results: Sequence[CheckResult], work: Path) -> dict[str, Any]:
    """Write what running and verifying a bundle need besides artifacts; returns the manifest of the new artifacts."""
    loaded = check.loaded
    loaded.tokenizer.save(str(bundle / "tokenizer.json"))
    if loaded.chat_template is not None:
        (bundle / CHAT_TEMPLATE).write_bytes(loaded.chat_template.encode())
    config = {"name": loaded.name, "model": asdict(loaded.model.config), "config": loaded.entry.get("config", {})}
    (bundle / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    check.evaluation.save(bundle / manifest.EVALUATION)
    passed = [result.format.name for result in results if result.status != FAILED]
    in_huggingface, own = manifest.REFERENCES
    if "huggingface" in passed:
        reference, path = in_huggingface, work / in_huggingface
    elif (bundle / in_huggingface).exists():
        reference, path = in_huggingface, bundle / in_huggingface
    else:
        reference, path = own, bundle / own
        write_weights(loaded, path)
    weights = {"file": reference, "sha256": sha256_of(path)}
    written = [name for name in manifest.RUNTIME_FILES if (bundle / name).exists()]
    runtime_files = {name: sha256_of(bundle / name) for name in written}
    return manifest.describe(check, results, weights, runtime_files)
