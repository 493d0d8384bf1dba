"""A dialect of another package (entry points `llm_latency_lens.dialects`), and what its mistakes become.

The entry point names an object with the attributes of `Dialect`, or a class of such objects. What `request` raises ends
the run, with the package's name. What a reply raises is that request's failure, `stream_malformed`.
"""

from __future__ import annotations

from typing import Any, Final

from ..errors import LensError
from ..installed import Plugin, plugin_of, raised
from ..plan.plan import Target
from ..records.record import Outcome
from . import Dialect, HttpRequest, Prompt, Reply

ATTRIBUTES: Final = (*Dialect.__annotations__, "request", "reply")


class PluggedDialect:
    """A `Dialect` around another package's."""

    def __init__(self, plugin: Plugin, dialect: Dialect) -> None:
        self._plugin = plugin
        self._dialect = dialect
        self._guards: dict[type[Reply], type[Reply]] = {}
        self.name = plugin.name
        self.default_base_url = dialect.default_base_url
        self.key_variable = dialect.key_variable
        self.asks = dialect.asks
        self.measures = dialect.measures
        self.limits = dialect.limits

    def request(self, target: Target, prompt: Prompt) -> HttpRequest:
        """As the plug-in renders it. Raises PlanError for what is no request."""
        try:
            request = self._dialect.request(target, prompt)
        except LensError:
            raise
        except Exception as error:
            raise self._plugin.error(raised("request()", error)) from error
        if not isinstance(request, HttpRequest):
            raise self._plugin.error(f"returns a {type(request).__name__} from request(), not an HttpRequest")
        return request

    def reply(self, target: Target, keep_text: bool = False) -> Reply:
        """The plug-in's own reader; its exceptions are failures of its request."""
        try:
            reply = self._dialect.reply(target, keep_text)
        except Exception as error:
            raise self._plugin.error(raised("reply()", error)) from error
        if not isinstance(reply, Reply):
            raise self._plugin.error(f"returns a {type(reply).__name__} from reply(), not a Reply")
        kind = type(reply)
        if kind not in self._guards:
            self._guards[kind] = _guarded(kind, self._plugin)
        reply.__class__ = self._guards[kind]
        return reply


def plugged_dialect(name: str) -> PluggedDialect:
    """The installed dialect of that name. Raises PlanError."""
    plugin = plugin_of("dialect", name)
    try:
        dialect = plugin.made() if isinstance(plugin.made, type) else plugin.made
    except Exception as error:
        raise plugin.error(raised("its constructor", error)) from error
    if missing := [attribute for attribute in ATTRIBUTES if not hasattr(dialect, attribute)]:
        raise plugin.error(f"is no dialect: it has no {', no '.join(missing)}")
    return PluggedDialect(plugin, dialect)


def _guarded(kind: type[Reply], plugin: Plugin) -> type[Reply]:
    """The class with `event`, `body` and `finished` that never raise.

    A class of its own, with the same slots, because the exchange reads a reply's attributes and bound methods directly:
    an object in between would cost every dialect, this costs only those of other packages.
    """

    def failed(reply: Reply, where: str, error: Exception) -> int:
        return reply.failed(str(plugin.error(raised(where, error))), Outcome.STREAM_MALFORMED)

    def event(self: Reply, data: bytes, name: bytes = b"") -> int:
        try:
            return int(kind.event(self, data, name))
        except Exception as error:
            return failed(self, "event()", error)

    def body(self: Reply, data: bytes) -> int:
        try:
            return int(kind.body(self, data))
        except Exception as error:
            return failed(self, "body()", error)

    def finished(self: Reply) -> bool:
        try:
            return bool(kind.finished(self))
        except Exception as error:
            failed(self, "finished()", error)
            return False

    members: dict[str, Any] = {"__slots__": (), "event": event, "body": body, "finished": finished}
    return type(f"Guarded{kind.__name__}", (kind,), members)
