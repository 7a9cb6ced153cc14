"""5. Batches: the data of a run for Lightning. Prepared once, read by every rank, its position one integer."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from tinytf.data.build import is_one_text, locate_example, prepare
from tinytf.data.config import CorpusConfig, PreparedCorpus, require_processes
from tinytf.data.examples.packing import Packing, SequentialExamples, ShuffledExamples, pack
from tinytf.data.tokenizer import tokenizer_from_text
from tinytf.data.tokens.store import TokenIds, separator_of
from tinytf.data.windows import Batch, InfiniteSampler, SequentialWindows, ShuffledWindows, require_window
from tinytf.errors import UserError, require_at_least

log = logging.getLogger(__name__)

LOADER_TIMEOUT = 120
"""Seconds to wait for a batch, which takes microseconds. A loader process that cannot hand one over, as when /dev/shm
is full, says nothing to the training process, which would wait for ever."""


class TextDataModule(LightningDataModule):
    """Text in, batches of token ids out.

    Works without a Trainer too. The data are prepared when they are first asked for (`vocab_size`, `tokenizer`,
    `split`, a loader): by whoever comes first, under a lock, while other processes wait for it.

    Args:
        batch_size: Windows in a micro-batch, on each device.
        global_batch_size: Windows in an optimizer step, over all devices: gradients are accumulated over as many
            micro-batches as that takes; unset, it is what batch_size, the devices and
            trainer.accumulate_grad_batches give.
        seq_len: Tokens in a window, the context the model learns from; at most model.max_seq_len.
        num_workers: Processes that read batches ahead, on each device; 0 reads in the training process, which takes
            microseconds per batch.
        seed: Chooses the order of the training windows; the same seed gives the same batches.
        mask_documents: Keep the documents of a window apart: attention stays inside of each, and each begins at
            position 0. Examples of prompts and completions always are.
        corpus: the arguments of `CorpusConfig`.
    """

    def __init__(
        self,
        batch_size: int = 16,
        global_batch_size: int | None = None,
        seq_len: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        mask_documents: bool = False,
        **corpus: Any,
    ) -> None:
        super().__init__()
        require_at_least(
            "data",
            batch_size=(batch_size, 1),
            global_batch_size=(global_batch_size, 1),
            seq_len=(seq_len, 1),
            num_workers=(num_workers, 0),
        )
        require_processes("data.num_workers", num_workers)
        # `corpus` and not named arguments: jsonargparse follows ``**corpus`` to CorpusConfig's fields, so that
        # ``data.corpus`` is declared there alone.
        self.config = CorpusConfig(**corpus)
        self.mask_documents = mask_documents
        self.global_batch_size = global_batch_size
        self.batch_size, self.seq_len, self.num_workers, self.seed = batch_size, seq_len, num_workers, seed
        self._given: Tokenizer | None = None
        self._known: dict[str, Any] | None = None
        self._chat_template: str | None = None
        self._prepared: PreparedCorpus | None = None
        self._packings: dict[str, Packing] = {}
        # Position: samples consumed before the attempt that was resumed last, and batches Lightning counted then.
        self._samples_before = 0
        self._batches_before = 0

    def use_tokenizer(
        self, json_text: str, fingerprint: dict[str, Any] | None = None, chat_template: str | None = None
    ) -> None:
        """Encode with this tokenizer, the one that a checkpoint or a base model carries, whatever the settings say.

        Args:
            json_text: the tokenizer's JSON.
            fingerprint: the checkpoint's, to find its tokens by if its address is stored without a credential.
            chat_template: the tokenizer's own, in Jinja, by which conversations become text; None if it has none.

        Raises:
            UserError: if it is none.
        """
        self._known = fingerprint
        self._given = tokenizer_from_text(json_text, "of the checkpoint")
        self._chat_template = chat_template
        self._prepared = None

    def prepare_data(self) -> None:
        """Prepare on disk what is not there yet; Lightning calls it on one process of each machine."""
        self.prepared  # noqa: B018 - asking prepares

    def setup(self, stage: str | None = None) -> None:
        """Open what is on disk, and refuse a split that holds no window."""
        self.prepared  # noqa: B018

    @property
    def prepared(self) -> PreparedCorpus:
        """Token ids, tokenizer and fingerprint."""
        if self._prepared is None:
            if self.mask_documents and is_one_text(self.config):  # Before minutes of tokenizing.
                self._refuse_one_text()
            prepared = prepare(self.config, self._given, self._known, self._chat_template)
            self._packings = {name: self._pack(prepared, name) for name in prepared.store.examples or ()}
            if self.mask_documents and not self._packings and prepared.fingerprint["documents"] < 2:
                self._refuse_one_text()
            for name, count in {} if self._packings else prepared.store.tokens.items():
                require_window(name, count, self.seq_len)
            self._prepared = prepared
        return self._prepared

    def _refuse_one_text(self) -> NoReturn:
        raise UserError(f"data.mask_documents is true, but the corpus {self.config.corpus} is one text: leave it out")

    def _pack(self, prepared: PreparedCorpus, name: str) -> Packing:
        """The examples of a split in windows; says how many are cut, and refuses one of which nothing is learned."""
        lengths = prepared.store.lengths(name)
        learns_nothing = np.flatnonzero(lengths[:, 1] > self.seq_len)
        if learns_nothing.size:
            ids, prompt = lengths[learns_nothing[0]].tolist()
            where = locate_example(self.config, self._given, self._chat_template, name, int(learns_nothing[0]))
            raise UserError(
                f"{where}: its prompt has {prompt:,} tokens, so that nothing of its completion is left in a window of "
                f"{self.seq_len} (data.seq_len): raise data.seq_len and model.max_seq_len to {ids - 1}, which holds "
                f"both, or leave it out (1 of {learns_nothing.size:,} such examples in the {name} split)"
            )
        packing = pack(lengths[:, 0], self.seq_len)
        if packing.cut:
            log.warning(
                "%d of the %d %s examples are longer than a window, and their ends are cut off: data.seq_len is %d, "
                "and the longest would take %d", packing.cut, len(lengths), name, self.seq_len, packing.longest - 1,
            )  # fmt: skip
        return packing

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that is used: trained, given by a file, or a checkpoint's own."""
        return self.prepared.tokenizer

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's, if it came with one, as Jinja."""
        return self.prepared.chat_template

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer that is used, which for char and files is not the setting."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def bytes_per_token(self) -> dict[str, float]:
        """UTF-8 bytes per token of each split, on average: what turns nats per token into bits per byte.

        Of prompts and completions, those of completions.
        """
        store = self.prepared.store
        return {name: store.bytes[name] / count for name, count in (store.learned_tokens or store.tokens).items()}

    @property
    def training_examples(self) -> tuple[int, int] | None:
        """Of prompts and completions how many there are to train on, and the tokens that are learned of them."""
        store = self.prepared.store
        return (
            (store.examples["train"], store.learned_tokens["train"])
            if store.examples and store.learned_tokens
            else None
        )

    @property
    def first_prompt(self) -> int | None:
        """Tokens of the first prompt for validation, which the split begins with; None of texts."""
        return int(self.prepared.store.lengths("val")[0, 1]) if self._packings else None

    @property
    def windows_per_epoch(self) -> float:
        """How many windows hold the training split once."""
        split = self.split("train")
        return len(self._packings["train"]) if self._packings else len(split) / self.seq_len

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the data are, in plain types: corpus, checksums, splits, sizes."""
        return dict(self.prepared.fingerprint)

    def split(self, name: str) -> TokenIds:
        """The token ids of ``train``, ``val`` or ``test``, [tokens], memory-mapped."""
        if name not in self.prepared.store.tokens:
            raise UserError(
                f"there is no {name} split: ask for one with --data.{name}_fraction 0.05 or --data.{name}_corpus FILE"
            )
        return self.prepared.store.split(name)

    def train_dataloader(self) -> DataLoader[Batch]:
        ids, rank_and_world = self.split("train"), self._rank_and_world_size()
        stream = (self.batch_size, self.seq_len, self.seed, *rank_and_world, self._samples_before)
        batches: Dataset[Batch]
        if self._packings:
            batches = ShuffledExamples(ids, self.prepared.store.learned("train"), self._packings["train"], *stream)
        else:
            batches = ShuffledWindows(ids, *stream, separator=self._separator())
        return self._loader(batches, InfiniteSampler(0))

    def _separator(self) -> int | None:
        """The id that ends documents, if they are to be kept apart."""
        return separator_of(self.tokenizer) if self.mask_documents else None

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("val")

    def _in_order(self, name: str) -> DataLoader[Batch]:
        walk = (self.batch_size, self.seq_len, *self._rank_and_world_size())
        batches: SequentialExamples | SequentialWindows
        if self._packings:
            store = self.prepared.store
            batches = SequentialExamples(self.split(name), store.learned(name), self._packings[name], *walk)
        else:
            batches = SequentialWindows(self.split(name), *walk, name=name, separator=self._separator())
        return self._loader(batches, SequentialSampler(range(batches.count)))

    def _loader(self, batches: Dataset[Batch], order: SequentialSampler) -> DataLoader[Batch]:
        if self.num_workers:
            # Loader processes come from a fork server on Linux from Python 3.14 on. It imports this module, with
            # Lightning, once; each process would, for six seconds.
            multiprocessing.set_forkserver_preload(["__main__", __name__])
        return DataLoader(
            batches,
            batch_size=None,
            sampler=order,
            num_workers=self.num_workers,
            timeout=LOADER_TIMEOUT if self.num_workers else 0,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_leave_signals_to_the_trainer,
            pin_memory=self._on_cuda(),
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _on_cuda(self) -> bool:
        return self.trainer is not None and torch.device(self.trainer.strategy.root_device).type == "cuda"

    def state_dict(self) -> dict[str, int]:
        """The position in the training stream. ``samples`` is true on any number of devices."""
        batches, (_, world) = self._batches_done(), self._rank_and_world_size()
        samples = self._samples_before + (batches - self._batches_before) * self.batch_size * world
        return {"samples": samples, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._samples_before, self._batches_before = state_dict["samples"], state_dict["batches"]

    def _batches_done(self) -> int:
        """Micro-batches processed so far, earlier attempts included: Lightning restores this count itself."""
        if self.trainer is None:
            return self._batches_before
        # Lightning's annotation names the tracker's base class, which lacks the attribute.
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Outlive the signals that schedulers and terminals send to a whole process group; a ``worker_init_fn``.

    A worker that died of one would take the step down that the training process is about to finish and save. The
    training process's own SIGTERM, which ends a stuck worker, still works.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has the first alone.
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS and Windows, where nothing says who sent a signal.
        if hasattr(os, "setpgrp"):
            os.setpgrp()
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # Not os.getppid: that is the fork server, if one starts the processes, as on Linux from Python 3.14 on.
    parent = multiprocessing.parent_process()
    threading.Thread(target=_obey, args=(parent and parent.pid,), daemon=True).start()


def _obey(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
