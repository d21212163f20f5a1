"""The repository's remote-code files as a Python package, without installing it."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "skywork_r1v_code"


def load_package():
    """A namespace with the configuration and model classes, and the modules under short names.

    The files import each other relatively, as remote code must, so they need a package around them: one is made of the
    repository's folder, under a name that does not depend on where it was cloned.
    """
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_loader(PACKAGE, loader=None, is_package=True)
        package = importlib.util.module_from_spec(spec)
        package.__path__ = [str(ROOT)]
        sys.modules[PACKAGE] = package
    configuration = importlib.import_module(f"{PACKAGE}.configuration_skywork_chat")
    modeling = importlib.import_module(f"{PACKAGE}.modeling_skywork_chat")
    return types.SimpleNamespace(
        SkyworkChatConfig=configuration.SkyworkChatConfig,
        SkyworkVisionConfig=configuration.SkyworkVisionConfig,
        SkyworkChatModel=modeling.SkyworkChatModel,
        SkyworkChatForConditionalGeneration=modeling.SkyworkChatForConditionalGeneration,
        configuration=configuration,
        modeling=modeling,
        vision=importlib.import_module(f"{PACKAGE}.modeling_intern_vit"),
        conversation=importlib.import_module(f"{PACKAGE}.conversation"),
        cpu_backend=importlib.import_module(f"{PACKAGE}.cpu_backend"),
        device_map=importlib.import_module(f"{PACKAGE}.device_map"),
        generation=importlib.import_module(f"{PACKAGE}.generation"),
        compat=importlib.import_module(f"{PACKAGE}.transformers_compat"),
    )
