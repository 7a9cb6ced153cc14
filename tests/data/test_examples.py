"""Prompts and completions from files to batches: what is learned, how often, and what is refused."""

from __future__ import annotations

import datetime
import itertools
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.shards import END, config_of
from tinytf.data.build import prepare
from tinytf.data.config import PreparedCorpus
from tinytf.data.datamodule import TextDataModule
from tinytf.data.examples import chat, sandbox
from tinytf.data.examples.packing import Packing, pack
from tinytf.data.tokenizer import byte_pair_tokenizer, character_tokenizer
from tinytf.data.windows import IGNORE_INDEX
from tinytf.errors import UserError
from tinytf.generation.conversation import Conversation

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {"prompt": f"{seed}.{n} " + "ask " * rng.randint(0, 6), "completion": f"{n}: " + "say so " * rng.randint(1, 5)}
        for n in range(count)
    ]


def conversations(count: int, seed: int = 0) -> list[dict[str, Any]]:
    turns = [("system", "be kind"), ("user", "how are you"), ("assistant", "well {}"), ("user", "bye {}"),
             ("assistant", "see you {}")]  # fmt: skip
    return [
        {"messages": [{"role": role, "content": text.format(f"{seed}.{n}")} for role, text in turns[: 3 + 2 * (n % 2)]]}
        for n in range(count)
    ]


def write(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer.json with the special tokens of ChatML, and the template beside it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = byte_pair_tokenizer(iter(["how are you well so bye see you be kind user assistant system " * 3]), 262)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    return str(folder / "tokenizer.json")


def examples_of(prepared: PreparedCorpus, split: str) -> list[tuple[str, str]]:
    """Of each example in the store: all of its text, and what of it is learned."""
    ids, learned = prepared.store.split(split), prepared.store.learned(split)
    found, at = [], 0
    for size, first in prepared.store.lengths(split).tolist():
        own, marks = ids[at : at + size], learned[at : at + size].astype(bool)
        assert marks.argmax() == first
        found.append(tuple(prepared.tokenizer.decode(part.tolist(), skip_special_tokens=False)
                           for part in (own, own[marks])))  # fmt: skip
        at += size
    assert at == len(ids)
    return found


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_store_gives_back_prompts_and_learns_completions(tokenizer: str, tmp_path: Path) -> None:
    records = pairs(60)
    write(tmp_path / "a.jsonl", records)
    prepared = prepare(config_of(tmp_path / "a.jsonl", tmp_path / "cache", tokenizer=tokenizer, vocab_size=262))
    found = [example for split in ("train", "val") for example in examples_of(prepared, split)]
    wanted = [(r["prompt"] + r["completion"] + END, r["completion"] + END) for r in records]
    assert Counter(found) == Counter(wanted)
    store = prepared.store
    assert sum(store.bytes.values()) == sum(len(r["completion"]) for r in records)
    assert store.learned_tokens == {split: int(store.learned(split).sum()) for split in ("train", "val")}
    # A prompt is encoded as generation encodes it: by itself.
    own = prepared.tokenizer.encode(records[0]["prompt"], add_special_tokens=False).ids
    ids = np.concatenate([store.split("train"), store.split("val")]).tolist()
    assert any(ids[i : i + len(own)] == own for i in range(len(ids)))


def test_without_a_prompt_the_text_begins_after_the_end_of_another(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": "", "completion": f"so {n}"} for n in range(30)])
    prepared = prepare(config_of(tmp_path / "a.jsonl", tmp_path / "cache"))
    assert all((text[: len(END)], text[len(END) :]) == (END, learned) for text, learned in examples_of(prepared, "val"))


def test_conversations_are_learned_from_the_assistant_alone(chat_tokenizer: str, tmp_path: Path) -> None:
    records = conversations(40)
    write(tmp_path / "a.jsonl", records)
    prepared = prepare(config_of(tmp_path / "a.jsonl", tmp_path / "cache", tokenizer=chat_tokenizer))
    found = Counter(example for split in ("train", "val") for example in examples_of(prepared, split))
    wanted = Counter()
    for record in records:
        turns = record["messages"]
        text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
        learned = "".join(f"{turn['content']}<|im_end|>\n" for turn in turns if turn["role"] == "assistant")
        wanted[text, learned] += 1
    assert found == wanted
    assert prepared.chat_template == CHATML
    special = prepared.tokenizer.token_to_id("<|im_end|>")
    assert special in prepared.store.split("val")


def test_a_template_that_rewrites_history_gives_an_example_per_answer() -> None:
    # As those do that leave the thoughts of earlier answers out.
    template = (
        "{% for m in messages %}<s>{{ m.role }}:{{ '(thinks)' if loop.last and m.role == 'assistant' }}{{ m.content }}"
        "</s>{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
    )
    turns = [{"role": role, "content": text} for role, text in
             (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]  # fmt: skip
    made = chat.Chat(template, ("<s>", "</s>")).examples(turns)
    assert made == (
        (("<s>user:a</s><s>assistant:", False), ("(thinks)b</s>", True)),
        (("<s>user:a</s><s>assistant:b</s><s>user:c</s><s>assistant:", False), ("(thinks)d</s>", True)),
    )


def test_the_number_of_processes_changes_nothing(
    chat_tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    for number in range(3):
        write(tmp_path / f"in/{number}.jsonl", conversations(20 + number, number))
    monkeypatch.setattr("tinytf.data.documents.SHARD_BYTES", 1000)
    made = []
    for processes in (1, 2):
        config = config_of(tmp_path / "in", tmp_path / f"{processes}", tokenizer=chat_tokenizer,
                           prepare_processes=processes)  # fmt: skip
        store = prepare(config).store
        made.append({path.name: path.read_bytes() for path in store.folder.iterdir()})
    assert made[0] == made[1]
    assert len(made[0]) == 7


# -- packing -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(1, 33))
def test_each_example_lies_in_one_window_whole(sizes: list[int], seq_len: int) -> None:
    packing = pack(np.array(sizes), seq_len)
    assert sorted(packing.starts.tolist()) == [sum(sizes[:i]) for i in range(len(sizes))]
    size_at = {sum(sizes[:i]): size for i, size in enumerate(sizes)}
    for start, length in zip(packing.starts.tolist(), packing.lengths.tolist(), strict=True):
        assert length == min(size_at[start] - 1, seq_len)
    used = [int(packing.lengths[a:b].sum()) for a, b in np.stack([packing.bounds[:-1], packing.bounds[1:]], 1)]
    assert all(0 < length <= seq_len for length in used)
    assert packing.cut == sum(size - 1 > seq_len for size in sizes)
    # First fit decreasing: a window, and the longest of a later one, do not fit together.
    firsts = [int(packing.lengths[a:b].max()) for a, b in np.stack([packing.bounds[:-1], packing.bounds[1:]], 1)]
    assert all(used[i] + firsts[j] > seq_len for i in range(len(used)) for j in range(i + 1, len(used)))
    assert same(packing, pack(np.array(sizes), seq_len))


def same(a: Packing, b: Packing) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("starts", "lengths", "bounds"))


# -- batches -------------------------------------------------------------------------------------------------------


def module(folder: Path, **changes: Any) -> TextDataModule:
    if not (folder / "a.jsonl").exists():
        write(folder / "a.jsonl", pairs(150))
    settings = {"corpus": str(folder / "a.jsonl"), "cache_dir": str(folder / "cache"), "batch_size": 2, "seq_len": 96}
    return TextDataModule(**{**settings, "prepare_processes": 1, **changes})


def texts_in(data: TextDataModule, batch: tuple[torch.Tensor, ...]) -> list[tuple[str, str]]:
    """Each example of a batch: what the model reads, and what it is to say."""
    found = []
    for tokens, targets, positions in zip(*batch, strict=True):
        begins = [*torch.nonzero(positions == 0).flatten().tolist(), len(tokens)]
        for start, end in itertools.pairwise(begins):
            learned = targets[start:end]
            learned = learned[learned != IGNORE_INDEX]
            if len(learned):
                found.append(tuple(data.tokenizer.decode(part.tolist(), skip_special_tokens=False)
                                   for part in (tokens[start:end], learned)))  # fmt: skip
    return found


def test_an_epoch_and_a_validation_hold_every_completion_once(tmp_path: Path) -> None:
    data = module(tmp_path)
    windows = int(data.windows_per_epoch)
    stream = module(tmp_path, batch_size=1).train_dataloader().dataset
    for split, batches in (
        ("train", [stream[k] for k in range(windows)]),  # type: ignore[index]
        ("val", list(data.val_dataloader())),
    ):
        examples = examples_of(data.prepared, split)
        found = [text for batch in batches for text in texts_in(data, batch)]
        assert Counter(found) == Counter((text.removesuffix(END), learned) for text, learned in examples)
        for tokens, _, positions in batches:
            padding = (tokens == 0) & (positions == 0)
            assert tokens.shape == positions.shape
            assert padding.sum() < tokens.numel()
    again = [stream[k] for k in range(windows, 2 * windows)]  # type: ignore[index]
    assert not all(torch.equal(a[0], stream[k][0]) for k, a in enumerate(again))  # type: ignore[index]


def test_a_resume_with_another_batch_size_continues_with_the_next_window(tmp_path: Path) -> None:
    alone = module(tmp_path, batch_size=1).train_dataloader().dataset
    later = module(tmp_path, batch_size=3)
    later.load_state_dict({"samples": 7, "batches": 4})
    batch = later.train_dataloader().dataset[1]  # type: ignore[index]
    expected = [alone[7 + 3 + i] for i in range(3)]  # type: ignore[index]
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(batch, zip(*expected, strict=True), strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_processes_give_the_same_batches(workers: int, tmp_path: Path) -> None:
    data = module(tmp_path, num_workers=workers)
    direct = list(module(tmp_path).val_dataloader())
    assert all(all(map(torch.equal, a, b)) for a, b in zip(data.val_dataloader(), direct, strict=True))


def test_what_is_cut_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = module(tmp_path, seq_len=36)
    n = len(data.prepared.store.lengths("train"))
    (line,) = [record.getMessage() for record in caplog.records if " train " in record.getMessage()]
    cut = int((data.prepared.store.lengths("train")[:, 0] > 37).sum())
    assert line.startswith(f"{cut} of the {n} train examples are longer than a window")
    (tokens, *_) = next(iter(data.val_dataloader()))
    assert tokens.shape == (2, 36)


def test_a_prompt_that_leaves_no_room_is_refused_by_file_and_line(tmp_path: Path) -> None:
    records = pairs(150)
    records[41]["prompt"] = "long " * 100
    write(tmp_path / "a.jsonl", records)
    with pytest.raises(UserError, match=r"a\.jsonl:42: its prompt has 500 tokens.*\(data\.seq_len\).*1 of 1 such"):
        _ = module(tmp_path).prepared


def test_damage_in_what_is_learned_is_found(tmp_path: Path) -> None:
    store = module(tmp_path).prepared.store
    path = store.folder / "train.learned.bin"
    before = path.read_bytes()
    path.write_bytes(bytes([1 - before[0]]) + before[1:])
    assert module(tmp_path).prepared.store.folder == store.folder
    assert path.read_bytes() == before


# -- documents kept apart ------------------------------------------------------------------------------------------


def test_positions_begin_again_after_each_document(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": f"{n} is a number" * (1 + n % 3)} for n in range(80)])
    data = module(tmp_path, mask_documents=True)
    end = data.tokenizer.token_to_id(END)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        tokens, targets, positions = next(iter(loader))
        for row, places in zip(tokens.tolist(), positions.tolist(), strict=True):
            expected, place = [], 0
            for token in row:
                expected.append(place)
                place = 0 if token == end else place + 1
            assert places == expected
        plain = next(iter((module(tmp_path).train_dataloader if loader.dataset.__class__.__name__ == "ShuffledWindows"
                           else module(tmp_path).val_dataloader)()))  # fmt: skip
        assert torch.equal(plain[0], tokens)
        assert torch.equal(plain[1], targets)


def test_one_text_has_no_documents_to_keep_apart(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("so it is said " * 200)
    one = write(tmp_path / "one.jsonl", [{"text": "so it is said " * 200}])
    for corpus, val in ((str(tmp_path / "a.txt"), None), ("python-docs", None), (str(one), str(one))):
        data = module(tmp_path, corpus=corpus, val_corpus=val, mask_documents=True)
        with pytest.raises(UserError, match=r"data\.mask_documents is true, but the corpus .* is one text"):
            data.vocab_size  # noqa: B018 - what a model is built with
        # How many documents records are is known once they are read.
        assert (tmp_path / "cache" / "tokens").exists() == (val is not None)


# -- what is refused -----------------------------------------------------------------------------------------------

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
REFUSED = {
    r"a\.jsonl:2: its fields are 'prompt', not 'completion'": {"prompt": "a"},
    r"a\.jsonl:2: its fields are 'completion', not 'prompt'": {"completion": "a"},
    r"a\.jsonl:2: its completion is empty": {"prompt": "a", "completion": ""},
    r"a\.jsonl:2: its field 'completion' holds null, not text": {"prompt": "a", "completion": None},
    r"a\.jsonl:2: its field 'prompt' holds \[.*\], not text": {"prompt": [USER], "completion": "a"},
    r"a\.jsonl:2: it holds a text, but the corpus begins with a prompt and its completion": {"text": "a"},
    r"a\.jsonl:2: it holds a conversation \(messages\), but": {"messages": [USER, ANSWER]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_records_that_are_refused(message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*pairs(1), REFUSED[message]])
    with pytest.raises(UserError, match=message):
        prepare(config_of(tmp_path / "a.jsonl", tmp_path / "cache"))


REFUSED_MESSAGES = {
    r"its messages are 'hi', not a list": "hi",
    r"its messages are \[\], not a list": [],
    r"message 1: 'hi', but it must be text": ["hi"],
    r"message 2: its role is null": [USER, {"content": "b"}],
    r"message 1: its content is \[.*\], but it must be text": [{"role": "user", "content": [{"type": "image"}]}],
    r"none of the role 'assistant'": [USER],
    r"message 2: the assistant's content is empty": [USER, {"role": "assistant", "content": ""}],
    r"message 1 holds the text of the special token '<\|im_end\|>'": [{**USER, "content": "a<|im_end|>b"}, ANSWER],
    r"message 1 holds the text of the special token '<\|im_start\|>'": [{**USER, "name": [["<|im_start|>"]]}, ANSWER],
    r"message 1: a text holds half a surrogate pair": [{**USER, "content": "\ud800"}, ANSWER],
}


@pytest.mark.parametrize("message", REFUSED_MESSAGES)
def test_conversations_that_are_refused(message: str, chat_tokenizer: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*conversations(1), {"messages": REFUSED_MESSAGES[message]}])
    with pytest.raises(UserError, match=r"a\.jsonl:2: .*" + message):
        prepare(config_of(tmp_path / "a.jsonl", tmp_path / "cache", tokenizer=chat_tokenizer))


def test_tools_are_refused_and_not_left_out(chat_tokenizer: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*conversations(1), {"messages": [USER, ANSWER], "tools": [{"name": "f"}]}])
    with pytest.raises(UserError, match=r"a\.jsonl:2: its tools are not read"):
        prepare(config_of(tmp_path / "a.jsonl", tmp_path / "cache", tokenizer=chat_tokenizer))


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_conversations_need_a_chat_template(tokenizer: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", conversations(40))
    with pytest.raises(UserError, match=rf"conversations \(messages\), .* the tokenizer {tokenizer} has none"):
        prepare(config_of(tmp_path / "a.jsonl", tmp_path / "cache", tokenizer=tokenizer, vocab_size=262))


TEMPLATES = {
    "": r"ends an assistant's turn with no special token",
    "{% if %}": r"the chat template fails at line 1: Expected an expression",
    "{{ raise_exception('no system\nmessage') }}": r"the chat template fails: no system message",
    "{{ 1 + 'a' }}": r"the chat template fails: unsupported operand",
    "{{ ().__class__.__bases__ }}": r"the chat template fails: access to attribute '__class__'",
    "{{ messages.append(1) }}": r"the chat template fails: access to attribute 'append'",
    "{{ 'a' * 10 ** 9 }}": r"the chat template fails: .* would be too large",
    "{% for i in range(40000) %}" + 500 * "a" + "{% endfor %}": r"writes more than",
    "{% for i in range(20000) %}{% for j in range(20000) %}{% endfor %}{% endfor %}": r"takes more than",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_that_are_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    tokenizer = character_tokenizer("ab", end_of_text=True)
    with pytest.raises(UserError, match=TEMPLATES[template]) as error:
        chat.Chat.of(template, tokenizer)
    assert "\n" not in str(error.value)


LOOPS = "{% for i in range(20000) %}{% for j in range(20000) %}{% endfor %}{% endfor %}"


def test_a_template_that_behaves_until_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    template = "{% if add_generation_prompt %}" + LOOPS + "{% endif %}{{ messages[-1].content }}<|endoftext|>"
    conversation = Conversation(template, character_tokenizer("ab", end_of_text=True))
    with pytest.raises(UserError, match="the chat template takes more than"):
        conversation.ask("a")


def test_other_threads_and_systems_without_a_timer_have_the_same_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    tokenizer = character_tokenizer("ab", end_of_text=True)

    def problem(template: str) -> str:
        try:
            return chat.Chat.of(template, tokenizer).end_of_turn()
        except UserError as error:
            return str(error)

    usual = "{{ messages[-1].content }}<|endoftext|>"
    expected = ["the chat template takes more than 0.2 seconds for one conversation", END, END]
    with ThreadPoolExecutor(4) as threads:  # Later renderings in a thread are not hit by what was raised in it before.
        assert list(threads.map(problem, [LOOPS, usual, usual] * 3)) == expected * 3
    monkeypatch.delattr("signal.setitimer")
    assert [problem(each) for each in (LOOPS, usual, usual)] == expected


def test_an_empty_answer_stays_one() -> None:
    template = "{% for m in messages %}[{{ m.content }}<|endoftext|>{% endfor %}"
    tokenizer = character_tokenizer("ab[", end_of_text=True)
    conversation = Conversation(template, tokenizer)
    conversation.add("a", "")
    ids = conversation.ask("b")
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"[a{END}[{END}[b{END}"


GROWTH = "{% set all = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set all.x = all.x ~ all.x %}{% endfor %}"


@pytest.mark.skipif(not sandbox.STATM.exists(), reason="memory is bounded on Linux alone")
@pytest.mark.parametrize("template", ["{{ 'a' | center(2000000000) }}", "{{ '%2000000000d' % 1 }}", GROWTH])
def test_a_template_cannot_fill_the_memory(template: str) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match="the chat template fails: MemoryError"):
        chat.Chat.of(template, character_tokenizer("ab", end_of_text=True))
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_template_renders_as_transformers_renders_it(tmp_path: Path) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    template = (
        "{{ bos_token }}{% for m in messages %}\n  {%- if loop.index > 3 %}{% break %}{% endif %}\n  {% generation %}\n"
        "{{ m.role }}{{ m.content | trim }}{{ {'é': '<'} | tojson }}{{ eos_token }}{% endgeneration %}\n{% endfor %}\n"
        "{% if add_generation_prompt %}assistant:{% endif %}{{ strftime_now('%Y') }}{{ tools is none }}"
    )
    config = {"chat_template": [{"name": "default", "template": template}], "bos_token": {"content": "<s>"},
              "eos_token": "</s>"}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = chat.read_chat_template(tmp_path)
    assert found is not None
    turns = [{"role": "system", "content": " <b> & 'c' \n"}, USER, ANSWER, {**USER, "content": "{{ d }}"}, ANSWER]
    today = datetime.datetime.now()
    for each in (found, CHATML):
        for count, asked in itertools.product(range(1, 6), (True, False)):
            ours = chat.Chat(each, ()).render(turns[:count], add_generation_prompt=asked, today=today)
            original = template if each == found else CHATML
            (theirs,), _ = utils.render_jinja_template(
                [turns[:count]], chat_template=original, add_generation_prompt=asked, bos_token="<s>", eos_token="</s>"
            )
            assert ours == theirs
    assert chat.Chat(found, ()).render([USER], add_generation_prompt=False).endswith("2024True")


def test_parquet_and_text_field(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(pairs(40)), tmp_path / "a.parquet")
    store = prepare(config_of(tmp_path / "a.parquet", tmp_path / "cache")).store
    assert store.examples is not None
    assert sum(store.examples.values()) == 40
    # A text that is asked for by name is a text, whatever stands beside it.
    store = prepare(config_of(tmp_path / "a.parquet", tmp_path / "cache", text_field="completion")).store
    assert store.examples is None
    with pytest.raises(UserError, match=r"its fields are 'prompt', 'completion', not 'body': set --data\.text_field"):
        prepare(config_of(tmp_path / "a.parquet", tmp_path / "cache", text_field="body"))
