"""Shown text is never taken back, whole in the end, and stops where it should however the tokens fall."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models

from tests.cli.tiny_checkpoint import ACCENTS, TEXT, tokenizer_of
from tinytf.cli.generate import Printer
from tinytf.data.tokenizer import encode
from tinytf.generation.streaming import Completion, StopGate, TextStream


def streamed(tokenizer, prompt, new):
    stream = TextStream(tokenizer, prompt)
    return [*(stream.add(token) for token in new), stream.finish()]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_pieces_join_to_the_text(kind):
    tokenizer = tokenizer_of(kind)
    text = ACCENTS if kind == "char" else ACCENTS + "\ufffd"
    assert "".join(streamed(tokenizer, encode(tokenizer, TEXT), encode(tokenizer, text))) == text


def test_a_character_split_over_tokens_comes_whole():
    tokenizer = tokenizer_of("bpe")
    ids = encode(tokenizer, "a😀b")
    assert len(ids) == 6
    assert streamed(tokenizer, encode(tokenizer, "R"), ids) == ["a", "", "", "", "😀", "b", ""]


def test_any_bytes_stream_to_what_they_decode_to_at_once():
    tokenizer = tokenizer_of("bpe")
    draw = random.Random(0)
    prompt = encode(tokenizer, "Romeo é")
    before = tokenizer.decode(prompt, skip_special_tokens=False)
    for _ in range(300):
        ids = draw.choices(range(tokenizer.get_vocab_size()), k=draw.randrange(1, 25))
        expected = tokenizer.decode(prompt + ids, skip_special_tokens=False)[len(before) :]
        assert "".join(streamed(tokenizer, prompt, ids)) == expected


def test_an_unfinished_character_is_shown_when_the_text_ends():
    tokenizer = tokenizer_of("bpe")
    ids = encode(tokenizer, "😀")[:2]
    assert streamed(tokenizer, [0], ids) == ["", "", "\ufffd"]


def test_a_decoder_that_strips_the_first_space_loses_none():
    vocabulary = {"▁the": 0, "▁sun": 1, "s": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="s"))
    tokenizer.decoder = decoders.Metaspace()
    assert streamed(tokenizer, [0], [1, 2, 0, 1]) == [" sun", "s", " the", " sun", ""]


def through(stops, pieces):
    gate, shown = StopGate(stops), ""
    for piece in pieces:
        shown += gate.add(piece)
        if gate.closed:
            return shown, True
    return shown + gate.finish(), False


def reference(stops, text):
    """Letter by letter: the text is over once it ends in a stop string."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def test_the_cut_does_not_depend_on_how_the_text_comes_in_pieces():
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices("ab\n", k=draw.randrange(12)))
        stops = ["".join(draw.choices("ab\n", k=draw.randrange(1, 5))) for _ in range(draw.randrange(4))]
        cuts = sorted(draw.choices(range(len(text) + 1), k=3))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert through(stops, pieces) == reference(stops, text), (stops, pieces)


def test_what_may_become_a_stop_is_held_back_and_nothing_else():
    gate = StopGate(["\n\nJULIET"])
    assert [gate.add(piece) for piece in ("sun\n", "\nJUL", "IA, \n")] == ["sun", "", "\n\nJULIA, "]
    assert gate.finish() == "\n"


def sample_of(tokenizer, prompt, stops=(), end=None):
    ends = {} if end is None else {end: "end_of_text"}
    return Completion(1, TextStream(tokenizer, encode(tokenizer, prompt)), StopGate(stops), ends)


def test_a_stop_string_that_only_the_held_back_bytes_complete_still_cuts():
    tokenizer = tokenizer_of("bpe")
    sample = sample_of(tokenizer, "R", ["b\ufffd"])
    for token in encode(tokenizer, "ab") + encode(tokenizer, "😀")[:1]:
        sample.add(token)
    sample.close("length")
    assert (sample.text, sample.finish) == ("a", "stop")


def test_end_of_text_ends_a_sample_and_is_not_shown():
    tokenizer = tokenizer_of("bpe")
    sample = sample_of(tokenizer, "R", end=0)
    for token in [*encode(tokenizer, "sun"), 0]:
        sample.add(token)
    assert (sample.text, sample.finish, sample.tokens) == ("sun", "end_of_text", len(encode(tokenizer, "sun")))


def test_samples_are_shown_in_order_the_first_as_it_comes(capsys):
    tokenizer = tokenizer_of("char")
    first, second = sample_of(tokenizer, "R"), sample_of(tokenizer, "R")
    printer = Printer("R", [first, second])
    second.add(*encode(tokenizer, "O"))
    second.close("length")
    first.add(*encode(tokenizer, "M"))
    printer.show()
    assert capsys.readouterr().out == "--- sample 1 of 2, seed 1 ---\nRM"
    first.close("length")
    printer.show()
    assert capsys.readouterr().out == "\n--- sample 2 of 2, seed 1 ---\nRO\n"
