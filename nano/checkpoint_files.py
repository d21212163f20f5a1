"""What makes the directory of a saved checkpoint complete: code, tokenizer and processor files.

`save_pretrained` of the model classes writes weights and config.json. The functions here add the
other files of the repository that the model came from, and upload the directory.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import PretrainedConfig
from transformers.utils import logging

from .transformers_compat import commit_of

logger = logging.get_logger(__name__)

ARCHITECTURE = "SkyworkR1VChatModel"  # what vLLM looks for; it is not the name of a class here
AUTO_MAP = {
    "AutoConfig": "configuration_skywork_chat.SkyworkChatConfig",
    "AutoModel": "modeling_skywork_chat.SkyworkChatModel",
    "AutoModelForCausalLM": "modeling_skywork_chat.SkyworkChatModel",
    "AutoModelForImageTextToText": "modeling_skywork_chat.SkyworkChatForConditionalGeneration",
    "AutoModelForSequenceClassification": (
        "modeling_skywork_chat.SkyworkChatForSequenceClassification"
    ),
}
# The files that modeling_skywork_chat.py needs. It imports each of them itself, because before 5.9
# transformers copies those files only.
CODE_FILES = (
    "chat.py",
    "chat_images.py",
    "checkpoint_files.py",
    "configuration_skywork_chat.py",
    "conversation.py",
    "decoding.py",
    "device_map.py",
    "generation.py",
    "image_features.py",
    "loading.py",
    "modeling_intern_vit.py",
    "modeling_skywork_chat.py",
    "transformers_compat.py",
)
# Files that come from the repository that the model was loaded from, if it has them.
SUPPORT_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "preprocessor/image_loading.py",
    "preprocessor/image_processing_skywork_chat.py",
    "preprocessor/image_settings.py",
    "preprocessor/messages.py",
    "preprocessor/processing_skywork_chat.py",
    "preprocessor/tiling.py",
    "preprocessor/url_loading.py",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
# Without these two a checkpoint cannot be asked about an image.
NEEDED_SUPPORT_FILES = ("tokenizer.json", "preprocessor_config.json")
# Keywords of from_pretrained that say where on the Hub, or in its cache, files are found.
HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
# Keywords of save_pretrained that are about uploading.
UPLOAD_KEYWORDS = ("repo_id", "private", "commit_message", "create_pr")


def hub_keywords_of(config: PretrainedConfig, keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords with which the other files of a loaded model's repository are found.

    They are those that the model was loaded with, at the commit that it came from. Where its config
    does not know that commit, the revision that was asked for has to do.
    """
    found = {
        name: keywords[name]
        for name in HUB_KEYWORDS
        if keywords.get(name) is not None and name != "force_download"
    }
    commit = commit_of(config)
    if commit:
        found["revision"] = commit
    return found


def copy_repository_files(
    source: str | None,
    target: Path,
    revision: str | None = None,
    cache_dir: str | None = None,
    subfolder: str = "",
) -> None:
    """Copy the code, and what `source` has of the support files, into a saved checkpoint.

    Args:
        source: the repository that the model came from: a directory, a Hub id, of which only the
            local cache is read, or None.
        target: the directory of the checkpoint; a file that it has already is kept.
        revision: commit of a Hub repository.
        cache_dir: the Hub's cache, if it is not the usual one.
        subfolder: of the repository, where the model lies.
    """
    here = Path(__file__).resolve().parent
    for name in CODE_FILES:
        _copy_unless_there(here / name, target / name)
    if not source:
        return
    is_directory = Path(source).is_dir()
    for name in SUPPORT_FILES:
        path = f"{subfolder}/{name}" if subfolder else name
        if is_directory:
            _copy_unless_there(Path(source) / path, target / name)
        else:
            cached = try_to_load_from_cache(source, path, cache_dir=cache_dir, revision=revision)
            _copy_unless_there(cached, target / name)
    missing = [name for name in NEEDED_SUPPORT_FILES if not (target / name).exists()]
    if missing and not is_directory:
        logger.warning(
            f"{target} has no {' and no '.join(missing)}: only files of {source} that are in the "
            f"Hub's cache are copied. Load tokenizer and processor from {source}, and "
            f"save_pretrained() them into {target}."
        )


def _copy_unless_there(origin: Any, destination: Path) -> None:
    """Copy a file.

    Args:
        origin: its path. The Hub's cache answers with None, or with a marker object, for a file
            that it does not have.
    """
    if not isinstance(origin, (str, Path)):
        return
    if Path(origin).is_file() and not destination.exists():
        destination.parent.mkdir(exist_ok=True)
        shutil.copyfile(origin, destination)


def upload(
    folder: str | Path,
    token: str | None = None,
    repo_id: str | None = None,
    private: bool | None = None,
    commit_message: str = "Upload model",
    create_pr: bool = False,
) -> None:
    """Upload a directory to the Hub as it is.

    Args:
        repo_id: the repository, which is created if need be; by default the directory's name.
    """
    api = HfApi(token=token)
    name = repo_id or Path(folder).name
    repo_id = api.create_repo(name, private=private, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message=commit_message, create_pr=create_pr
    )
