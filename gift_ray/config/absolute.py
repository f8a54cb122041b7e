"""Makes the paths of a study absolute when it is read, since workers may run in another working directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# The options of the model, and those of plug-ins, that name a file or folder of this machine.
MODELS = ("pretrained_model_name_or_path", "single_file_config")
OPTIONS = ("path", "folder", "dataset_name")


def absolute(name: str) -> str:
    """The absolute path of an existing file or folder, without resolving links.

    A name that is no existing path, such as a hub id, is returned unchanged.
    """
    path = Path(name).expanduser()
    return str(path.absolute()) if name != "builtin" and path.exists() else name


def with_absolute_paths(raw: Any) -> Any:
    """A study's plain values with absolute paths for the model, the encoders and the files of plug-ins.

    The values are not checked yet. Relative paths are relative to the working directory.
    """
    if isinstance(raw, list):
        return [with_absolute_paths(each) for each in raw]
    if not isinstance(raw, dict):
        return raw
    return {key: _absolute_at(key, value, raw) for key, value in raw.items()}


def _absolute_at(key: Any, value: Any, around: dict[Any, Any]) -> Any:
    is_path = key in MODELS or ("name" in around and key in OPTIONS)
    if is_path and isinstance(value, str):
        return absolute(value)
    if key == "encoders" and isinstance(value, dict):
        # Names without a slash stand for published networks, even if there is a folder of that name.
        return {
            role: absolute(name) if isinstance(name, str) and "/" in name else name
            for role, name in value.items()
        }
    return with_absolute_paths(value)
