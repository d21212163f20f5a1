"""Settings of a recipe: a mapping becomes a dataclass, or an error that names the key."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def settings_from(
    where: str, kind: type[Settings], content: Any, left_out: Collection[str] = ()
) -> Settings:
    """The dataclass of a mapping.

    Args:
        where: what the mapping is, such as a file, for the errors.
        kind: the dataclass.
        content: the mapping, its keys the names of fields.
        left_out: fields that it may not have.

    Raises:
        ValueError: no mapping, an unknown key, a missing one, or a value that does not fit.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where}: {content!r}: expected keys and values.")
    fields: Any = kind
    known = [field for field in dataclasses.fields(fields) if field.name not in left_out]
    names = [field.name for field in known]
    unknown = [str(name) for name in content if name not in names]
    if unknown:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}: expected some of {', '.join(names)}."
        )
    missing = [field.name for field in known if _is_required(field) and field.name not in content]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing.")
    try:
        return kind(**content)
    except TypeError as error:  # a check of a value of another type than it expects
        raise ValueError(f"{where}: {error}") from error


def _is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
