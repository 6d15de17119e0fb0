"""What only the transport to this machine must hold; the rest is in test_transport.py, for each."""

from __future__ import annotations

import os

from deploy import commands
from deploy.local import LocalTransport

BOX = LocalTransport("box")


def test_ctrl_c_on_the_terminal_does_not_reach_a_command() -> None:
    done = BOX.run(commands.shell('ps -o pgid= -p $$ 2>/dev/null || cut -d " " -f 5 /proc/$$/stat'))
    assert int(done.stdout) != os.getpgrp()
