"""Rewards on completions as models write them, hacked ones among them."""

import pytest

from training.rewards import accuracy_format_reward, accuracy_reward, format_reward

THOUGHT = "I see 1 and 1, together 2.\n</think>\n\n"

# completion, accuracy with the solution 2, format, reason
COMPLETIONS = [
    (THOUGHT + "Answer: \\boxed{2}", 1, 1, "as it should be"),
    (THOUGHT + "\\boxed{3}", 0, 1, "in form, but wrong"),
    (THOUGHT + "\\boxed{\\frac{4}{2}}", 1, 1, "another way to write it"),
    (THOUGHT + "It is 2.", 1, 0, "right, in a sentence"),
    (THOUGHT + "2", 1, 0, "right, but in no box"),
    ("\\boxed{2}", 0, 0, "no thinking was closed: all of it is thinking"),
    ("So \\boxed{2} it is", 0, 0, "a box in a thinking that was cut off"),
    ("Maybe \\boxed{2}?\n</think>\n\n\\boxed{3}", 0, 1, "the draft is right, the answer is not"),
    ("Maybe \\boxed{3}?\n</think>\n\n\\boxed{2}", 1, 1, "the draft is wrong, the answer is not"),
    ("Maybe \\boxed{2}?\n</think>\n\nI cannot say.", 0, 0, "a box in the thinking alone"),
    (THOUGHT + "\\boxed{2} or \\boxed{3}", 0, 0, "several boxes: the last one counts"),
    (THOUGHT + "\\boxed{3}, no: \\boxed{2}", 1, 0, "several boxes are not the form"),
    (THOUGHT + "\\boxed{2}" * 20, 1, 0, "repeated to be safe"),
    (THOUGHT + "\\boxed{2 or 3}", 0, 1, "both in one box are neither"),
    (THOUGHT + "\\boxed{}", 0, 0, "an empty box"),
    (THOUGHT + "\\boxed{2", 0, 0, "a box that was cut off"),
    (THOUGHT, 0, 0, "nothing after the thinking"),
    ("</think>\n\n\\boxed{2}", 1, 0, "an empty thinking"),
    ("  \n</think>\n\n\\boxed{2}", 1, 0, "a thinking of blanks"),
    (THOUGHT + THOUGHT + "\\boxed{2}", 1, 0, "closed twice"),
    ("<think>\n" + THOUGHT + "\\boxed{2}", 1, 0, "opened again by the model"),
    (THOUGHT + "\\boxed{2}\n<think>\nOr not?", 0, 0, "thinking again after the answer"),
    (THOUGHT + "<think>x</think>\\boxed{2}", 1, 0, "a second thinking"),
    ("", 0, 0, "nothing"),
    (THOUGHT + "\\fbox{2}", 1, 1, "the other box"),
    (THOUGHT + "\\boxed{" + "2+" * 3000 + "0}", 0, 1, "too long for an expression"),
]


@pytest.mark.parametrize("text, accuracy, form, reason", COMPLETIONS)
def test_rewards_of_a_completion(text, accuracy, form, reason):
    assert accuracy_reward([text], solution=["2"]) == [accuracy], reason
    assert format_reward([text]) == [form], reason
    (mixed,) = accuracy_format_reward([text], solution=["2"])
    assert mixed == pytest.approx(0.8 * accuracy + 0.2 * form), reason


# completion of a model whose prompt opens no thinking, format, reason
UNOPENED = [
    ("<think>\n" + THOUGHT + "\\boxed{2}", 1, "it opens the thinking itself"),
    (THOUGHT + "\\boxed{2}", 0, "closed, but never opened"),
    ("\\boxed{2}", 0, "no thinking at all"),
    ("Well. <think>\n" + THOUGHT + "\\boxed{2}", 0, "words before the thinking"),
    ("<think>\n<think>\n" + THOUGHT + "\\boxed{2}", 0, "opened twice"),
]


@pytest.mark.parametrize("text, form, reason", UNOPENED)
def test_format_where_the_prompt_opens_no_thinking(text, form, reason):
    assert format_reward([text], thinking_opened=False) == [form], reason


def test_columns_belong_to_their_completions():
    """As TRL passes them: conversations, all columns of the data, None where there is no value."""
    texts = ["\\boxed{B}", "\\boxed{the cat}", "\\boxed{3}", "\\boxed{east}"]
    completions = [[{"role": "assistant", "content": THOUGHT + text}] for text in texts]
    rewards = accuracy_reward(
        prompts=["?"] * 4,
        completions=completions,
        solution=["B", "B", None, "East"],
        kind=["choice", "choice", None, "text"],
        options=[["a dog", "the cat"], ["a dog", "the cat"], None, None],
        trainer_state=None,
    )
    assert rewards == [1.0, 1.0, None, 1.0]
    mixed = accuracy_format_reward(completions=completions, solution=[None, "x", "3", "4"])
    assert mixed[0] is None and mixed[2] == pytest.approx(1.0) and mixed[3] == pytest.approx(0.2)


def test_content_of_parts():
    parts = [{"type": "text", "text": THOUGHT}, {"type": "text", "text": "\\boxed{2}"}]
    completion = [{"role": "assistant", "content": parts}]
    assert accuracy_reward([completion], solution=["2"]) == [1.0]


def test_a_solution_of_another_kind_is_an_error():
    with pytest.raises(ValueError, match="gold 'E'"):
        accuracy_reward([THOUGHT], solution=["E"], kind=["choice"], options=[["a", "b"]])
