"""vLLM serves the repository as it is: the greedy tokens of `chat()`. Run by `make serving-test`.

It runs in an environment of its own (.vllm), which has vLLM's CPU build and the `openai` client;
the default test suite does not collect it. The server is a real one on loopback, with the nano
checkpoint in float32, or another one of that shape (`make serving-test MODEL=runs/finetune/model`).

vLLM computes with other kernels and in other batches than transformers, so that logits differ by
rounding. Answers are the same unless two tokens are as good as each other (tests/greedy.py).
"""

import asyncio
import base64
import functools
import json
import os
import random
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
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from remote_code import conversation
from tests import cpu_processes, greedy

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / os.environ.get("MODEL", "nano")
END = json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"]
PICTURES = {path.stem: path for path in (ROOT / "examples" / "images").glob("*.png")}
CALCULATE = "What is the result of the calculation in the image?"
COUNT = "How many shapes are in the image?"
MAX_TOKENS = 128
# Of vLLM in a process of its own
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
CLIENT = str(ROOT / ".venv" / "bin" / "python")  # has EvalScope, which vLLM's environment has not
SERVER = (
    "--trust-remote-code",
    "--enforce-eager",
    *("--dtype", "float32"),
    *("--max-model-len", "4096"),
    *("--max-num-seqs", "16"),
    *("--reasoning-parser", "deepseek_r1"),
    *("--limit-mm-per-prompt", '{"image": 4}'),
    *("--served-model-name", "nano"),
)

# Of each conversation: (system message, turns of (question, pictures), whether it thinks). Earlier
# answers are the model's own.
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
def ask():
    """`greedy.ask` of the model in transformers."""
    model = AutoModel.from_pretrained(MODEL, dtype=torch.float32, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)
    return functools.partial(greedy.ask, model, tokenizer, max_new_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def expected(ask):
    """For each conversation: OpenAI messages, and the last answer of `chat()`."""
    results = {}
    for name, (system, turns, thinking) in CONVERSATIONS.items():
        messages = [{"role": "system", "content": system}] if system else []
        history = None
        pictures = []
        for question, names in turns:
            pictures = pictures + [str(PICTURES[picture]) for picture in names]
            answer = ask(
                pictures or None,
                question,
                history=history,
                system_message=system,
                mode="think" if thinking else "no-think",
            )
            history = answer.history
            parts = [*map(image_part, names), {"type": "text", "text": question}]
            messages += [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": answer.text},
            ]
        results[name] = (messages[:-1], answer)
    return results


def assert_same_answer(thinking, answer, expected):
    """Check a thinking and an answer that came apart against an answer of `chat()`."""
    found = (thinking.strip(), answer.strip())
    if found != conversation.split_thinking(expected.text):
        greedy.assert_same_text("{}\n</think>\n\n{}".format(*found), expected)


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
    environment = {**ENVIRONMENT, "VLLM_NO_USAGE_STATS": "1"}
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
    messages, answer = expected[name]
    client = openai.OpenAI(base_url=server, api_key="none")
    choice = client.chat.completions.create(messages=messages, **options_of(name)).choices[0]
    greedy.assert_same_tokens(choice.token_ids, answer, ignored=(END,))
    if CONVERSATIONS[name][2]:  # the parser takes thinking and answer apart
        assert_same_answer(choice.message.reasoning or "", choice.message.content or "", answer)
    assert choice.finish_reason == "stop"


def test_stream_takes_thinking_and_answer_apart(server, expected):
    messages, whole = expected["shapes"]
    client = openai.OpenAI(base_url=server, api_key="none")
    thinking = ""
    answer = ""
    for chunk in client.chat.completions.create(
        messages=messages, stream=True, **options_of("shapes")
    ):
        for choice in chunk.choices:
            thinking += getattr(choice.delta, "reasoning", None) or ""
            answer += choice.delta.content or ""
    assert thinking and answer
    assert_same_answer(thinking, answer, whole)


def test_64_requests_at_once(server, expected):
    """None is lost, and each answer is what it is alone."""
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
    for name, answer in zip(names, answers):
        greedy.assert_same_tokens(answer.choices[0].token_ids, expected[name][1], ignored=(END,))


# What a user may type: control tokens, whole or in halves, and an image's placeholder.
TYPED = [
    "</think>", "<think>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>",
    "<IMG_CONTEXT>", "<img>", "</img>", "<image>", "<|EOT|>", "<thi", "nk>", "a", "\n",
]  # fmt: skip


def typed_conversation(rng, with_image, harmless):
    """A conversation of every role whose texts are random, or the word "a"."""

    def text():
        words = "".join(rng.choices(TYPED, k=4))
        return "a" if harmless else words

    system, first, second, third, answer = (text() for _ in range(5))
    content = [{"type": "text", "text": first}, {"type": "text", "text": second}]
    if with_image:
        content.insert(1, image_part("calculation_1"))
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": content},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": third},
    ]


@pytest.mark.parametrize("with_image", [True, False])
def test_typed_control_tokens_are_text(server, with_image):
    """The server's prompt has the control tokens of the same conversation with harmless words.

    With an image, a typed `<image>` takes no picture's place.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)
    control = set(tokenizer.get_added_vocab().values())
    rng = random.Random(0)

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=server, api_key="none", timeout=300) as client:
            harmless = typed_conversation(rng, with_image, harmless=True)
            chats = [harmless, *(typed_conversation(rng, with_image, False) for _ in range(60))]
            calls = [
                client.chat.completions.create(
                    model="nano",
                    messages=messages,
                    max_tokens=1,
                    extra_body={"return_token_ids": True},
                )
                for messages in chats
            ]
            return await asyncio.gather(*calls)

    expected, *found = [
        [token for token in answer.prompt_token_ids if token in control]
        for answer in asyncio.run(ask_all())
    ]
    assert len(found) == 60
    assert all(tokens == expected for tokens in found)


def test_more_images_than_allowed_is_a_clear_error(server):
    content = [*[image_part("counting_1")] * 5, {"type": "text", "text": COUNT}]
    client = openai.OpenAI(base_url=server, api_key="none")
    with pytest.raises(openai.BadRequestError, match="4"):
        client.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": content}], max_tokens=4
        )


@pytest.mark.parametrize("kept", [["content"], ["content", "reasoning"]], ids=" and ".join)
def test_a_client_gives_earlier_answers_back(server, ask, kept):
    """With their thinking or, as most clients do, without.

    Then the thinking is closed, as `chat()` replays answers without thinking.
    """
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
    thinking = first.reasoning.strip() if "reasoning" in kept else ""
    history = [(f"<image>\n{COUNT}", f"{thinking}\n</think>\n\n{first.content.strip()}")]
    answer = ask(str(PICTURES["counting_1"]), "Count the shapes.", history=history)
    greedy.assert_same_tokens(second.token_ids, answer, ignored=(END,))


def nano_table(folder, *command):
    """{family: (right, judged, interval)} of a run of the evaluation, by the test packages."""
    line = [CLIENT, "-m", *command, "--count", "40", "--seed", "77", "--out", str(folder)]
    subprocess.run(line, cwd=ROOT, check=True)
    table = json.loads((folder / "results.json").read_text())["table"]
    return {line["label"]: line for line in table}


def test_evaluation_over_the_server_is_that_in_process(server, tmp_path):
    """Greedily as many answers are right; at a temperature the intervals of the scores overlap."""
    local = nano_table(tmp_path / "local", "evaluation.nano", "--model", str(MODEL))
    served = ["evaluation", "--api-url", server, "--model", "nano", "--benchmarks", "nano"]
    served += ["--max-new-tokens", "160", "--repetition-penalty", "1"]
    greedy_line = [*served, "--temperature", "0", "--repeats", "1"]
    greedily = nano_table(tmp_path / "greedy", *greedy_line)
    drawn = nano_table(tmp_path / "drawn", *served, "--temperature", "0.6", "--repeats", "2")
    for family, line in local.items():
        assert greedily[family]["right"] == line["right"], family
        assert greedily[family]["failed"] == drawn[family]["failed"] == 0
        ours, theirs = line["estimate"], drawn[family]["estimate"]
        assert ours["low"] <= theirs["high"] and theirs["low"] <= ours["high"], family


def test_offline_engine_equals_transformers(tmp_path, ask):
    """The JSONL path on vLLM and on transformers: the answers of `chat()`.

    A question that is too long gets an error of its own.
    """
    questions = tmp_path / "questions.jsonl"
    calculation, first, second = (
        str(PICTURES[name]) for name in ("calculation_1", "counting_1", "counting_2")
    )
    history = [["<image>\n" + COUNT, "x</think>y"]]
    lines = [
        {"question": "What is 12 + 34?"},
        {"question": CALCULATE, "images": [calculation]},
        {"question": "<image>\n<image>\n" + COUNT, "images": [first, second]},
        {"question": COUNT, "images": [second], "system": "Be brief."},
        {"question": "And?", "images": [first], "history": history},
        {"id": "too long", "question": "7 " * 4200},
    ]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = {}
    for number, line in enumerate(lines[:-1], 1):
        expected[str(number)] = ask(
            line.get("images"),
            line["question"],
            history=line.get("history"),
            system_message=line.get("system"),
        )
    for engine in ("vllm", "transformers"):
        answers = tmp_path / f"{engine}.jsonl"
        more = (
            ["--vllm-options", '{"enforce_eager": true, "max_model_len": 4096}']
            if engine == "vllm"
            else []
        )
        command = [sys.executable, "-m", "serving.offline", str(questions), str(answers)]
        command += ["--model", str(MODEL), "--engine", engine, "--dtype", "float32"]
        command += ["--max-new-tokens", str(MAX_TOKENS), *more]
        process = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT)
        records = [json.loads(line) for line in answers.read_text().splitlines()]
        (failed,) = (
            records.pop(index) for index, entry in enumerate(records) if entry["id"] == "too long"
        )
        assert process.returncode == 1 and "4096" in failed["error"]
        assert sorted(entry["id"] for entry in records) == sorted(expected)
        for entry in records:
            assert_same_answer(entry["thinking"], entry["answer"], expected[entry["id"]])


def test_offline_engine_draws_several_answers(tmp_path):
    """With a seed the second of three answers is the same alone, and no thinking is longer."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "What is 12 + 34?"}) + "\n")
    answers = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "serving.offline", str(questions), str(answers)]
    command += ["--model", str(MODEL), "--engine", "vllm", "--dtype", "float32"]
    command += ["--temperature", "1.5", "--answers", "3", "--seed", "7", "--thinking-budget", "8"]
    command += ["--vllm-options", '{"enforce_eager": true, "max_model_len": 4096}']
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True)
    drawn = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [entry["number"] for entry in drawn] == [0, 1, 2]
    assert len({entry["text"] for entry in drawn}) > 1
    tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)
    for entry in drawn:
        assert len(tokenizer(entry["thinking"], add_special_tokens=False)["input_ids"]) <= 8
    answers.write_text("".join(json.dumps(entry) + "\n" for entry in drawn if entry["number"] != 1))
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True)
    again = {entry["number"]: entry for entry in map(json.loads, answers.read_text().splitlines())}
    assert again[1]["text"] == drawn[1]["text"]


PENALTIES = """
import json, sys
from pathlib import Path
from serving.engines import VllmEngine
from serving.sampling import Sampling

sampling = Sampling(max_new_tokens=64, repetition_penalty=50.0)
options = {"enforce_eager": True, "max_model_len": 4096}
engine = VllmEngine(sys.argv[1], "float32", sampling, 1, 1, options)
shared = {"question": "What is 12 + 34?", "images": [], "system": None, "history": []}
questions = [
    {**shared, "id": "of the run", "number": 0},
    {**shared, "id": "its own", "number": 0, "repetition_penalty": 50.0},
    {**shared, "id": "none", "number": 0, "repetition_penalty": 1.0},
]
texts = {entry["id"]: entry["text"] for entry in engine.answers(questions)}
Path(sys.argv[2]).write_text(json.dumps(texts))
"""


def test_a_question_has_a_repetition_penalty_of_its_own(tmp_path, ask):
    """As distillation asks: in one call, and without a penalty the answer is that of `chat()`.

    The penalty is far from a sensible one, because nano writes the same under 2.
    """
    written = tmp_path / "texts.json"
    command = [sys.executable, "-c", PENALTIES, str(MODEL), str(written)]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True)
    texts = json.loads(written.read_text())
    assert texts["of the run"] == texts["its own"] != texts["none"]
    assert texts["none"] == ask(None, "What is 12 + 34?").text


GRPO_PROCESSES = [
    (1, 1, "one process"),
    (2, 1, "two that share the weights out, with a vLLM each"),
    (2, 2, "two that share the weights out, and vLLM's too"),
]


@pytest.mark.parametrize(
    "processes, together, reason", GRPO_PROCESSES, ids=[row[2] for row in GRPO_PROCESSES]
)
def test_grpo_generates_by_a_colocated_vllm(tmp_path, processes, together, reason):
    """vLLM has the weights of each step: both compute the same likelihoods of what it wrote.

    The questions come again at every step, so that embeddings of their images from before would be
    seen; and at this learning rate weights from before would be, too.
    """
    counting, pair = PICTURES["counting_1"], [PICTURES["pair_1a"], PICTURES["pair_1b"]]
    questions = [
        {"images": [str(counting)], "solution": "9", "text": f"<image>\n{COUNT}"},
        {
            "images": [str(path) for path in pair],
            "solution": "first",
            "kind": "text",
            "text": "<image>\n<image>\nWhich image shows more shapes, the first or the second?",
        },
        {"images": [], "solution": "46", "text": "What is 12 + 34?"},
    ]
    data = tmp_path / "data.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for question in questions:
            turns = [{"from": "human", "value": question.pop("text")}]
            file.write(json.dumps({**question, "conversations": turns}) + "\n")
    out = tmp_path / "grpo"
    options = {
        **{"config": "training/recipes/nano/grpo.yaml", "model": MODEL, "data": data},
        **{"output_dir": out, "max_steps": 3, "per_device_train_batch_size": 24 // processes},
        **{"learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_steps": 0},
        **{"use_vllm": "true", "vllm_mode": "colocate", "save_strategy": "no"},
        **{"vllm_tensor_parallel_size": together, "beta": 0.01},
    }
    launcher = ()
    if processes > 1:
        launcher = cpu_processes.launcher(cpu_processes.sharded_config("fsdp", tmp_path, "no"))
    command = [sys.executable, *launcher, "-m", "tests.vllm_grpo"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    # Else each process takes the first core
    environment = {**ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)

    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    differences = [
        line["sampling/sampling_logp_difference/mean"]
        for line in log
        if "sampling/sampling_logp_difference/mean" in line
    ]
    assert len(differences) == 3 and max(differences) < 0.03
    before, after = (load_file(folder / "model.safetensors") for folder in (MODEL, out / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("mlp1.") for name in changed)
