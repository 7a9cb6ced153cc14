"""OpenAI's own client against `tinytf serve`: what it gets is what the model gives."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch

import tinytf
from tests.serve.server import Server, write_run
from tinytf.data.tokenizer import encode
from tinytf.generation.conversation import Conversation
from tinytf.generation.sampling import Sampling
from tinytf.run.loading import TrainedModel

PROMPT = "It is the east"

pytestmark = pytest.mark.filterwarnings("ignore:the text is past max_seq_len")


@pytest.fixture(scope="module", name="folder")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder, "--ckpt_path", "best", "--max_batch", "4", "--max_queue", "100")
    yield server
    assert server.stop() == 143
    assert not [line for line in server.lines if "Traceback" in line], server.lines


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def model(folder: Path) -> TrainedModel:
    return tinytf.load("best", root=folder / "checkpoints", device="cpu")


def test_the_run_and_its_checkpoints_are_listed(client: openai.OpenAI, server: Server) -> None:
    found = {entry.id: entry.model_extra["tinytf"] for entry in client.models.list()}
    assert list(found) == ["toy", "toy@10", "toy@20"]
    assert [each["step"] for each in found.values()] == [30, 10, 20]
    assert [each["val_loss"] for each in found.values()] == [2.5, 3.5, 3.0]
    assert found["toy"]["facts"]["Context"] == "64 tokens"
    assert found["toy"]["chat"]
    assert client.models.retrieve("toy@10").id == "toy@10"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "model": "toy"}


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.8, "top_k": 20, "min_p": 0.01}, {}])
def test_a_completion_is_what_generate_gives(client: openai.OpenAI, model: TrainedModel, sampling: dict) -> None:
    """Past the context too, where both go on from its last half; whole, streamed, and by the text's ids."""
    settings = {"temperature": 1.0, **sampling}
    expected = model.generate(PROMPT, max_new_tokens=100, seed=3, **settings)
    extra = {name: value for name, value in settings.items() if name in ("top_k", "min_p")}
    asked = {"model": "toy", "max_tokens": 100, "seed": 3, "temperature": settings["temperature"], "extra_body": extra}
    whole = client.completions.create(prompt=PROMPT, echo=True, **asked)
    assert whole.choices[0].text == expected
    assert whole.usage.prompt_tokens == len(encode(model.tokenizer, PROMPT))
    stream = client.completions.create(prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **asked)
    chunks = list(stream)
    assert PROMPT + "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len(chunks) > 3
    by_ids = client.completions.create(prompt=encode(model.tokenizer, PROMPT), **asked)
    assert PROMPT + by_ids.choices[0].text == expected


def test_each_checkpoint_writes_its_own(client: openai.OpenAI, folder: Path) -> None:
    for step in (10, 20):
        path = next(folder.glob(f"checkpoints/toy/version_0/step-*{step}-*"))
        expected = tinytf.load(path, device="cpu").generate(PROMPT, temperature=0, max_new_tokens=20)
        found = client.completions.create(model=f"toy@{step}", prompt=PROMPT, temperature=0, max_tokens=20)
        assert PROMPT + found.choices[0].text == expected


def test_texts_that_come_and_go_together_are_those_they_are_alone(client: openai.OpenAI, model: TrainedModel) -> None:
    """Of 24 clients at once on four places, each with its own prompt, length, sampling and stop."""
    jobs = []
    for number in range(24):
        jobs.append({
            "prompt": PROMPT[: 1 + number % 14], "max_tokens": 5 + 7 * (number % 6), "seed": number,
            "temperature": [0.0, 1.0, 0.6][number % 3], "stop": ["e", "th"] if number % 5 == 0 else None,
        })  # fmt: skip

    def ask(job: dict) -> str:
        return str(client.completions.create(model="toy", **job).choices[0].text)

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(ask, jobs))
    for job, text in zip(jobs, found, strict=True):
        expected = "".join(model.stream(
            job["prompt"], Sampling(job["temperature"]), max_new_tokens=job["max_tokens"], seed=job["seed"],
            stop=job["stop"] or (),
        ))  # fmt: skip
        assert text == expected, job


def test_several_prompts_and_samples_are_numbered(client: openai.OpenAI, model: TrainedModel) -> None:
    found = client.completions.create(model="toy", prompt=["It", "Juliet"], n=2, seed=7, max_tokens=9)
    texts = [choice.text for choice in sorted(found.choices, key=lambda choice: choice.index)]
    expected = [
        model.generate(prompt, temperature=1.0, max_new_tokens=9, seed=seed)[len(prompt) :]
        for prompt in ("It", "Juliet") for seed in (7, 8)
    ]  # fmt: skip
    assert texts == expected
    without = client.completions.create(model="toy", prompt="It", max_tokens=9)
    seed = without.choices[0].model_extra["seed"]
    assert model.generate("It", temperature=1.0, max_new_tokens=9, seed=seed) == "It" + without.choices[0].text


def test_logprobs_are_the_models_own(client: openai.OpenAI, model: TrainedModel) -> None:
    found = client.completions.create(
        model="toy", prompt=PROMPT, max_tokens=8, temperature=0.5, seed=1, logprobs=3, echo=True
    ).choices[0]
    ids = found.logprobs.model_extra["token_ids"]
    with torch.no_grad():
        expected = model.model(torch.tensor([ids]))[0].double().log_softmax(-1)
    assert found.logprobs.token_logprobs[0] is None
    own = torch.tensor(found.logprobs.token_logprobs[1:], dtype=torch.float64)
    torch.testing.assert_close(own, expected[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0], atol=1e-4, rtol=0)
    _, likeliest = expected[:-1].topk(3)
    assert [
        [number for number, _, _ in place] for place in found.logprobs.model_extra["top_ids"][1:]
    ] == likeliest.tolist()
    assert "".join(found.logprobs.tokens) == found.text
    assert found.logprobs.text_offset == [len("".join(found.logprobs.tokens[:n])) for n in range(len(ids))]
    scored = client.completions.create(model="toy", prompt=PROMPT, max_tokens=0, logprobs=0, echo=True).choices[0]
    assert scored.text == PROMPT
    assert scored.logprobs.token_logprobs == pytest.approx(found.logprobs.token_logprobs[: len(scored.logprobs.tokens)])


def test_streamed_tokens_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    """With a stop string that is in sight for a while, and characters of several tokens."""
    asked = {
        "model": "toy",
        "prompt": "é €",
        "max_tokens": 60,
        "seed": 5,
        "temperature": 1.3,
        "logprobs": 1,
        "stop": "to",
    }
    whole = client.completions.create(**asked).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(stream=True, **asked)]
    tokens = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.tokens]
    offsets = [number for chunk in chunks if chunk.logprobs for number in chunk.logprobs.text_offset]
    assert (tokens, offsets) == (whole.logprobs.tokens, whole.logprobs.text_offset)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [whole.finish_reason]
    assert "".join(tokens).startswith(whole.text.rstrip("\ufffd"))


def test_a_chat_goes_by_the_template(client: openai.OpenAI, model: TrainedModel) -> None:
    messages = [{"role": "user", "content": "It"}, {"role": "assistant", "content": "is"},
                {"role": "user", "content": "the"}]  # fmt: skip
    conversation = Conversation(str(model.chat_template), model.tokenizer)
    ids = conversation.encode(messages)
    completion = model.start_completion(ids, 2, (), conversation.ends)
    for _ in model.generate_batch(ids, Sampling(1.0), [completion], 20, print):
        pass
    asked = {"model": "toy", "messages": messages, "seed": 2, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == completion.text
    assert whole.choices[0].finish_reason == ("length" if completion.finish == "length" else "stop")
    assert whole.usage.prompt_tokens == len(ids)
    assert "".join(each.token for each in whole.choices[0].logprobs.content).startswith(
        completion.text.rstrip("\ufffd")
    )
    assert [len(each.top_logprobs) for each in whole.choices[0].logprobs.content] == [2] * completion.tokens
    chunks = list(client.chat.completions.create(stream=True, **asked))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == completion.text


def test_what_is_wrong_is_named(client: openai.OpenAI) -> None:
    def refused(error: type[openai.APIStatusError], **more: object) -> str:
        with pytest.raises(error) as caught:
            client.completions.create(**{"model": "toy", "prompt": "It", "max_tokens": 2, **more})
        return str(caught.value.body["message"])

    assert "top_p is 2" in refused(openai.BadRequestError, top_p=2.0)
    assert "suffix: this server knows no such field" in refused(openai.BadRequestError, suffix="x")
    assert "frequency_penalty is 1" in refused(openai.BadRequestError, frequency_penalty=1.0)
    assert "has none of that name" in refused(openai.NotFoundError, model="../../etc/passwd")
    assert "max_seq_len" in refused(openai.BadRequestError, prompt="It is " * 90)
    assert "not below vocab_size" in refused(openai.BadRequestError, prompt=[1, 10**6])
    assert "asks for nothing" in refused(openai.BadRequestError, max_tokens=0)
    assert "at once" in refused(openai.BadRequestError, prompt=["It"] * 53, n=2)
    assert "stop" in refused(openai.BadRequestError, stop="")
    with pytest.raises(openai.BadRequestError, match="special token"):
        client.chat.completions.create(model="toy", messages=[{"role": "user", "content": "a<|im_end|>b"}])


def test_a_client_that_goes_frees_its_places(client: openai.OpenAI, server: Server) -> None:
    """Four that stream endlessly fill the places; when they hang up, another is answered long before they would end."""
    endless = {"model": "toy", "prompt": "It", "max_tokens": 60_000, "temperature": 0.1}
    streams = [client.completions.create(stream=True, **endless) for _ in range(4)]
    for stream in streams:
        next(iter(stream))
    with pytest.raises(httpx.ReadTimeout):  # And one that waits, for a whole answer.
        httpx.post(f"{server.url}/v1/completions", json=endless, timeout=0.5)
    assert 'tinytf_texts_running{model="toy"} 4.0' in httpx.get(f"{server.url}/metrics").text
    for stream in streams:
        stream.close()
    assert client.completions.create(model="toy", prompt="It", max_tokens=3).usage.completion_tokens <= 3
    for _ in range(100):
        metrics = httpx.get(f"{server.url}/metrics").text
        if 'tinytf_texts_running{model="toy"} 0.0' in metrics and 'tinytf_texts_waiting{model="toy"} 0.0' in metrics:
            return
    raise AssertionError(metrics)
