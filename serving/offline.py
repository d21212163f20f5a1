"""Answers a file of questions without a server: JSONL in, JSONL out, resumable.

    python -m serving.offline questions.jsonl answers.jsonl --model nano
    python -m serving.offline questions.jsonl answers.jsonl --model Skywork/Skywork-R1V-38B --tensor-parallel 4

A line in:  {"id": "7", "question": "What is this?", "images": ["a.jpg"], "system": "…", "history": [["Hi", "…"]]};
all but `question` may be missing; paths are relative to the file; without an id a line's number is its id.
A line out: {"id", "question", "thinking", "answer", "text", "tokens", "finish_reason", "max_new_tokens", "context"}
("stop", or "length" where one of the two limits cut the answer), or {"id", "question", "error"}.

On vLLM where it is installed (continuous batching); otherwise on transformers, in batches of questions that are as long
as each other. Run again after an interruption it answers what is missing; failed lines are tried again, and those that
were cut where there is more room now.
"""

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from preprocessor.image_loading import open_image
from remote_code import conversation, generation, transformers_compat

# Of one call of vLLM, which schedules within it: what is done before it is on disk, and its images are in memory
QUESTIONS_PER_CALL, IMAGES_PER_CALL = 256, 256


class LineError(ValueError):
    """A line of the input that cannot be asked; the message says which and why."""


def read_questions(path):
    """The questions of a JSONL file, checked, image paths made absolute.

    Raises:
        LineError: a line that is not JSON, has no question, an unknown key, a history or system message of another
            form, a repeated id, or names a missing image.
    """
    path, questions, ids = Path(path), [], set()
    known = {"id", "question", "images", "system", "history"}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise LineError(f"{where}: not JSON ({error}).") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("question"), str):
            raise LineError(f'{where}: expected an object with a "question".')
        if set(entry) - known:
            raise LineError(
                f"{where}: unknown {sorted(set(entry) - known)}; expected some of {sorted(known)}."
            )
        entry = {"id": str(number), "images": [], "system": None, "history": [], **entry}
        entry["images"] = (
            [entry["images"]] if isinstance(entry["images"], str) else entry["images"] or []
        )
        if not isinstance(entry["images"], list) or not all(
            isinstance(image, str) for image in entry["images"]
        ):
            raise LineError(
                f'{where}: "images" is {json.dumps(entry["images"])}; expected a list of paths.'
            )
        entry["history"] = entry["history"] or []
        try:
            conversation.checked_turns(entry["history"])
        except ValueError as error:
            raise LineError(f"{where}: {error}") from error
        if not isinstance(entry["system"], (str, type(None))):
            raise LineError(f'{where}: "system" is {json.dumps(entry["system"])}; expected a text.')
        entry["id"] = str(entry["id"])
        if entry["id"] in ids:
            raise LineError(f"{where}: the id {entry['id']!r} is there twice.")
        ids.add(entry["id"])
        entry["images"] = [str((path.parent / image).resolve()) for image in entry["images"]]
        missing = [image for image in entry["images"] if not Path(image).is_file()]
        if missing:
            raise LineError(f"{where}: no such image file: {missing[0]}.")
        questions.append(entry)
    return questions


def read_answers(path, questions):
    """What earlier runs have written, by id: of each question the last answer, or the error where there is none.

    The file is left with these lines only; what goes is half a line at its end, and errors and cut answers that an
    answer has replaced.

    Raises:
        LineError: a line that is no answer, or the answer to another question; the file stays as it is.
    """
    path = Path(path)
    if not path.exists():
        return {}
    asked, kept = {question["id"]: question["question"] for question in questions}, {}
    lines = path.read_text(encoding="utf-8").split(
        "\n"
    )  # splitlines() would cut at U+2028, which JSON may have
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # it was being written when the run was killed
                continue
            raise LineError(
                f"{path}, line {number}: not JSON ({error}); is this a file of answers?"
            ) from error
        if not isinstance(entry, dict) or not {"id", "question"} <= set(entry):
            raise LineError(
                f"{path}, line {number}: no answer of an earlier run. Write to another file."
            )
        if asked.get(entry["id"], entry["question"]) != entry["question"]:
            raise LineError(
                f"{path}, line {number}: answers {entry['question']!r}, but the question with the id {entry['id']!r} "
                f"is {asked[entry['id']]!r} now. Give the questions ids that stay, or write to another file."
            )
        if "error" not in entry or "error" in kept.get(entry["id"], entry):
            kept[entry["id"]] = entry
    temporary = path.with_name(path.name + ".tmp")
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept.values())
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return kept


def is_done(entry, max_new_tokens, context):
    """Whether a line need not be asked again: no error, and not cut by a limit that is higher now."""
    if "error" in entry or entry.get("finish_reason") != "length":
        return "error" not in entry
    if entry["tokens"] < entry.get("max_new_tokens", entry["tokens"]):  # the context ended before
        return entry["tokens"] >= max_new_tokens or (entry.get("context") or 0) >= (context or 0)
    return entry["tokens"] >= max_new_tokens


def record(question, text, tokens, finish_reason):
    """A line of the output, but for the limits of the run."""
    thinking, answer = conversation.split_thinking(text)
    return {
        "id": question["id"],
        "question": question["question"],
        "thinking": thinking,
        "answer": answer,
        "text": text,
        "tokens": tokens,
        "finish_reason": finish_reason,
    }


def failure(question, error):
    return {"id": question["id"], "question": question["question"], "error": str(error)}


class TransformersEngine:
    """`batch_chat`, in batches of questions with about as many image tiles and as long a text."""

    def __init__(self, model, dtype, batch_size, max_new_tokens, device=None):
        device_map = "split" if device is None and torch.cuda.is_available() else device
        self.model = AutoModel.from_pretrained(
            model, torch_dtype=getattr(torch, dtype), device_map=device_map, trust_remote_code=True
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True)
        template = conversation.get_conv_template(self.model.config.template)
        self.stops = {
            conversation.token_id(self.tokenizer, token) for token in template.stop_strings
        }
        self.batch_size = batch_size
        self.options = {"max_new_tokens": max_new_tokens, "do_sample": False}

    def answers(self, questions):
        """Records, as they come, in an order of their own."""
        ordered = sorted(
            questions, key=lambda q: (len(q["images"]), len(q["question"]) + len(str(q["history"])))
        )
        # A batch shares its system message
        groups = {}
        for question in ordered:
            groups.setdefault(question["system"], []).append(question)
        for system, group in groups.items():
            for start in range(0, len(group), self.batch_size):
                yield from self._batch(group[start : start + self.batch_size], system)

    def _batch(self, batch, system):
        written = generation.GenerationMonitor()
        try:
            texts = self.model.batch_chat(
                self.tokenizer,
                [question["images"] or None for question in batch],
                [question["question"] for question in batch],
                {**self.options, "stopping_criteria": [written]},
                history=[question["history"] for question in batch],
                system_message=system,
            )
        except (ValueError, OSError, torch.cuda.OutOfMemoryError) as error:
            # Its text alone: it holds the frames that it came through, and with them what they have in memory
            texts, refused = [], str(error)
        if not texts:  # one bad question, or one too large, must not cost the others their answer
            if len(batch) == 1:
                yield failure(batch[0], refused)
                return
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            for question in batch:
                yield from self._batch([question], system)
            return
        for question, text, ids in zip(batch, texts, written.ids.tolist()):
            ids = ids[transformers_compat.NUM_PREFIX_IDS :]
            length = next(
                (number for number, token in enumerate(ids, 1) if token in self.stops), None
            )
            reason = "length" if length is None else "stop"
            yield record(question, text, length or len(ids), reason)


def prompt_of(tokenizer, template, question):
    """Ids of the prompt that `chat()` would build, with the plain text `<image>` where vLLM puts an image's tokens.

    vLLM puts the first image where it first finds the ids of `<image>`. Where a system message or an earlier answer has
    the word and its ids in front of an image's place, the word is tokenized in two parts, which reads the same.
    """
    asked = conversation.add_image_placeholders(
        question["question"], question["history"], len(question["images"])
    )
    opened = conversation.open_conversation(
        template, asked, question["history"], question["system"] or ""
    )
    placeholder = tokenizer(conversation.IMAGE_PLACEHOLDER, add_special_tokens=False)["input_ids"]
    one_token = conversation.IMAGE_START + conversation.IMAGE_CONTEXT + conversation.IMAGE_END
    parts = [[]]
    for text, is_control in opened.segments([1] * len(question["images"])):
        if is_control and text == one_token:
            parts.append([])
        else:
            parts[-1].append((text, is_control))

    def join(encode):
        ids, places = [], []
        for number, part in enumerate(parts):
            if number:
                places.append(len(ids))
                ids += placeholder
            ids += encode(part, "" if number else opened.begin)
        return ids, places

    def in_two(segments, begin):
        halves = [[]]
        for text, is_control in segments:
            first, *others = re.split("(?<=<im)(?=age>)", text)
            halves[-1].append((first, is_control))
            halves += [[(other, is_control)] for other in others]
        first, *others = halves
        ids = conversation.encode_segments(tokenizer, first, begin)
        return ids + [
            token for half in others for token in conversation.encode_segments(tokenizer, half)
        ]

    ids, places = join(lambda part, begin: conversation.encode_segments(tokenizer, part, begin))
    if _found(placeholder, ids)[: len(places)] != places:
        ids, places = join(in_two)
    return ids


def _found(wanted, ids):
    """Where a list of ids occurs in another."""
    return [start for start in range(len(ids)) if ids[start : start + len(wanted)] == wanted]


def context_of(config, vllm_options):
    """Tokens of prompt and answer: the model's, or vLLM's `max_model_len`; None where that is no number ("32k", -1)."""
    asked = vllm_options.get("max_model_len", config.llm_config.max_position_embeddings)
    return asked if isinstance(asked, int) and asked > 0 else None


class VllmEngine:
    """vLLM's offline engine, which batches continuously."""

    def __init__(self, model, dtype, max_new_tokens, tensor_parallel, max_images, extra):
        import vllm

        config = AutoConfig.from_pretrained(model, trust_remote_code=True)
        processor = AutoImageProcessor.from_pretrained(model, trust_remote_code=True)
        try:
            from vllm.exceptions import VLLMClientError
        except ImportError:  # before 0.32, which refuses a request with a ValueError
            VLLMClientError = ValueError
        self.refusals = (ValueError, VLLMClientError)
        self.opening = (processor.apply_exif_orientation, processor.alpha)
        self.template = conversation.get_conv_template(config.template)
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True)
        self.llm = vllm.LLM(
            model=model,
            dtype=dtype,
            trust_remote_code=True,
            tensor_parallel_size=tensor_parallel,
            limit_mm_per_prompt={"image": max_images},
            **extra,
        )
        self.sampling = vllm.SamplingParams(temperature=0, max_tokens=max_new_tokens)

    def answers(self, questions):
        """Records, in calls of at most `QUESTIONS_PER_CALL` questions and, if that is several, `IMAGES_PER_CALL`."""
        prompts, asked, images = [], [], 0
        for question in questions:
            images += len(question["images"])
            if len(asked) == QUESTIONS_PER_CALL or (asked and images > IMAGES_PER_CALL):
                yield from self._generate(asked, prompts)
                prompts, asked, images = [], [], len(question["images"])
            try:
                prompts.append(self._prompt(question))
                asked.append(question)
            except (ValueError, OSError) as error:
                yield failure(question, error)
        yield from self._generate(asked, prompts)

    def _generate(self, questions, prompts):
        """Records of questions; where vLLM refuses one of them, each is asked alone."""
        if not questions:
            return
        try:
            outputs = self.llm.generate(prompts, self.sampling, use_tqdm=False)
        except self.refusals as error:
            if len(questions) == 1:
                yield failure(questions[0], error)
                return
            for question, prompt in zip(questions, prompts):
                yield from self._generate([question], [prompt])
            return
        for question, output in zip(questions, outputs):
            answer = output.outputs[0]
            yield record(question, answer.text.strip(), len(answer.token_ids), answer.finish_reason)

    def _prompt(self, question):
        prompt = {"prompt_token_ids": prompt_of(self.tokenizer, self.template, question)}
        if question["images"]:
            prompt["multi_modal_data"] = {
                "image": [open_image(path, *self.opening) for path in question["images"]]
            }
        return prompt


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--model", default=str(Path(__file__).resolve().parents[1] / "nano"))
    parser.add_argument("--engine", choices=("auto", "vllm", "transformers"), default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument(
        "--max-new-tokens", type=int, help="default: 8192, at most half of the model's context"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="on transformers")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs, on vLLM")
    parser.add_argument(
        "--vllm-options", type=json.loads, default={}, help="more arguments of vLLM's LLM, as JSON"
    )
    arguments = parser.parse_args()
    questions = read_questions(arguments.questions)
    config = AutoConfig.from_pretrained(arguments.model, trust_remote_code=True)
    longest = arguments.max_new_tokens or min(8192, config.llm_config.max_position_embeddings // 2)
    use_vllm = arguments.engine == "vllm" or (
        arguments.engine == "auto" and importlib.util.find_spec("vllm") is not None
    )
    context = context_of(config, arguments.vllm_options if use_vllm else {})
    limits = {"max_new_tokens": longest, "context": context}
    earlier = read_answers(arguments.answers, questions)
    done = {name for name, entry in earlier.items() if is_done(entry, **limits)}
    remaining = [question for question in questions if question["id"] not in done]
    if not remaining:
        print(f"All {len(questions)} questions are answered.", file=sys.stderr)
        return 0
    arguments.answers.open(
        "a", encoding="utf-8"
    ).close()  # an answer that cannot be written is not worth computing
    if use_vllm:
        most = max(1, max(len(question["images"]) for question in questions))
        engine = VllmEngine(
            arguments.model, arguments.dtype, longest, arguments.tensor_parallel, most,
            arguments.vllm_options,
        )  # fmt: skip
    else:
        engine = TransformersEngine(arguments.model, arguments.dtype, arguments.batch_size, longest)
    failed = 0
    try:
        with (
            arguments.answers.open("a", encoding="utf-8") as output,
            tqdm(
                total=len(questions), initial=len(questions) - len(remaining), unit="question"
            ) as progress,
        ):
            for entry in engine.answers(remaining):
                if "error" not in entry:
                    entry.update(limits)
                output.write(json.dumps(entry, ensure_ascii=False) + "\n")
                output.flush()
                failed += "error" in entry
                progress.update()
    finally:
        read_answers(arguments.answers, questions)  # one line for each question
    if failed:
        print(
            f"{failed} of {len(remaining)} questions failed; their lines say why.", file=sys.stderr
        )
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; run it again to go on")
