"""Posts a small JSON message to a URL in a thread of its own: the sender never waits."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from queue import Queue
from time import monotonic, sleep
from typing import Any, Final

from ..engine.plan.plan import Secret
from .backoff import backoff_s

TIMEOUT_S: Final = 10.0
TRIES: Final = 5


class Webhooks:
    """Delivers in order, each message up to TRIES times; `failed` hears the reason of what could not be delivered.

    Neither the reason nor anything else shows a URL: whoever knows it may post there.
    """

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._failed = failed
        self._queue: Queue[tuple[Secret, dict[str, Any]]] = Queue()
        self._thread = threading.Thread(target=self._deliver, name="webhooks", daemon=True)
        self._thread.start()

    def send(self, url: Secret, message: dict[str, Any]) -> None:
        self._queue.put((url, message))

    def close(self, timeout_s: float) -> None:
        """Waits for what is under way, at most `timeout_s`."""
        end = monotonic() + timeout_s
        while self._queue.unfinished_tasks and monotonic() < end:
            sleep(0.05)

    def _deliver(self) -> None:
        while True:
            url, message = self._queue.get()
            reason = ""
            for attempt in range(1, TRIES + 1):
                reason = post(url, message)
                if not reason or attempt == TRIES:
                    break
                sleep(backoff_s(attempt, first_s=1.0))
            if reason:
                self._failed(f"the webhook of alert {message.get('alert')!r} was not reached: {reason}")
            self._queue.task_done()


def post(url: Secret, message: dict[str, Any]) -> str:
    """One attempt; why it failed, or nothing. A refusal for good (4xx) counts as a failure too."""
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
