"""A hook of hatchling: a wheel that carries compiled kernels is named for the platform that they were compiled on."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARIES = "kernels/compress_kernels/native/prebuilt"


class NativeWheel(BuildHookInterface):  # type: ignore[type-arg]
    """``py3-none-any`` without libraries, ``py3-none-linux_x86_64`` and the like with them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling."""
        if any((Path(self.root) / LIBRARIES).glob("*.so")):
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data |= {"pure_python": False, "tag": f"py3-none-{platform}"}
