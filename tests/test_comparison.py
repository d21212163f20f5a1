"""The comparison of greedy generations: a tie passes, anything else fails."""

import dataclasses

import pytest
import torch

from tests import checkpoints, comparison

CALCULATION = str(checkpoints.ROOT / "examples" / "images" / "calculation_1.png")
GREEDY = {"max_new_tokens": 12, "do_sample": False}


def never(common):
    raise AssertionError("equal ids need no logits")


def test_equal_ids_cost_nothing():
    comparison.assert_same_greedy(never, [1, 2, 3], [1, 2, 3])


def test_a_tie_passes_and_what_follows_is_not_compared():
    asked = []

    def next_logits(common):
        asked.append(common)
        return torch.tensor([0.0, 5.0, 5.0 - 1e-4, 1.0])

    comparison.assert_same_greedy(next_logits, [7, 1, 0], [7, 2, 3, 3])
    assert asked == [[7]]


@pytest.mark.parametrize("logits, reason", [
    ([0.0, 5.0, 4.9, 1.0], "the second way took a token that is clearly not the best"),
    ([0.0, 4.9, 5.0, 1.0], "the first way did"),
    ([6.0, 5.0, 5.0, 1.0], "two equal logits, but neither is the best"),
])  # fmt: skip
def test_a_real_difference_fails(logits, reason):
    with pytest.raises(AssertionError, match="below the best"):
        comparison.assert_same_greedy(lambda common: torch.tensor(logits), [7, 1], [7, 2])


def test_an_answer_that_is_cut_short_fails():
    with pytest.raises(AssertionError, match="ended after 1 tokens"):
        comparison.assert_same_greedy(never, [7], [7, 2])


def test_ids_end_with_the_first_stop_token():
    assert comparison.until_stop([5, 2, 0, 0], [2, 3]) == [5, 2]
    assert comparison.until_stop([5, 2], 9) == comparison.until_stop([5, 2], None) == [5, 2]


@pytest.fixture(scope="module")
def answers(nano_model, nano_tokenizer):
    questions = ["What is 3 + 4?", "Calculate."]
    return comparison.ask(
        nano_model.batch_chat, nano_tokenizer, [None, CALCULATION], questions, GREEDY
    )


def test_rows_have_the_prompt_without_padding_and_their_own_images(
    nano_model, nano_tokenizer, answers
):
    single = comparison.ask(nano_model.chat, nano_tokenizer, CALCULATION, "Calculate.", GREEDY)
    text, image = (row.prompt for row in answers.rows)
    assert text.images == {} and text.input_ids.shape[1] < image.input_ids.shape[1]
    assert torch.equal(image.input_ids, single.rows[0].prompt.input_ids)
    assert torch.equal(image.images["pixel_values"], single.rows[0].prompt.images["pixel_values"])
    assert "generate" not in vars(nano_model), "the recorder is gone"


def test_the_logits_computed_again_are_those_of_the_generation(answers):
    for row in answers.rows:
        logits = row.prompt.logits_along(row.new_ids)[:-1]
        taken = logits.gather(1, torch.tensor(row.new_ids)[:, None])[:, 0]
        assert (logits.max(1).values - taken).max() <= comparison.TIE
        first = row.prompt.next_logits([])
        torch.testing.assert_close(first, logits[0], atol=1e-4, rtol=1e-4)
        assert comparison.smallest_gap(row) > 0


def test_a_wrong_image_or_a_lost_system_message_fails(nano_model, nano_tokenizer):
    def ask(pixel_values, system_message):
        return comparison.ask(
            nano_model.chat,
            nano_tokenizer,
            pixel_values,
            "What is the result?",
            GREEDY,
            system_message=system_message,
        )

    tiles = nano_model.encode_images(CALCULATION)
    right = ask(tiles, "Be brief.")
    comparison.assert_same_answers(right, ask(tiles, "Be brief."))
    wrong = dataclasses.replace(tiles, features=tiles.features.flip(0, 1))
    with pytest.raises(AssertionError, match="below the best"):
        comparison.assert_same_answers(right, ask(wrong, "Be brief."))
    other = ask(wrong, "")
    assert other.text != right.text
    with pytest.raises(AssertionError, match="the prompts differ"):
        comparison.assert_same_answers(right, other)


def test_the_same_ids_as_two_texts_fail(answers):
    other = dataclasses.replace(answers, texts=[answers.texts[0] + "!", answers.texts[1]])
    with pytest.raises(AssertionError, match="became two texts"):
        comparison.assert_same_answers(answers, other)


def test_rows_of_the_standard_class(nano_standard, nano_processor):
    content = [{"type": "image", "image": CALCULATION}, {"type": "text", "text": "Calculate."}]
    prompt = nano_processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = nano_standard.generate(**prompt, **GREEDY)
    comparison.assert_same_rows(nano_standard, prompt, ids, ids.clone())
    changed = ids.clone()
    changed[0, -3] = 0
    with pytest.raises(AssertionError, match="below the best"):
        comparison.assert_same_rows(nano_standard, prompt, ids, changed)
    changed = ids.clone()
    changed[0, 3] = 0
    with pytest.raises(AssertionError, match="the prompts differ"):
        comparison.assert_same_rows(nano_standard, prompt, ids, changed)
