"""vLLM serves the repository as it is: the same greedy tokens as `chat()`. Run by `make serving-test`.

Runs in an environment of its own (.vllm), where vLLM's CPU build and the `openai` client are; the default test suite
does not collect it. The server is a real one on loopback, with the nano checkpoint in fp32, or another one of that
shape (`make serving-test MODEL=runs/finetune/model`).
"""

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from remote_code import conversation, generation

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / os.environ.get("MODEL", "nano")
END = json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"]
PICTURES = {path.stem: path for path in (ROOT / "examples" / "images").glob("*.png")}
CALCULATE, COUNT = (
    "What is the result of the calculation in the image?",
    "How many shapes are in the image?",
)
MAX_TOKENS = 128
SERVER = (
    "--trust-remote-code", "--dtype", "float32", "--enforce-eager", "--max-model-len", "4096", "--max-num-seqs", "16",
    "--reasoning-parser", "deepseek_r1", "--limit-mm-per-prompt", '{"image": 4}', "--served-model-name", "nano",
)  # fmt: skip

# Each conversation: (system, turns of (question, pictures), thinking); earlier answers are the model's own
CONVERSATIONS = {
    "text": (None, [("What is 12 + 34?", [])], True),
    "a calculation": (None, [(CALCULATE, ["calculation_1"])], True),
    "another size": (None, [(CALCULATE, ["calculation_2"])], True),
    "shapes": (None, [(COUNT, ["counting_1"])], True),
    "a chart": (None, [("Which bar is the tallest?", ["chart_2"])], True),
    "two images": (
        None,
        [("Which image shows more shapes, the first or the second?", ["pair_1a", "pair_1b"])],
        True,
    ),
    "several images": (None, [(COUNT, ["counting_1", "counting_2", "calculation_1"])], True),
    "two turns": (None, [(CALCULATE, ["calculation_1"]), (COUNT, ["counting_2"])], True),
    "a second turn about the first image": (
        None,
        [(COUNT, ["counting_1"]), ("Count the shapes.", [])],
        True,
    ),
    "a system message": ("Be brief.", [(COUNT, ["counting_2"])], True),
    "without thinking": (None, [("What is 7 × 8?", [])], False),
}


@pytest.fixture(scope="module")
def expected():
    """For each conversation: OpenAI messages, generated ids, and the text of `chat()`."""
    model = AutoModel.from_pretrained(MODEL, dtype=torch.float32, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)
    results = {}
    for name, (system, turns, thinking) in CONVERSATIONS.items():
        messages = [{"role": "system", "content": system}] if system else []
        history, pictures = None, []
        for question, names in turns:
            pictures = pictures + [str(PICTURES[picture]) for picture in names]
            written = generation.GenerationMonitor()
            options = {
                "max_new_tokens": MAX_TOKENS,
                "do_sample": False,
                "stopping_criteria": [written],
            }
            answer, history = model.chat(
                tokenizer, pictures or None, question, options, history=history, return_history=True,
                system_message=system, mode="think" if thinking else "no-think",
            )  # fmt: skip
            parts = [*map(image_part, names), {"type": "text", "text": question}]
            messages += [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": answer},
            ]
        ids = [token for token in written.ids[0].tolist() if token != END]
        results[name] = (messages[:-1], ids, answer)
    return results


def image_part(name):
    data = base64.b64encode(PICTURES[name].read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a running `vllm serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(MODEL), *SERVER]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            cwd=ROOT.parent,
        )
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_until_ready(process, url, log, seconds=420):
    deadline = time.time() + seconds
    while time.time() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"vLLM did not start:\n{log.read_text()[-6000:]}")


def options_of(name):
    thinking = CONVERSATIONS[name][2]
    extra = {"return_token_ids": True, "chat_template_kwargs": {"enable_thinking": thinking}}
    return {"model": "nano", "temperature": 0, "max_tokens": MAX_TOKENS, "extra_body": extra}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_greedy_tokens_are_those_of_chat(server, expected, name):
    messages, ids, text = expected[name]
    client = openai.OpenAI(base_url=server, api_key="none")
    choice = client.chat.completions.create(messages=messages, **options_of(name)).choices[0]
    generated = [token for token in choice.token_ids if token != END]
    assert generated == ids
    thinking, answer = conversation.split_thinking(text, CONVERSATIONS[name][2])
    if CONVERSATIONS[name][2]:  # the parser takes thinking and answer apart
        apart = ((choice.message.reasoning or "").strip(), (choice.message.content or "").strip())
        assert apart == (thinking, answer)
    assert choice.finish_reason == "stop"


def test_stream_takes_thinking_and_answer_apart(server, expected):
    messages, _, text = expected["shapes"]
    client = openai.OpenAI(base_url=server, api_key="none")
    thinking, answer = "", ""
    for chunk in client.chat.completions.create(
        messages=messages, stream=True, **options_of("shapes")
    ):
        for choice in chunk.choices:
            thinking += getattr(choice.delta, "reasoning", None) or ""
            answer += choice.delta.content or ""
    assert (thinking.strip(), answer.strip()) == conversation.split_thinking(text)


def test_64_requests_at_once(server, expected):
    """None is lost, and each is what it is alone."""
    names = [list(CONVERSATIONS)[index % len(CONVERSATIONS)] for index in range(64)]

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=server, api_key="none", timeout=300) as client:
            calls = [
                client.chat.completions.create(messages=expected[n][0], **options_of(n))
                for n in names
            ]
            return await asyncio.gather(*calls)

    answers = asyncio.run(ask_all())
    assert len(answers) == 64
    wrong = [
        name
        for name, answer in zip(names, answers)
        if [token for token in answer.choices[0].token_ids if token != END] != expected[name][1]
    ]
    assert not wrong


def test_more_images_than_allowed_is_a_clear_error(server):
    content = [*[image_part("counting_1")] * 5, {"type": "text", "text": COUNT}]
    client = openai.OpenAI(base_url=server, api_key="none")
    with pytest.raises(openai.BadRequestError, match="4"):
        client.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": content}], max_tokens=4
        )


@pytest.mark.parametrize("kept", [["content"], ["content", "reasoning"]], ids=" and ".join)
def test_a_client_gives_earlier_answers_back(server, kept):
    """With their thinking or, as most do, without: then it is closed, as `chat()` replays answers without thinking."""
    client = openai.OpenAI(base_url=server, api_key="none")
    asked = {"role": "user", "content": [image_part("counting_1"), {"type": "text", "text": COUNT}]}
    first = (
        client.chat.completions.create(messages=[asked], **options_of("two turns"))
        .choices[0]
        .message
    )
    replayed = {"role": "assistant", **{name: getattr(first, name) for name in kept}}
    messages = [asked, replayed, {"role": "user", "content": "Count the shapes."}]
    second = client.chat.completions.create(messages=messages, **options_of("two turns")).choices[0]
    model = AutoModel.from_pretrained(MODEL, dtype=torch.float32, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)
    written, thinking = (
        generation.GenerationMonitor(),
        first.reasoning.strip() if "reasoning" in kept else "",
    )
    history = [(f"<image>\n{COUNT}", f"{thinking}\n</think>\n\n{first.content.strip()}")]
    options = {"max_new_tokens": MAX_TOKENS, "do_sample": False, "stopping_criteria": [written]}
    model.chat(
        tokenizer, str(PICTURES["counting_1"]), "Count the shapes.", options, history=history
    )
    assert [token for token in second.token_ids if token != END] == [
        t for t in written.ids[0].tolist() if t != END
    ]


def test_offline_engine_equals_transformers(tmp_path):
    """The JSONL path on vLLM and on transformers: the same lines, and an error of its own for one that is too long."""
    questions = tmp_path / "questions.jsonl"
    lines = [
        {"question": "What is 12 + 34?"},
        {"question": CALCULATE, "images": [str(PICTURES["calculation_1"])]},
        {"question": "<image>\n<image>\n" + COUNT, "images": [str(PICTURES[n]) for n in ("counting_1", "counting_2")]},
        {"question": COUNT, "images": [str(PICTURES["counting_2"])], "system": "Be brief."},
        {"question": "And?", "images": [str(PICTURES["counting_1"])], "history": [["<image>\n" + COUNT, "x</think>y"]]},
        {"id": "too long", "question": "7 " * 4200},
    ]  # fmt: skip
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outputs = {}
    for engine in ("vllm", "transformers"):
        answers = tmp_path / f"{engine}.jsonl"
        more = (
            ["--vllm-options", '{"enforce_eager": true, "max_model_len": 4096}']
            if engine == "vllm"
            else []
        )
        process = subprocess.run(
            [sys.executable, "-m", "serving.offline", str(questions), str(answers), "--model", str(MODEL),
             "--engine", engine, "--dtype", "float32", "--max-new-tokens", str(MAX_TOKENS), *more],
            cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        )  # fmt: skip
        records = [json.loads(line) for line in answers.read_text().splitlines()]
        (failed,) = (
            records.pop(index) for index, entry in enumerate(records) if entry["id"] == "too long"
        )
        assert process.returncode == 1 and "4096" in failed["error"]
        outputs[engine] = {entry["id"]: (entry["thinking"], entry["answer"]) for entry in records}
    assert outputs["vllm"] == outputs["transformers"] and len(outputs["vllm"]) == len(lines) - 1
