"""The data of a run for Lightning: built once, read by every rank, its position one integer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

from tinytf.data.prepare import prepare
from tinytf.data.settings import BPE_SAMPLE_BYTES, Prepared, TextSettings
from tinytf.data.store import TokenIds
from tinytf.data.tokenizer import tokenizer_from_text
from tinytf.data.windows import Batch, CountFrom, EvalBatches, TrainBatches, require_window
from tinytf.data.workers import leave_signals_to_the_trainer
from tinytf.errors import UserError


class TextDataModule(LightningDataModule):
    """Text in, batches of token ids out.

    Works without a Trainer too: call `prepare_data` and `setup`, then ask for loaders.

    Args:
        corpus: The text to learn: shakespeare, shakespeare-complete (both with the extra "shakespeare"), python-docs,
            a file, a folder, a glob, or a URL ending in #sha256=<checksum>. Files are text (.txt, .md), or documents
            (.jsonl, .parquet), and may be packed (.gz, .zst). Many files far away are s3://…, gs://… or https://… with
            a glob or {000..127}; a Hugging Face data set is hf://name?config=…&split=train&revision=….
        tokenizer: What a token is: char (one character), bpe (byte-level, trained on the training part), or the path
            of a tokenizer.json.
        vocab_size: Entries of the bpe vocabulary, at least 258. The other tokenizers have their own number.
        batch_size: Windows in a micro-batch, on each device.
        global_batch_size: Windows in an optimizer step, over all devices: gradients are accumulated over as many
            micro-batches as that takes; unset, it is what batch_size, the devices and
            trainer.accumulate_grad_batches give.
        seq_len: Tokens in a window, the context the model learns from; at most model.max_seq_len.
        val_fraction: Share of the text that is for validation and never trained on: its end, by bytes, or where
            data.split_by is document about this share of the documents. Not used where val_corpus is given.
        test_fraction: Share of the text just before the validation part, or of the documents, that is for testing; 0
            for no test split.
        val_corpus: Text for validation in place of the end of corpus; anything that corpus takes.
        test_corpus: Text for testing in place of a part of corpus; anything that corpus takes.
        split_by: tail: the text's end is for validation; document: each document goes where a checksum of its text
            says, which never moves when files are added, and the documents are shuffled; auto: document where the
            corpus holds documents (.jsonl, .parquet, hf://), tail for text files.
        text_field: Field of a .jsonl, .parquet or hf:// document that holds its text.
        bpe_sample_bytes: Bytes of the training part that a bpe tokenizer is trained on, taken from all over it; a
            shorter one is used whole.
        prepare_processes: Processes that tokenise a corpus of documents; 0 takes one for each CPU. It does not change
            the token ids.
        num_workers: Processes that read batches ahead, on each device; 0 reads in the training process, which takes
            microseconds a batch.
        cache_dir: Folder for downloads and token ids; unset, it is $TINYTF_CACHE, else ~/.cache/tinytf.
        seed: Chooses the order of the training windows; the same seed gives the same batches.
    """

    def __init__(
        self,
        corpus: str = "shakespeare",
        tokenizer: str = "char",
        vocab_size: int = 8192,
        batch_size: int = 16,
        global_batch_size: int | None = None,
        seq_len: int = 256,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        val_corpus: str | None = None,
        test_corpus: str | None = None,
        split_by: str = "auto",
        text_field: str = "text",
        bpe_sample_bytes: int = BPE_SAMPLE_BYTES,
        prepare_processes: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        least = {"batch_size": 1, "seq_len": 1, "num_workers": 0, "global_batch_size": 1}
        _require_at_least(least, batch_size, seq_len, num_workers, global_batch_size)
        self.settings = TextSettings(
            corpus, tokenizer, vocab_size, val_fraction, test_fraction, val_corpus, test_corpus, cache_dir,
            split_by, text_field, bpe_sample_bytes, prepare_processes,
        )  # fmt: skip
        self.global_batch_size = global_batch_size
        self.batch_size, self.seq_len, self.num_workers, self.seed = batch_size, seq_len, num_workers, seed
        self._given: Tokenizer | None = None
        self._prepared: Prepared | None = None
        # Position: samples consumed before the attempt that was resumed last, and batches Lightning counted then.
        self._samples_before = 0
        self._batches_before = 0

    def use_tokenizer(self, json_text: str) -> None:
        """Encode with this tokenizer, the one a checkpoint carries, whatever the settings say.

        Raises:
            UserError: where it is none.
        """
        self._given = tokenizer_from_text(json_text, "of the checkpoint")
        self._prepared = None

    def prepare_data(self) -> None:
        """Build on disk what is not there yet. Lightning calls it on one process of each machine."""
        self._build()

    def setup(self, stage: str | None = None) -> None:
        """Open what is on disk, and refuse a split that holds no window."""
        store = self._build().store
        for name, count in store.tokens.items():
            require_window(name, count, self.seq_len)

    def _build(self) -> Prepared:
        if self._prepared is None:
            self._prepared = prepare(self.settings, self._given)
        return self._prepared

    @property
    def prepared(self) -> Prepared:
        """What `prepare_data` built; RuntimeError before that."""
        if self._prepared is None:
            raise RuntimeError("call prepare_data() and setup() first")
        return self._prepared

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that is used: trained, given by a file, or a checkpoint's own."""
        return self.prepared.tokenizer

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer that is used, which for char and files is not the setting."""
        self.setup()
        return int(self.tokenizer.get_vocab_size())

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the data is, in plain types: corpus, checksums, splits, sizes."""
        return dict(self.prepared.fingerprint)

    def split(self, name: str) -> TokenIds:
        """The token ids of ``train``, ``val`` or ``test``, [tokens], memory-mapped."""
        if name not in self.prepared.store.tokens:
            raise UserError(
                f"there is no {name} split: ask for one with --data.{name}_fraction 0.05 or --data.{name}_corpus FILE"
            )
        return self.prepared.store.split(name)

    @property
    def bytes_per_token(self) -> dict[str, float]:
        """UTF-8 bytes per token of each split, on average: what turns nats per token into bits per byte."""
        self.setup()
        store = self.prepared.store
        return {name: store.bytes[name] / count for name, count in store.tokens.items()}

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world = self._place()
        batches = TrainBatches(
            self.split("train"), self.batch_size, self.seq_len, self.seed, rank, world, self._samples_before
        )
        return self._loader(batches, CountFrom(0))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._in_order("val")

    def _in_order(self, name: str) -> DataLoader[Batch]:
        batches = EvalBatches(self.split(name), self.batch_size, self.seq_len, *self._place(), name=name)
        return self._loader(batches, range(batches.count))

    def _loader(self, batches: Dataset[Batch], order: CountFrom | Sequence[int]) -> DataLoader[Batch]:
        return DataLoader(
            batches,
            batch_size=None,
            sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=leave_signals_to_the_trainer,
            pin_memory=self._on_cuda(),
        )

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _on_cuda(self) -> bool:
        return self.trainer is not None and torch.device(self.trainer.strategy.root_device).type == "cuda"

    def state_dict(self) -> dict[str, int]:
        """The position in the training stream. ``samples`` is true on any number of devices."""
        batches, _, world = self._batches_done(), *self._place()
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


def _require_at_least(least: dict[str, int], *values: int | None) -> None:
    wrong = [
        f"data.{name} is {value}: it must be at least {least[name]}"
        for name, value in zip(least, values, strict=True)
        if value is not None and value < least[name]
    ]
    if wrong:
        raise UserError(*wrong)
