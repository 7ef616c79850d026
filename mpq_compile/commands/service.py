"""Verbs that run until they are ended: what they say once they listen, and how they end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from mpq_compile.commands.outcome import Outcome, json_text


@dataclass
class Announcer:
    """Prints the JSON object of a service while it runs; no second one follows.

    Args:
        stream: Standard output; None without ``--json``.
    """

    stream: TextIO | None
    done: bool = False

    def announce(self, data: Mapping[str, Any]) -> None:
        """Say where the service listens; what is said again after that is dropped."""
        said, self.done = self.done, True  # who reads the line may end the service at once
        if self.stream is not None and not said:
            print(json_text(data), file=self.stream, flush=True)


def run_service(outcome: Outcome, announcer: Announcer) -> Outcome:
    """Run until Ctrl-C or SIGTERM: the usual end, once the service listened.

    Raises:
        KeyboardInterrupt: It came before.
        MpqError: The service could not start.
    """
    assert outcome.service is not None
    try:
        outcome.service(announcer.announce)
    except KeyboardInterrupt:
        if not announcer.done:
            raise
    return Outcome(show=lambda console: console.print("stopped"))
