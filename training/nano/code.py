"""Keeps nano/ a repository by itself: the files of this repository's code in it are copies.

    python -m training.nano.code  # make nano-code

Links would break wherever nano/ is copied alone, in a ZIP, or in a checkout on Windows. The copies
are not edited: a test compares them with the files that they come from.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from training.assemble import ROOT, copy_code, without_generation_markers

NANO = ROOT / "nano"


def copy_to(folder: Path) -> None:
    """Make the code and the chat template in a folder those of this repository.

    Files of code that this repository no longer has are removed. The tokenizer's configuration has
    the template, too.
    """
    for path in [*folder.glob("*.py"), *folder.glob("preprocessor/*.py")]:
        path.unlink()
    copy_code(folder)
    shutil.copyfile(ROOT / "chat_template.jinja", folder / "chat_template.jinja")
    template = (ROOT / "chat_template.jinja").read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["chat_template"] = without_generation_markers(template)
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    copy_to(NANO)
