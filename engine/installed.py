"""What is installed beside this package: the libraries of its optional extras, and the plug-ins of other packages.

A plug-in is an entry point (packaging.python.org, "Entry points specification") in one of `GROUPS`. Its module is
imported only where its name is used, in every process that needs it, so it must be installed, or on PYTHONPATH.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from .errors import PlanError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

DISTRIBUTION: Final = "llm-latency-lens"
GROUPS: Final = {  # kind -> group of entry points
    "dialect": "llm_latency_lens.dialects",
    "workload": "llm_latency_lens.workloads",
    "exporter": "llm_latency_lens.exporters",
}


class Plugin(NamedTuple):
    """One loaded entry point. `made` is the object that it names; `package` is name and version of its distribution."""

    kind: str
    name: str
    package: str
    made: Any

    def error(self, problem: str) -> PlanError:
        """What is wrong with the plug-in, whose it is, and the way out."""
        return _error(self.kind, self.name, self.package, problem)


def plugin_names(kind: str) -> list[str]:
    """The names of all installed plug-ins of a kind, sorted. Imports none of them."""
    return sorted({entry.name for entry in _entries(kind)})


def plugin_of(kind: str, name: str) -> Plugin:
    """The plug-in of that kind and name, loaded. Raises PlanError naming the package where it cannot be used."""
    found = {_package(entry): entry for entry in _entries(kind) if entry.name == name}
    if not found:
        names = ", ".join(plugin_names(kind)) or "none"
        raise PlanError(
            f"no installed package has the {kind} {name!r} (entry points {GROUPS[kind]}; there are: {names}); "
            "install the package that has it into this Python's environment"
        )
    if len(found) > 1:
        raise PlanError(f"the {kind} {name!r} is in {' and in '.join(sorted(found))}; uninstall one of them")
    (package, entry), *_ = found.items()
    try:
        return Plugin(kind, name, package, entry.load())
    except Exception as error:  # whatever the module does when it is imported
        raise _error(kind, name, package, f"cannot be loaded from {entry.value}: {_said(error)}") from error


def raised(where: str, error: Exception) -> str:
    """What a plug-in's code raised, for `Plugin.error`."""
    return f"failed in {where}: {_said(error)}"


def missing_extra(extra: str, what: str) -> PlanError:
    """The error for `what` where the libraries of an optional extra are not installed: one line with the command."""
    return PlanError(f"{what} needs the extra {extra!r}, which is not installed: {install_command(extra)}")


def install_command(extra: str, path: Sequence[str] | None = None) -> str:
    """The command that installs an extra from where this package came: a checkout, a file, a repository, or an index.

    PEP 610 has an installer write the origin to direct_url.json; `path` is searched instead of sys.path.
    """
    import json
    import shlex
    from importlib import metadata

    where = list(sys.path if path is None else path)
    found = next(iter(metadata.distributions(name=DISTRIBUTION, path=where)), None)
    origin: dict[str, Any] = json.loads(found.read_text("direct_url.json") or "{}") if found else {}
    wanted = f"{DISTRIBUTION}[{extra}]"
    url = str(origin.get("url", ""))
    if "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}{shlex.quote(unquote(urlsplit(url).path) + f'[{extra}]')}"
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    return f"pip install {shlex.quote(f'{wanted} @ {url}' if url else wanted)}"


def _entries(kind: str) -> list[EntryPoint]:
    """All entry points of a kind. importlib.metadata takes 30 ms to load: only those who look for a plug-in pay it."""
    from importlib.metadata import entry_points

    return list(entry_points(group=GROUPS[kind]))


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _error(kind: str, name: str, package: str, problem: str) -> PlanError:
    command = f"pip install --upgrade {package.partition(' ')[0]}"
    return PlanError(f"the {kind} {name!r} of the package {package} {problem}; repair the package, or: {command}")
