"""Stopping, streaming, thinking budgets, kept images: a plain call's answer, or its beginning.

Answers are compared for equality where the same kernels run on the same shapes: a stream, a budget
or a stop changes which steps are taken, and not how a step computes. Batches, other caches and
prompt lookup compute in other shapes; those are compared up to a tie (tests/comparison.py).
"""

import gc
import os
import threading
import time

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, TextStreamer

from benchmarks.measure import resident_memory
from remote_code import generation
from tests import checkpoints, comparison

IMAGES = checkpoints.ROOT / "examples" / "images"
CALCULATION, COUNTING = str(IMAGES / "calculation_1.png"), str(IMAGES / "counting_1.png")
GREEDY = {"max_new_tokens": 96, "do_sample": False}
LONG = {"max_new_tokens": 3000, "min_new_tokens": 3000, "do_sample": False}  # never ends by itself
CLOSING = "\n</think>\n\n"


@pytest.fixture(scope="module")
def plain(nano_model, nano_tokenizer):
    """The whole answer about a picture, and its thinking as tokens."""
    answer = nano_model.chat(nano_tokenizer, CALCULATION, "Calculate.", GREEDY)
    thinking = answer.split("</think>")[0]
    return answer, nano_tokenizer(thinking, add_special_tokens=False)["input_ids"]


class TestThinkingBudget:
    @pytest.mark.parametrize("budget, ids, scores_row, why", [
        (3, [1, 2], "free", "not yet spent"), (2, [1, 2], "closing 0", "spent now"),
        (1, [1, 5], "closing 1", "in the middle of closing"), (0, [5, 6], "free", "closed already"),
        (1, [1, 6], "free", "something else has closed it meanwhile"),
    ])  # fmt: skip
    def test_forces_by_the_ids_alone(self, budget, ids, scores_row, why):
        processor = generation.ThinkingBudget(budget, [5, 6], think_end_id=6)
        scores = torch.arange(8.0)[None]
        result = processor(torch.tensor([ids]), scores)
        if scores_row == "free":
            assert torch.equal(result, scores), why
        else:
            assert result.argmax() == [5, 6][int(scores_row[-1])] and result.isinf().sum() == 7, why

    def test_leaves_rows_alone_that_closed_by_themselves(self):
        processor = generation.ThinkingBudget(2, [5, 6], think_end_id=6)
        scores = torch.arange(8.0).repeat(2, 1)
        result = processor(torch.tensor([[1, 2], [1, 6]]), scores)
        assert result[0].argmax() == 5 and torch.equal(result[1], scores[1])

    def test_ignores_the_prompt(self):
        processor = generation.ThinkingBudget(1, [5], think_end_id=6, prompt_length=2)
        assert processor(torch.tensor([[6, 6, 1]]), torch.zeros(1, 8)).argmax() == 5

    @pytest.mark.parametrize("budget", [-1, 1.5, True, "12"])
    def test_rejects(self, budget):
        with pytest.raises(ValueError, match="thinking_budget"):
            generation.ThinkingBudget(budget, [5], 6)

    @pytest.mark.parametrize("budget", [0, 1, 7])
    def test_chat_keeps_the_thinking_that_fits_and_answers(
        self, nano_model, nano_tokenizer, plain, budget
    ):
        answer = nano_model.chat(
            nano_tokenizer, CALCULATION, "Calculate.", GREEDY, thinking_budget=budget
        )
        thinking, mark, final = answer.partition("</think>")
        assert mark and final.strip()
        assert thinking.strip() == nano_tokenizer.decode(plain[1][:budget]).strip()

    def test_larger_than_the_thinking_changes_nothing(self, nano_model, nano_tokenizer, plain):
        long = {**GREEDY, "max_new_tokens": 400}
        assert (
            nano_model.chat(nano_tokenizer, CALCULATION, "Calculate.", long, thinking_budget=200)
            == plain[0]
        )

    def test_batch_equals_single_calls(self, nano_model, nano_tokenizer):
        images, questions = (
            [CALCULATION, None, COUNTING],
            ["Calculate.", "What is 3 + 4?", "Count the shapes."],
        )
        batch = comparison.ask(
            nano_model.batch_chat, nano_tokenizer, images, questions, GREEDY, thinking_budget=9
        )
        singles = comparison.ask_each(
            nano_model, nano_tokenizer, images, questions, GREEDY, thinking_budget=9
        )
        comparison.assert_same_answers(singles, batch)
        assert all("</think>" in answer for answer in batch.texts)

    def test_with_the_callers_own_processor_and_config(self, nano_model, nano_tokenizer):
        config = GenerationConfig(**GREEDY)
        before = config.to_dict()
        answer = nano_model.chat(
            nano_tokenizer, CALCULATION, "Calculate.", config, thinking_budget=4
        )
        assert answer == nano_model.chat(
            nano_tokenizer, CALCULATION, "Calculate.", GREEDY, thinking_budget=4
        )
        assert config.to_dict() == before

    def test_no_think_has_nothing_to_close(self, nano_model, nano_tokenizer):
        asked = [nano_tokenizer, None, "What is 3 + 4?", GREEDY]
        assert nano_model.chat(*asked, mode="no-think", thinking_budget=2) == nano_model.chat(
            *asked, mode="no-think"
        )

    def test_without_room_for_the_answer(self, nano_model, nano_tokenizer):
        with pytest.raises(ValueError, match="no room for an answer"):
            nano_model.chat(nano_tokenizer, None, "Hi", {"max_new_tokens": 20}, thinking_budget=20)

    def test_without_room_within_max_length(self, nano_model, nano_tokenizer):
        with pytest.raises(ValueError, match="no room for an answer"):
            nano_model.chat(nano_tokenizer, None, "Hi", {"max_length": 120}, thinking_budget=110)

    def test_in_the_standard_class(self, nano_standard, nano_tokenizer):
        prompt = nano_tokenizer(
            "<｜User｜>\nWhat is 3 + 4?<｜Assistant｜><think>\n", return_tensors="pt"
        )
        end = nano_tokenizer.convert_tokens_to_ids("</think>")
        closing = nano_tokenizer(CLOSING, add_special_tokens=False)["input_ids"]
        length = prompt["input_ids"].shape[1]
        budget = generation.ThinkingBudget(5, closing, end, prompt_length=length)
        ids = nano_standard.generate(**prompt, **GREEDY, logits_processor=[budget])
        assert ids[0, length + 5 : length + 5 + len(closing)].tolist() == closing


class TestRepetitionLimit:
    """Passages that stand more often in a row than is allowed end the thinking or the answer."""

    CLOSING = [5, 6, 7]
    THINK_END = 6
    STOP = 9
    LOOP = [1, 2, 3, 4]

    def limit(self, max_repetitions=3, closing_ids=CLOSING, prompt_length=0):
        return generation.RepetitionLimit(
            max_repetitions, closing_ids, self.THINK_END, self.STOP, prompt_length
        )

    def next_of(self, limit, *rows):
        """The forced id of each row, or None."""
        scores = torch.arange(12.0).repeat(len(rows), 1)
        result = limit(torch.tensor(rows), scores)
        forced = []
        for row in result:
            forced.append(int(row.argmax()) if row.isinf().sum() == len(row) - 1 else None)
        return forced

    @pytest.mark.parametrize(("ids", "is_loop", "why"), [
        (LOOP * 28, True, "28 times the same four"),
        (LOOP * 24, False, "fewer than 100 tokens: tables and numbers have such"),
        ([8] * 112, True, "one token"),
        (list(range(112)), False, "no token twice"),
        (list(range(40)) * 4, True, "four times a passage of 40, where three are allowed"),
        (list(range(40)) * 3, False, "as often as is allowed"),
        ([99] * 7 + list(range(300)) * 4, True, "a long passage, behind something else"),
        (list(range(40)) * 4 + [50], False, "it has ended by itself"),
    ])  # fmt: skip
    def test_what_a_loop_is(self, ids, is_loop, why):
        assert self.limit().is_loop(ids) == is_loop, why

    def test_closes_the_thinking_token_by_token_and_then_is_silent(self):
        row = self.LOOP * 28  # 112 tokens, where it looks
        for forced in [*self.CLOSING, None, None]:
            assert self.next_of(self.limit(), row) == [forced]
            row = [*row, 11 if forced is None else forced]

    def test_looks_every_16_tokens(self):
        for more in range(1, 16):
            assert self.next_of(self.limit(), (self.LOOP * 40)[: 112 + more]) == [None]

    @pytest.mark.parametrize(("before", "closing", "why"), [
        ([6] + [8] * 15, CLOSING, "the thinking is closed"),
        ([], [], "there is no thinking"),
    ])  # fmt: skip
    def test_ends_the_answer(self, before, closing, why):
        row = [*before, *self.LOOP * 28]
        assert self.next_of(self.limit(closing_ids=closing), row) == [self.STOP], why

    def test_each_row_by_itself(self):
        rows = [self.LOOP * 28, list(range(112))]
        assert self.next_of(self.limit(), *rows) == [5, None]

    def test_the_prompt_does_not_count(self):
        row = [6] * 10 + self.LOOP * 28
        assert self.next_of(self.limit(prompt_length=10), row) == [5]

    def test_a_budget_leaves_a_closing_that_has_begun_alone(self):
        row = self.LOOP * 28
        budget = generation.ThinkingBudget(113, self.CLOSING, self.THINK_END)
        limit = self.limit()
        written = []
        for _ in range(6):
            scores = torch.zeros(1, 12)
            scores[0, 11] = 1.0  # what the model would write
            ids = torch.tensor([row])
            written.append(int(limit(ids, budget(ids, scores)).argmax()))
            row = [*row, written[-1]]
        assert written == [5, 6, 7, 11, 11, 11]

    @pytest.mark.parametrize("value", [1, 0, -3, 2.5, True, "4"])
    def test_rejects(self, value, nano_model, nano_tokenizer):
        with pytest.raises(ValueError, match="max_repetitions"):
            nano_model.chat(nano_tokenizer, None, "Hi", GREEDY, max_repetitions=value)

    @pytest.mark.parametrize("mode", ["think", "no-think"])
    def test_chat_ends_what_would_fill_the_context(self, nano_model, nano_tokenizer, mode):
        """A processor of the caller makes the model stammer until it may close its thinking."""
        word = nano_tokenizer(" shape", add_special_tokens=False)["input_ids"][0]
        end = nano_tokenizer.convert_tokens_to_ids("</think>")

        def stammer(input_ids, scores):
            if mode == "think" and (input_ids == end).any():
                return scores
            return generation.only(word, scores)

        options = {"do_sample": False, "max_new_tokens": 200, "logits_processor": [stammer]}
        endless = nano_model.chat(nano_tokenizer, None, "Hi", options, mode=mode)
        answer = nano_model.chat(nano_tokenizer, None, "Hi", options, mode=mode, max_repetitions=4)
        assert len(nano_tokenizer(endless)["input_ids"]) > 190
        repeated, closed, _ = answer.partition("</think>")
        assert len(nano_tokenizer(repeated)["input_ids"]) < 120
        assert bool(closed) == (mode == "think")

    def test_leaves_other_answers_alone(self, nano_model, nano_tokenizer):
        images = [CALCULATION, COUNTING]
        questions = ["Calculate.", "Count the shapes."]
        expected = comparison.ask(nano_model.batch_chat, nano_tokenizer, images, questions, GREEDY)
        limited = comparison.ask(
            nano_model.batch_chat, nano_tokenizer, images, questions, GREEDY, max_repetitions=2
        )
        assert limited.texts == expected.texts


class TestStopping:
    def test_stop_strings(self, nano_model, nano_tokenizer, plain):
        answer = nano_model.chat(
            nano_tokenizer, CALCULATION, "Calculate.", {**GREEDY, "stop_strings": ["</think>"]}
        )
        assert answer == plain[0][: plain[0].index("</think>") + len("</think>")]

    def test_max_time(self, nano_model, nano_tokenizer):
        start = time.time()
        answer = nano_model.chat(nano_tokenizer, None, "What is 3 + 4?", {**LONG, "max_time": 0.5})
        assert answer and time.time() - start < 5

    @pytest.mark.parametrize("batch", [False, True])
    def test_ctrl_c_keeps_what_was_written(self, nano_model, nano_tokenizer, plain, batch):
        class Interrupt(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                if input_ids.shape[1] > 12:
                    raise KeyboardInterrupt
                return torch.zeros(len(input_ids), dtype=torch.bool)

        def ask(options):
            if batch:
                questions = ["Calculate.", "What is 3 + 4?"]
                return nano_model.batch_chat(
                    nano_tokenizer, [CALCULATION, None], questions, options
                )
            return [nano_model.chat(nano_tokenizer, CALCULATION, "Calculate.", options)]

        whole = ask(GREEDY) if batch else [plain[0]]
        with pytest.raises(KeyboardInterrupt) as caught:
            ask({**GREEDY, "stopping_criteria": [Interrupt()]})
        answers = caught.value.answers
        assert len(answers) == len(whole) and all(len(answer) > 5 for answer in answers)
        assert all(one.startswith(beginning) for one, beginning in zip(whole, answers))

    def test_ctrl_c_before_the_first_token(self, nano_model, nano_tokenizer, monkeypatch):
        def interrupted(*arguments, **keywords):
            raise KeyboardInterrupt

        monkeypatch.setattr(type(nano_model), "extract_feature", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            nano_model.chat(nano_tokenizer, CALCULATION, "Calculate.", GREEDY)
        assert caught.value.answers == [""]

    def test_ctrl_c_gives_one_answer_for_each_question_with_beams(self, nano_model, nano_tokenizer):
        class Interrupt(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                if input_ids.shape[1] > 6:
                    raise KeyboardInterrupt
                return torch.zeros(len(input_ids), dtype=torch.bool)

        options = {**GREEDY, "num_beams": 3, "stopping_criteria": [Interrupt()]}
        with pytest.raises(KeyboardInterrupt) as caught:
            nano_model.batch_chat(
                nano_tokenizer, None, ["What is 3 + 4?", "What is 5 + 6?"], options
            )
        assert len(caught.value.answers) == 2 and "5 +" in caught.value.answers[1]


class TestStream:
    def test_leaving_the_loop_stops(self, nano_model, nano_tokenizer):
        threads = threading.active_count()
        stream = nano_model.chat_stream(nano_tokenizer, None, "What is 3 + 4?", LONG)
        for _ in stream:
            break
        assert threading.active_count() == threads and stream.answer
        assert stream.history is None, "the answer is not complete"

    def test_keywords_are_checked_before_it_starts(self, nano_model, nano_tokenizer):
        with pytest.raises(TypeError, match="thinking_budgets"):
            nano_model.chat_stream(nano_tokenizer, None, "Hi", GREEDY, thinking_budgets=3)
        with pytest.raises(ValueError, match="leave the keywords out"):
            nano_model.chat_stream(
                nano_tokenizer, None, "Hi", GREEDY, IMG_CONTEXT_TOKEN="<picture>"
            )

    def test_pieces_are_the_answer(self, nano_model, nano_tokenizer, plain):
        stream = nano_model.chat_stream(nano_tokenizer, CALCULATION, "Calculate.", GREEDY)
        pieces = list(stream)
        assert len(pieces) > 5 and "".join(pieces).strip() == plain[0] == stream.answer
        assert stream.history == [("<image>\nCalculate.", plain[0])]
        assert list(stream) == []

    def test_takes_what_chat_takes(self, nano_model, nano_tokenizer):
        keywords = {
            "history": [("Hi", "</think>Hello")],
            "system_message": "Be brief.",
            "thinking_budget": 3,
        }
        expected = nano_model.chat(nano_tokenizer, None, "What is 3 + 4?", GREEDY, **keywords)
        stream = nano_model.chat_stream(nano_tokenizer, None, "What is 3 + 4?", GREEDY, **keywords)
        assert "".join(stream).strip() == expected

    @pytest.mark.parametrize("how", ["close", "with", "drop"])
    def test_closing_ends_the_thread(self, nano_model, nano_tokenizer, how):
        stream = nano_model.chat_stream(nano_tokenizer, None, "What is 3 + 4?", LONG)
        assert next(stream)
        if how == "close":
            stream.close()
        elif how == "with":
            with stream:
                pass
        else:
            del stream
            gc.collect()
        deadline = time.time() + 10
        while (
            any(thread.name == "chat_stream" for thread in threading.enumerate())
            and time.time() < deadline
        ):
            time.sleep(0.05)
        assert not any(thread.name == "chat_stream" for thread in threading.enumerate())

    def test_errors_reach_the_reader(self, nano_model, nano_tokenizer):
        with pytest.raises(ValueError, match="mode='loud'"):
            list(nano_model.chat_stream(nano_tokenizer, None, "Hi", GREEDY, mode="loud"))

    def test_own_streamer_is_refused(self, nano_model, nano_tokenizer):
        options = {**GREEDY, "streamer": TextStreamer(nano_tokenizer)}
        with pytest.raises(ValueError, match="streamer"):
            nano_model.chat_stream(nano_tokenizer, None, "Hi", options)


class TestKeptImages:
    def test_same_answers_over_turns_and_encoded_once(
        self, nano_model, nano_tokenizer, monkeypatch
    ):
        """Up to a tie: kept images have been encoded one by one, and here both at once."""
        first, history = nano_model.chat(
            nano_tokenizer, CALCULATION, "Calculate.", GREEDY, return_history=True
        )
        images, question = [CALCULATION, COUNTING], "<image>\nHow many shapes?"
        second = comparison.ask(
            nano_model.chat, nano_tokenizer, images, question, GREEDY, history=history
        )
        kept = nano_model.encode_images(CALCULATION)
        both = kept + nano_model.encode_images([COUNTING])
        assert len(kept.num_patches) == 1 and len(both.num_patches) == 2
        with monkeypatch.context() as patches:
            patches.setattr(type(nano_model), "extract_feature", None)
            assert nano_model.chat(nano_tokenizer, kept, "Calculate.", GREEDY) == first
            again = comparison.ask(
                nano_model.chat, nano_tokenizer, both, question, GREEDY, history=history
            )
        comparison.assert_same_answers(second, again)

    def test_in_a_batch_and_a_stream(self, nano_model, nano_tokenizer):
        """Up to a tie: the batch encodes both images' tiles at once, and the stream is no batch."""
        kept = nano_model.encode_images(CALCULATION)
        questions = ["Calculate.", "What is 3 + 4?", "What is the result?"]
        images = [CALCULATION, None, CALCULATION]
        expected = comparison.ask(nano_model.batch_chat, nano_tokenizer, images, questions, GREEDY)
        batch = comparison.ask(
            nano_model.batch_chat, nano_tokenizer, [kept, None, kept], questions, GREEDY
        )
        comparison.assert_same_answers(expected, batch)
        stream = comparison.ask(nano_model.chat_stream, nano_tokenizer, kept, "Calculate.", GREEDY)
        comparison.assert_same_answers(expected.of(0), stream)

    @pytest.mark.parametrize("ask, reason", [
        (
            lambda model, kept: model.chat(None, kept, "?", {}, num_patches_list=[99]),
            "num_patches_list",
        ),
        (lambda model, kept: model.batch_chat(None, [kept, CALCULATION], ["?", "?"], {}), "mixes"),
        (lambda model, kept: model.encode_images(None), "No image"),
        (lambda model, kept: model.encode_images([]), "No image"),
    ])  # fmt: skip
    def test_contradictions(self, nano_model, ask, reason):
        kept = nano_model.encode_images(CALCULATION)
        with pytest.raises(ValueError, match=reason):
            ask(nano_model, kept)


@pytest.mark.parametrize("options, config, new", [
    ({"max_new_tokens": 8}, {}, 8), ({"max_length": 100}, {}, 70),
    ({}, {"max_length": 100}, 70), ({}, {}, None),
    ({"max_length": 8000}, {"max_new_tokens": 8}, 8),
    ({"max_new_tokens": 8}, {"max_length": 8000}, 8),
    ({}, {"max_length": 20}, None),  # transformers' own default
])  # fmt: skip
def test_how_long_an_answer_may_be(options, config, new):
    """After a prompt of 30 tokens; transformers lets max_new_tokens win wherever it stands."""
    assert generation.requested_new_tokens(options, GenerationConfig(**config), 30) == new


@pytest.mark.parametrize("question, options, reason", [
    ("Hi", {"cache_implementation": "static"}, "without a length.*Set max_new_tokens"),
    ("7 " * 4200, {"max_new_tokens": 1}, "shorten it"),
])  # fmt: skip
def test_what_exceeds_the_context_says_so_before_encoding(
    nano_model, nano_tokenizer, monkeypatch, question, options, reason
):
    monkeypatch.setattr(type(nano_model), "extract_feature", None)
    with pytest.raises(ValueError, match=reason):
        nano_model.chat(nano_tokenizer, CALCULATION, question, options)
    with pytest.raises(ValueError, match=reason):
        nano_model.chat(nano_tokenizer, CALCULATION, question, GenerationConfig(**options))


@pytest.mark.parametrize("as_config", [False, True])
@pytest.mark.parametrize("asked", [{"max_new_tokens": 64000}, {"max_length": 64000}])
def test_more_than_the_context_ends_with_it_and_says_so(
    nano_model, nano_tokenizer, caplog, asked, as_config
):
    """Scripts send one number to all models. The prompt here leaves room for some tokens only."""
    question = "7 " * 2030
    expected = nano_model.chat(nano_tokenizer, None, question, None)
    assert "context" not in caplog.text
    config = GenerationConfig(**asked) if as_config else dict(asked)
    answer = nano_model.chat(nano_tokenizer, None, question, config)
    assert answer == expected
    warnings = [record for record in caplog.records if "the model's context" in record.message]
    assert len(warnings) == 1
    assert "context of 4096: the answer ends after" in warnings[0].getMessage()


@pytest.mark.parametrize("name", ["IMG_START_TOKEN", "IMG_END_TOKEN", "IMG_CONTEXT_TOKEN"])
def test_other_image_tokens_are_refused(nano_model, nano_tokenizer, name):
    with pytest.raises(ValueError, match="image tokens"):
        nano_model.chat(nano_tokenizer, None, "Hi", GREEDY, **{name: "<picture>"})
    with pytest.raises(ValueError, match="image tokens"):
        nano_model.batch_chat(nano_tokenizer, None, ["Hi"], GREEDY, **{name: "<picture>"})


@pytest.mark.parametrize("config", [None, {"do_sample": False}, GenerationConfig(do_sample=False)])
def test_without_a_length_an_answer_may_take_the_rest_of_the_context(
    nano_model, nano_tokenizer, config
):
    """Not the 20 tokens at which transformers stops."""
    expected = nano_model.chat(nano_tokenizer, None, "What is 12 + 34?", GREEDY)
    assert nano_model.chat(nano_tokenizer, None, "What is 12 + 34?", config) == expected
    shorter = nano_model.chat(
        nano_tokenizer, None, "What is 12 + 34?", {"do_sample": False, "max_new_tokens": 9}
    )
    assert expected.startswith(shorter) and shorter != expected


class TestFasterDecoding:
    """Options of the generation config that change the time and not the tokens.

    Up to a tie: a static cache attends over masked positions, compiled code and products over
    several guessed tokens add up in another order.
    """

    QUESTIONS = [
        (CALCULATION, "Calculate."),
        (COUNTING, "Count the shapes."),
        (None, "What is 12 + 34?"),
    ]

    @pytest.mark.parametrize("options", [
        {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 6},
    ], ids=["static cache, compiled", "prompt lookup"])  # fmt: skip
    def test_same_tokens_in_chat_and_stream(self, nano_model, nano_tokenizer, options):
        faster = {**GREEDY, **options}
        for image, question in self.QUESTIONS:
            asked = [nano_tokenizer, image, question]
            expected = comparison.ask(nano_model.chat, *asked, GREEDY)
            answer = comparison.ask(nano_model.chat, *asked, faster)
            comparison.assert_same_answers(expected, answer)
        stream = comparison.ask(nano_model.chat_stream, *asked, faster)
        comparison.assert_same_answers(expected, stream)

    def test_static_cache_in_a_batch_and_in_the_standard_class(
        self, nano_model, nano_standard, nano_tokenizer
    ):
        images, questions = zip(*self.QUESTIONS)
        static = {**GREEDY, "cache_implementation": "static"}
        asked = [nano_tokenizer, list(images), list(questions)]
        plain = comparison.ask(nano_model.batch_chat, *asked, GREEDY)
        compiled = comparison.ask(nano_model.batch_chat, *asked, static)
        comparison.assert_same_answers(plain, compiled)
        prompt = nano_tokenizer(
            "<｜User｜>\nWhat is 12 + 34?<｜Assistant｜><think>\n", return_tensors="pt"
        )
        expected = nano_standard.generate(**prompt, **GREEDY)
        ids = nano_standard.generate(**prompt, **static)
        comparison.assert_same_rows(nano_standard, prompt, expected, ids)

    def test_prompt_lookup_of_a_rendered_prompt(self, nano_standard, nano_processor):
        """The prompt's last token stands in front of its image, too.

        So the first guess is the image's tokens.
        """
        messages = [
            {
                "role": "user",
                "content": [{"type": "image", "image": CALCULATION}, {"type": "text", "text": "?"}],
            }
        ]
        prompt = nano_processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        expected = nano_standard.generate(**prompt, **GREEDY)
        ids = nano_standard.generate(**prompt, **GREEDY, prompt_lookup_num_tokens=8)
        comparison.assert_same_rows(nano_standard, prompt, expected, ids)

    def test_prompt_lookup_that_runs_into_an_image(self, nano_standard, nano_processor):
        """The answer begins as the text in front of the image does.

        So a later guess is the image's tokens.
        """
        parts = [{"type": "text", "text": "I see "}, {"type": "image", "image": COUNTING}]
        parts.append({"type": "text", "text": "How many shapes are in the image?"})
        prompt = nano_processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        expected = nano_standard.generate(**prompt, **GREEDY)
        ids = nano_standard.generate(**prompt, **GREEDY, prompt_lookup_num_tokens=8)
        comparison.assert_same_rows(nano_standard, prompt, expected, ids)

    @pytest.mark.parametrize("given", ["all tiles", "the new ones"])
    def test_a_cache_of_earlier_turns_takes_a_new_image(self, nano_standard, nano_processor, given):
        """As if the whole conversation had been read at once, up to a tie."""
        ask = {
            "add_generation_prompt": True,
            "tokenize": True,
            "return_dict": True,
            "return_tensors": "pt",
        }
        content = [{"type": "image", "image": CALCULATION}, {"type": "text", "text": "Calculate."}]
        first = nano_processor.apply_chat_template([{"role": "user", "content": content}], **ask)
        cache = DynamicCache()
        read = nano_standard.generate(**first, **GREEDY, past_key_values=cache)
        new = nano_processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": COUNTING},
                        {"type": "text", "text": "Count."},
                    ],
                }
            ],
            **ask,
        )
        ids = torch.cat([read, new["input_ids"][:, 1:]], dim=1)
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        tiles = torch.cat([first["pixel_values"], new["pixel_values"]])
        expected = nano_standard.generate(**whole, pixel_values=tiles, **GREEDY)
        tiles = tiles if given == "all tiles" else new["pixel_values"]
        again = nano_standard.generate(**whole, pixel_values=tiles, past_key_values=cache, **GREEDY)
        whole["pixel_values"] = torch.cat([first["pixel_values"], new["pixel_values"]])
        comparison.assert_same_rows(nano_standard, whole, expected, again)

    def test_static_cache_compiles_on_a_cpu(self, nano_model, nano_tokenizer, monkeypatch):
        calls = []
        compiled = type(nano_model.language_model).get_compiled_call
        monkeypatch.setattr(
            type(nano_model.language_model),
            "get_compiled_call",
            lambda self, config: calls.append(config) or compiled(self, config),
        )
        options = {"max_new_tokens": 2, "do_sample": False}
        nano_model.chat(nano_tokenizer, None, "Hi", options)
        assert not calls
        nano_model.chat(nano_tokenizer, None, "Hi", {**options, "cache_implementation": "static"})
        assert len(calls) == 1

    def test_thinking_budget_with_prompt_lookup(self, nano_model, nano_tokenizer):
        options = {**GREEDY, "prompt_lookup_num_tokens": 6}
        asked = [nano_tokenizer, None, "What is 12 + 34?"]
        expected = comparison.ask(nano_model.chat, *asked, GREEDY, thinking_budget=9)
        faster = comparison.ask(nano_model.chat, *asked, options, thinking_budget=9)
        comparison.assert_same_answers(expected, faster)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_calls(nano_model, nano_tokenizer):
    """After 200 mixed calls as after 20, within 2 %."""

    def call(number):
        image, question = [
            (CALCULATION, "Calculate."),
            (COUNTING, "Count."),
            (None, "What is 2 + 3?"),
        ][number % 3]
        options = {"max_new_tokens": 12, "do_sample": False}
        kind = number % 4
        if kind == 0:
            nano_model.batch_chat(
                nano_tokenizer, [image, None], [question, "What is 1 + 1?"], options
            )
        elif kind == 1:
            list(
                nano_model.chat_stream(nano_tokenizer, image, question, options, thinking_budget=4)
            )
        elif kind == 2:
            with nano_model.chat_stream(nano_tokenizer, image, question, LONG) as stream:
                next(stream)  # and leave it
        else:
            nano_model.chat(nano_tokenizer, image, question, options, return_history=True)

    for number in range(20):
        call(number)
    gc.collect()
    before, threads = resident_memory("VmRSS"), threading.active_count()
    for number in range(20, 200):
        call(number)
    gc.collect()
    assert resident_memory("VmRSS") < 1.02 * before and threading.active_count() <= threads


@pytest.mark.slow
def test_eight_threads_for_a_minute(nano_model, nano_tokenizer):
    """Every answer is the one that the question gets alone.

    Bit for bit: every thread runs the same kernels on the same shapes.
    """
    options = {"max_new_tokens": 64, "do_sample": False}
    files = sorted(str(path) for path in IMAGES.glob("*.png"))
    questions = [
        (file, "Calculate." if "calculation" in file else "Count the shapes.") for file in files
    ]
    questions += [
        ([CALCULATION, COUNTING], "<image>\n<image>\nHow many?"),
        (None, "What is 12 + 34?"),
    ]
    expected = [
        nano_model.chat(nano_tokenizer, image, question, options) for image, question in questions
    ]
    wrong, done, deadline = [], [], time.time() + 60

    def work(offset):
        number = offset
        while time.time() < deadline:
            index = number % len(questions)
            answer = nano_model.chat(nano_tokenizer, *questions[index], options)
            (done if answer == expected[index] else wrong).append((index, answer))
            number += 3

    workers = [threading.Thread(target=work, args=(offset,)) for offset in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong and len(done) >= 16
