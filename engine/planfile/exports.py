"""The exports of a plan: {kind: {url, ...}}, a list of such mappings, or URLs whose scheme is the kind."""

from __future__ import annotations

from urllib.parse import urlsplit

from msgspec import NODEFAULT

from ..errors import PlanError
from ..installed import plugin_names, plugin_of
from ..plan.plan import EXPORTS, Export, PluginExport, Secret
from .document import Node, fields_of, keys_of


def exports_of(node: Node) -> tuple[Export, ...]:
    """Every export that the plan names. Raises PlanError."""
    if not node.given:
        return ()
    exports: list[Export] = []
    for item in node.items() if isinstance(node.value, list) else [node]:
        if isinstance(item.value, str):
            exports.append(_export_url(item))
            continue
        for kind, entry in item.mapping(EXPORTS).entries().items():
            exports += [_export(kind, one) for one in (entry.items() if isinstance(entry.value, list) else [entry])]
    return tuple(exports)


def export_of(url: str) -> Export:
    """The export that a URL alone means, by its scheme: influxdb, prometheus, otlp or an installed package's exporter.

    Raises PlanError, which does not show the URL: it may hold a token.
    """
    kind = url.partition(":")[0].partition("+")[0] if ":" in url else ""
    kind = {"influxdbs": "influxdb", "otlps": "otlp"}.get(kind, kind)
    if kind in EXPORTS and kind != PluginExport.__struct_config__.tag:
        return EXPORTS[kind](url=Secret(url))  # type: ignore[call-arg]  # the one that needs a name is excluded
    installed = plugin_names("exporter")
    if kind in installed:
        plugin_of("exporter", kind)
        return PluginExport(name=kind, url=Secret(url))
    schemes = ", ".join(f"{each}://" for each in [*EXPORTS, *installed] if each != "plugin")
    raise PlanError(f"export must begin with {schemes}")


def _export_url(node: Node) -> Export:
    url = node.text(empty=False)
    try:
        export = export_of(url)
    except PlanError as error:
        raise PlanError(f"{error} ({node.source.location(node.path)})") from error
    _usable(url, node)
    return export


def _export(kind: str, node: Node) -> Export:
    struct = EXPORTS[kind]
    given = node.mapping(keys_of(struct), "a mapping with url").struct(struct, skip=["headers", "options"])
    headers, options = node.child("headers"), node.child("options")
    if headers.given:
        given["headers"] = {name: Secret(value.text()) for name, value in headers.mapping(None).entries().items()}
    if options.given:
        given["options"] = options.mapping(None).plain()
    for field in fields_of(struct):
        if field.default is NODEFAULT and field.name not in given:
            raise node.fail(f"needs {field.key}")
    if "url" in given:
        _usable(given["url"].value, node.child("url"))
    if "name" in given:
        try:
            plugin_of("exporter", given["name"])
        except PlanError as error:
            raise PlanError(f"{error} ({node.source.location(node.path)})") from error
    return struct(**given)


def _usable(url: str, node: Node) -> None:
    """Raises PlanError for a URL that urlsplit cannot take apart; the exporter itself knows the rest of its form."""
    try:
        _ = urlsplit(url).port
    except ValueError as error:  # its text would show the URL, which may hold a token
        raise node.fail("is no URL: its host or port cannot be understood") from error
