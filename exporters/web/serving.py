"""An aiohttp application served from a thread with its own event loop, for a process whose main thread does other work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aiohttp import web

SHUTDOWN_S: Final = 0.5  # for replies that are being sent when the server ends
JOIN_S: Final = 5.0


class Serving:
    """The thread `name`. `app` and `site` make what is served and where, inside the thread."""

    def __init__(
        self, name: str, app: Callable[[], web.Application], site: Callable[[web.AppRunner], web.BaseSite]
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self.address: tuple[Any, ...] = ()  # once it listens
        self._app = app
        self._site = site
        self._started = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self) -> None:
        """Listens. Raises OSError if that is not possible."""
        self._thread.start()
        self._started.wait()
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Ends the thread. A second call does nothing."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(JOIN_S)

    def _serve(self) -> None:
        from aiohttp import web

        asyncio.set_event_loop(self.loop)
        runner = web.AppRunner(self._app(), access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S)
        try:
            self.loop.run_until_complete(self._listen(runner))
            self._started.set()
            self.loop.run_forever()
        except OSError as error:
            self._failure = error
        finally:
            self.loop.run_until_complete(runner.cleanup())
            self.loop.close()
            self._started.set()

    async def _listen(self, runner: web.AppRunner) -> None:
        await runner.setup()
        await self._site(runner).start()
        self.address = runner.addresses[0]
