"""A host of the testbed as those see it who deploy to it, whatever it is made of."""

from __future__ import annotations

import subprocess
from typing import Protocol

from testbed.hosts_host import Access


class ReachedHost(Protocol):
    """`Host` is a container with this machine's kernel, `Machine` is emulated and has its own."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def user(self) -> str: ...

    @property
    def access(self) -> Access: ...

    def start(self) -> None: ...

    def kill9(self) -> None: ...

    def wait_for_ssh(self) -> None: ...

    def shell(
        self, script: str, *arguments: str, stdin: str = "", timeout_seconds: float = ...
    ) -> subprocess.CompletedProcess[str]: ...
