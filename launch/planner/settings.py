"""The settings of a model's configuration, checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launch.planner.families import FAMILIES, Family


@dataclass(frozen=True)
class Settings:
    """A configuration of a family that is known."""

    family: str
    values: Mapping[str, Any]
    source: str

    @property
    def kind(self) -> Family:
        return FAMILIES[self.family]

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A setting that must be an integer, under the name that the family has for it.

        Raises:
            ValueError: if it is none, or below the least.
        """
        default = self.kind.usual.get(key, default)
        key = self.kind.names.get(key, key)
        value = self.values.get(key, default)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            wanted = "an integer above 0" if least else "0 or an integer above it"
            raise ValueError(f"{self.source}: {key} must be {wanted} (is {value!r})")
        return value

    def of_layers(self, key: str, num_layers: int, known: tuple[str, ...]) -> list[str]:
        """A setting with a name for each layer; empty where the model has none.

        Raises:
            ValueError: if there are more or fewer than layers, or one is not known.
        """
        names = self.values.get(key) or []
        if names and len(names) != num_layers:
            raise ValueError(
                f"{self.source}: {key} has {len(names)} entries for {num_layers} layers"
            )
        for name in names:
            if name not in known:
                raise ValueError(
                    f"{self.source}: {key} {name} is not supported by the planner; "
                    f"supported are {', '.join(known)}"
                )
        return list(names)
