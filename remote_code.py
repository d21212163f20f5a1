"""How the tools of this repository reach the model's modules.

    from remote_code import conversation, modeling_skywork_chat

    conversation.split_thinking(answer)
    modeling_skywork_chat.SkyworkChatModel(config)

The remote-code files at the root import each other relatively, because transformers copies them
into a package of its own. Outside transformers they therefore need a package around them, whatever
the folder of the checkout is called. This module is that package: its `__path__` is the root of the
repository, so Python finds the files as its submodules.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # static tools do not follow __path__; to them the files are top-level modules
    import chat as chat
    import chat_images as chat_images
    import checkpoint_files as checkpoint_files
    import configuration_skywork_chat as configuration_skywork_chat
    import conversation as conversation
    import decoding as decoding
    import device_map as device_map
    import generation as generation
    import image_features as image_features
    import loading as loading
    import modeling_intern_vit as modeling_intern_vit
    import modeling_skywork_chat as modeling_skywork_chat
    import transformers_compat as transformers_compat

__path__ = [str(Path(__file__).resolve().parent)]
