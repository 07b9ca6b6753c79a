"""The official OpenAI client (PyPI `openai`) against a running Tandem, unchanged.

Usage: openai_client_test.py BASE_URL [--api-key KEY] [--model NAME] [--set SET]
BASE_URL ends in /v1. Prints one line per check and exits 1 at the first that fails.
Sets of checks, by what the cluster is like: `plain` (no keys; every worker is there), `keys` (a file of
API keys holds KEY, scope infer) and `full` (no worker, and a queue of one job).
"""

import argparse
import asyncio
import json
import sys
import threading
import time
import urllib.request

import openai

CHECKS = {"plain": [], "keys": [], "full": []}


def check(function):
    CHECKS["plain"].append(function)
    return function


def check_of(name):
    return CHECKS[name].append


class Context:
    def __init__(self, base_url, api_key, model):
        self.base_url = base_url.rstrip("/")
        self.api_key = api_key
        self.client = openai.OpenAI(base_url=self.base_url, api_key=api_key)
        self.model = model or self.client.models.list().data[0].id

    def get(self, path):
        root = self.base_url[: -len("/v1")] if self.base_url.endswith("/v1") else self.base_url
        request = urllib.request.Request(root + path, headers={"authorization": f"Bearer {self.api_key}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())


    def pages_are_back(self):
        """Every block of every worker is free, or cached and evictable."""
        workers = self.get("/admin/cluster")["workers"]
        blocks = [worker["load"]["blocks"] for worker in workers]
        return all(one["total"] > 0 and one["free"] + one["evictable"] == one["total"] for one in blocks)


def raises(kind, call):
    """The error that a call ends in, which must be of this class."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"the call was taken, not refused with {kind.__name__}")


def wait_for(condition, seconds=20):
    """Polls until it is so; a limit on a hang, not a measurement."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@check
def models_are_listed_and_found(context):
    names = [model.id for model in context.client.models.list()]
    assert context.model in names, names
    assert context.client.models.retrieve(context.model).id == context.model


@check
def a_completion_has_text_usage_and_reason(context):
    answer = context.client.completions.create(
        model=context.model, prompt="Once upon a time", max_tokens=8, temperature=0
    )
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert 1 <= answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer._request_id


@check
def a_stream_gives_the_text_of_the_whole_answer(context):
    asked = dict(model=context.model, prompt="Once upon a time", max_tokens=24, temperature=0)
    whole = context.client.completions.create(**asked)
    pieces, usage, reason = [], None, None
    stream = context.client.completions.create(stream=True, stream_options={"include_usage": True}, **asked)
    for chunk in stream:
        if chunk.choices:
            pieces.append(chunk.choices[0].text)
            reason = chunk.choices[0].finish_reason or reason
        usage = chunk.usage or usage
    assert "".join(pieces) == whole.choices[0].text
    assert reason == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens


@check
def the_same_seed_gives_the_same_text(context):
    asked = dict(model=context.model, prompt="The old king", max_tokens=16, temperature=1, seed=7)
    first = context.client.completions.create(**asked).choices[0].text
    assert context.client.completions.create(**asked).choices[0].text == first


@check
def another_seed_gives_another_text(context):
    asked = dict(model=context.model, prompt="The old king", max_tokens=24, temperature=1)
    texts = {context.client.completions.create(seed=seed, **asked).choices[0].text for seed in range(4)}
    assert len(texts) > 1, texts


@check
def several_choices_of_one_seed_differ_and_repeat(context):
    asked = dict(model=context.model, prompt="The old king", n=3, max_tokens=24, temperature=1, seed=11)
    first = context.client.completions.create(**asked)
    texts = [choice.text for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2] and len(set(texts)) > 1, texts
    assert [choice.text for choice in context.client.completions.create(**asked).choices] == texts
    streamed = ["", "", ""]
    for chunk in context.client.completions.create(stream=True, **asked):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts
    lone = context.client.completions.create(**{**asked, "n": 1})
    assert first.usage.prompt_tokens == lone.usage.prompt_tokens
    assert first.usage.completion_tokens == 3 * 24 or any(c.finish_reason == "stop" for c in first.choices)


@check
def a_bias_forbids_a_token_and_forces_another(context):
    asked = dict(model=context.model, prompt="Once upon a time", max_tokens=6, temperature=0)
    root = context.base_url[: -len("/v1")]

    def tokens(text):
        request = urllib.request.Request(
            f"{root}/tokenize", data=json.dumps({"prompt": text}).encode(),
            headers={"authorization": f"Bearer {context.api_key}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())["tokens"]

    free = context.client.completions.create(**asked).choices[0].text
    barred = context.client.completions.create(logit_bias={str(tokens(free)[0]): -100}, **asked).choices[0].text
    assert tokens(barred)[0] != tokens(free)[0], (free, barred)
    wanted = tokens(" king")
    assert len(wanted) == 1, wanted
    forced = context.client.completions.create(logit_bias={str(wanted[0]): 100}, **asked).choices[0].text
    assert forced == " king" * 6, forced


@check
def several_choices_have_their_indices(context):
    answer = context.client.completions.create(
        model=context.model, prompt=["One", "Two"], n=2, max_tokens=4, echo=True, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(choice.text.startswith("One") for choice in answer.choices[:2])
    assert all(choice.text.startswith("Two") for choice in answer.choices[2:])


@check
def logprobs_come_in_the_shape_of_completions(context):
    answer = context.client.completions.create(
        model=context.model, prompt="Once upon", max_tokens=4, temperature=0, logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) >= 1
    assert all(value <= 0 for value in logprobs.token_logprobs)
    assert all(len(top) >= 2 for top in logprobs.top_logprobs)
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)
    greedy = [max(top, key=top.get) for top in logprobs.top_logprobs]
    assert greedy == logprobs.tokens, (greedy, logprobs.tokens)


@check
def a_stop_string_is_not_in_the_text(context):
    asked = dict(model=context.model, prompt="Once upon a time", max_tokens=32, temperature=0)
    text = context.client.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 :][:3]
    if not stop:
        return
    answer = context.client.completions.create(stop=[stop], **asked)
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 32
    streamed = context.client.completions.create(stop=[stop], stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


def chat_is_served(context):
    try:
        context.client.chat.completions.create(
            model=context.model, messages=[{"role": "user", "content": "Hi"}], max_tokens=1
        )
    except openai.BadRequestError as error:
        if error.code == "unsupported":
            return False
        raise
    return True


@check
def a_chat_streams_its_role_its_text_and_its_reason(context):
    if not chat_is_served(context):
        print("  (the model has no chat template)")
        return
    asked = dict(
        model=context.model,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me a story."}],
        max_completion_tokens=16,
        temperature=0,
    )
    whole = context.client.chat.completions.create(**asked)
    assert whole.choices[0].message.role == "assistant"
    role, text, reason = None, "", None
    for chunk in context.client.chat.completions.create(stream=True, **asked):
        delta = chunk.choices[0].delta
        role = delta.role or role
        text += delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    assert (role, text, reason) == ("assistant", whole.choices[0].message.content, whole.choices[0].finish_reason)
    scored = context.client.chat.completions.create(logprobs=True, top_logprobs=2, **asked)
    assert len(scored.choices[0].logprobs.content[0].top_logprobs) == 2
    assert scored.choices[0].message.content == whole.choices[0].message.content


@check
def a_chat_takes_what_the_context_leaves(context):
    card = context.client.models.retrieve(context.model)
    answer = context.client.chat.completions.create(
        model=context.model, messages=[{"role": "user", "content": "Tell me a story."}], seed=3,
    )
    usage = answer.usage
    if answer.choices[0].finish_reason == "length":
        assert usage.total_tokens == card.max_model_len, usage
    else:
        assert usage.total_tokens <= card.max_model_len, usage
    assert "<|" not in answer.choices[0].message.content


@check
def errors_have_their_classes(context):
    client = context.client.with_options(max_retries=0)
    for asked, kind, code, param in [
        (dict(model="no-such-model", prompt="a"), openai.NotFoundError, "model_not_found", "model"),
        (dict(prompt="a", temperature=-1), openai.BadRequestError, "invalid_value", "temperature"),
        (dict(prompt="a", max_tokens=2_000_000), openai.BadRequestError, "context_length_exceeded", "max_tokens"),
        (dict(prompt="a", n=1000), openai.BadRequestError, "invalid_value", "n"),
        (dict(prompt="a", suffix="b"), openai.BadRequestError, "unsupported", "suffix"),
    ]:
        try:
            client.completions.create(**{"model": context.model, **asked})
        except kind as error:
            assert error.code == code and error.param == param, (asked, error.body)
            assert error.request_id
        else:
            raise AssertionError(f"{asked} was taken")
    for messages, field in [([], "messages"), ([{"role": "user"}], "messages[0].content"),
                            ([{"role": "pilot", "content": "a"}], "messages[0].role")]:
        error = raises(
            openai.BadRequestError,
            lambda: client.chat.completions.create(model=context.model, messages=messages),
        )
        assert error.param == field and field in error.message, error.body
    error = raises(openai.APIStatusError, lambda: client.completions.create(model=context.model, prompt="a" * (9 << 20)))
    assert error.status_code == 413 and error.code == "request_too_large", error
    raises(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))


@check
def absent_routes_are_not_retried(context):
    client = context.client.with_options(max_retries=5)
    try:
        client.embeddings.create(model=context.model, input="a")
    except openai.InternalServerError as error:
        assert error.status_code == 501, error.status_code
        assert error.response.request.headers.get("x-stainless-retry-count", "0") == "0"
    else:
        raise AssertionError("embeddings were served")


@check
def a_timeout_leaves_the_job(context):
    before = context.get("/v1/jobs?limit=200")["data"]
    seen = {job["id"] for job in before}
    client = context.client.with_options(max_retries=0, timeout=0.001)
    try:
        client.completions.create(model=context.model, prompt="Once upon a time", max_tokens=64)
    except (openai.APITimeoutError, openai.APIConnectionError):
        pass

    def all_new_ended():
        jobs = [job for job in context.get("/v1/jobs?limit=200")["data"] if job["id"] not in seen]
        return all(job["phase"] == "finished" for job in jobs)

    assert wait_for(all_new_ended)
    assert wait_for(context.pages_are_back)


@check
def closing_a_stream_cancels_its_job(context):
    stream = context.client.completions.create(
        model=context.model, prompt="Once upon a time", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    job = stream.response.headers["x-tandem-job-id"]
    for _ in stream:
        break
    stream.close()
    assert wait_for(lambda: context.get(f"/v1/jobs/{job}")["phase"] == "finished")
    assert context.get(f"/v1/jobs/{job}")["status"] == "cancelled"
    assert wait_for(context.pages_are_back)


@check
def a_repeated_idempotency_key_joins_the_job(context):
    key = f"client-test-{time.time_ns()}"
    asked = dict(
        model=context.model, prompt="Once upon a time", max_tokens=8, extra_headers={"idempotency-key": key}
    )
    raw = context.client.completions.with_raw_response
    first, second = raw.create(**asked), raw.create(**asked)
    assert first.headers["x-tandem-job-id"] == second.headers["x-tandem-job-id"]
    assert first.parse().choices[0].text == second.parse().choices[0].text
    try:
        context.client.completions.create(**{**asked, "prompt": "Another"})
    except openai.ConflictError:
        pass
    else:
        raise AssertionError("another body under the same key was taken")


@check
def a_detached_job_can_be_followed_again(context):
    stream = context.client.completions.create(
        model=context.model, prompt="Once upon a time", max_tokens=16, temperature=0, stream=True,
        extra_headers={"x-tandem-on-disconnect": "continue"},
    )
    job = stream.response.headers["x-tandem-job-id"]
    stream.close()
    assert wait_for(lambda: context.get(f"/v1/jobs/{job}")["phase"] == "finished")
    assert context.get(f"/v1/jobs/{job}")["status"] in ("stop", "length")
    root = context.base_url[: -len("/v1")]
    request = urllib.request.Request(
        f"{root}/v1/jobs/{job}/events", headers={"authorization": f"Bearer {context.api_key}"}
    )
    text = ""
    with urllib.request.urlopen(request, timeout=20) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["text"]
    whole = context.client.completions.create(
        model=context.model, prompt="Once upon a time", max_tokens=16, temperature=0
    )
    assert text == whole.choices[0].text


@check
def many_threads_share_one_client(context):
    texts, failures = [], []

    def work():
        try:
            texts.append(
                context.client.completions.create(
                    model=context.model, prompt="Once upon a time", max_tokens=8, temperature=0
                ).choices[0].text
            )
        except Exception as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert len(set(texts)) == 1, set(texts)


@check
def the_asynchronous_client_cancels_too(context):
    async def run():
        async with openai.AsyncOpenAI(base_url=context.base_url, api_key=context.api_key) as client:
            stream = await client.completions.create(
                model=context.model, prompt="Once upon a time", max_tokens=200, stream=True,
                extra_body={"ignore_eos": True},
            )
            job = stream.response.headers["x-tandem-job-id"]
            async for _ in stream:
                break
            await stream.close()
            return job

    job = asyncio.run(run())
    assert wait_for(lambda: context.get(f"/v1/jobs/{job}")["phase"] == "finished")


@check_of("keys")
def keys_have_their_classes(context):
    client = context.client.with_options(max_retries=0)
    assert client.completions.create(model=context.model, prompt="Once", max_tokens=2).choices
    wrong = client.with_options(api_key="not-a-key")
    error = raises(openai.AuthenticationError, lambda: wrong.models.list())
    assert error.status_code == 401 and error.code == "invalid_api_key", error.body
    root = client.with_options(base_url=context.base_url[: -len("/v1")])
    error = raises(openai.PermissionDeniedError, lambda: root.get("/admin/cluster", cast_to=object))
    assert error.status_code == 403, error.body


@check_of("full")
def a_full_queue_is_a_rate_limit(context):
    client = context.client.with_options(max_retries=0, timeout=30)
    asked = dict(model=context.model, prompt="Once upon a time", max_tokens=2)
    first = client.completions.create(stream=True, **asked)
    job = first.response.headers["x-tandem-job-id"]
    error = raises(openai.RateLimitError, lambda: client.completions.create(**asked))
    assert error.response.headers["retry-after"] and error.code == "queue_full", error.body
    first.close()
    assert wait_for(lambda: context.get(f"/v1/jobs/{job}")["phase"] == "finished")
    client.completions.create(stream=True, **asked).close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model")
    parser.add_argument("--set", choices=list(CHECKS), default="plain")
    arguments = parser.parse_args()
    context = Context(arguments.base_url, arguments.api_key, arguments.model)
    for function in CHECKS[arguments.set]:
        name = function.__name__.replace("_", " ")
        try:
            function(context)
        except Exception as error:  # noqa: BLE001 - any failure fails the check
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
            return 1
        print(f"ok {name}", flush=True)
    print(f"{len(CHECKS[arguments.set])} checks with openai {openai.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
