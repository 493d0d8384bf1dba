"""Posts small JSON messages to URLs from a thread of its own: the sender never waits."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from queue import Queue
from time import monotonic, sleep
from typing import Final

from ..engine.plan.plan import Secret
from .backoff import backoff_s

TIMEOUT_S: Final = 10.0
TRIES: Final = 5

Message = Mapping[str, object]


class Webhooks:
    """Delivers messages in order; `failed` is called with the reason for each that could not be delivered.

    Neither the reason nor anything else contains the URL: whoever knows it may post there.
    """

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._failed = failed
        self._queue: Queue[tuple[Secret, Message]] = Queue()
        threading.Thread(target=self._deliver, name="webhooks", daemon=True).start()

    def send(self, url: Secret, message: Message) -> None:
        self._queue.put((url, message))

    def close(self, timeout_s: float) -> None:
        """Waits at most `timeout_s` for the messages that are not delivered yet."""
        end_s = monotonic() + timeout_s
        while self._queue.unfinished_tasks and monotonic() < end_s:
            sleep(0.05)

    def _deliver(self) -> None:
        while True:
            url, message = self._queue.get()
            reason = post(url, message)
            for attempt in range(1, TRIES):
                if reason:
                    sleep(backoff_s(attempt, first_s=1.0))
                    reason = post(url, message)
            if reason:
                self._failed(f"the webhook of alert {message.get('alert')!r} was not reached: {reason}")
            self._queue.task_done()


def post(url: Secret, message: Message) -> str:
    """One attempt. Returns why it failed, or an empty string; a 4xx or 5xx status is a failure, too."""
    request = urllib.request.Request(
        url.value, json.dumps(message).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            reply.read(1 << 16)
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", None) or type(error).__name__)
    return ""
