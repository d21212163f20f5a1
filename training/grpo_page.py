"""The page of a GRPO training: completions.html, with what the model wrote and what it got for it.

It is one file that needs no network. Groups are taken at even distances over the training, so that
one can see how the answers change.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import durable
from evaluation.page_parts import evenly, small_copy
from training.grpo_trainer import COMPLETIONS_FILE

PAGE_FILE = "completions.html"
SHOWN_GROUPS = 120
STYLE = """
body {
  font: 15px/1.5 system-ui, sans-serif;
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222;
}
article { border-top: 1px solid #bbb; padding: 1rem 0; }
article header { color: #555; font-size: 13px; }
img {
  max-width: 20rem; max-height: 16rem;
  margin: .4rem .6rem .4rem 0; border: 1px solid #ddd;
}
pre {
  white-space: pre-wrap; overflow-wrap: anywhere;
  background: #f5f5f5; padding: .6rem; margin: .3rem 0; font: 13px/1.45 ui-monospace, monospace;
}
summary { cursor: pointer; }
.better { color: #2a7d46; } .worse { color: #b3372b; } .equal { color: #777; }
"""
Group = list[dict[str, Any]]


def write(folder: Path) -> None:
    """Write the page of a training into its folder, from its completions."""
    groups = groups_of(folder / COMPLETIONS_FILE)
    shown = evenly(groups, SHOWN_GROUPS)
    title = html.escape(folder.name)
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Completions of {title}</title>",
        f"<style>{STYLE}</style>",
        f"<h1>Completions of {title}</h1>",
        f"<p>{len(shown)} of {len(groups)} groups, at even distances over the training. "
        "The advantage says whether a completion became likelier (above 0) or less likely.</p>",
        *(_article(group) for group in shown),
        "</html>",
    ]
    durable.write_text(folder / PAGE_FILE, "\n".join(parts))


def groups_of(path: Path) -> list[Group]:
    """The completions of each prompt at each step, in their order."""
    groups: dict[tuple[Any, ...], Group] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        key = (row["step"], row["prompt"], *row["images"])
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _article(group: Group) -> str:
    """The HTML of a group."""
    first = group[0]
    images = "".join(
        f'<img alt="image {number} of the question" src="{small_copy(Path(image))}">'
        for number, image in enumerate(first["images"], 1)
    )
    return (
        f"<article><header>step {first['step']}</header>"
        f"<pre>{html.escape(first['prompt'])}</pre>{images}"
        f"{''.join(_completion(row) for row in ordered(group))}</article>"
    )


def ordered(group: Iterable[dict[str, Any]]) -> Group:
    """The completions of a group, the best first."""
    return sorted(group, key=lambda row: -row["advantage"])


def _completion(row: dict[str, Any]) -> str:
    """The HTML of a completion, folded."""
    advantage = row["advantage"]
    kind = "better" if advantage > 0 else "worse" if advantage < 0 else "equal"
    rewards = []
    for name, value in row["rewards"].items():
        rewards.append(f"{name.removesuffix('_reward')} {'–' if value is None else f'{value:.2f}'}")
    label = f"advantage {advantage:+.2f} ({', '.join(rewards)})"
    return (
        f'<details><summary class="{kind}">{html.escape(label)}</summary>'
        f"<pre>{html.escape(row['completion'])}</pre></details>"
    )
