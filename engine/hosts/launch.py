"""Starts agents through Ray: `python -m llm_latency_lens.engine.hosts.launch`, a helper process of the driver.

A process of its own, because Ray ends the process that uses it when its raylet dies, installs signal handlers and starts
threads. The driver speaks to it over stdin and stdout: LaunchOrder, then the invitations; back come LaunchWords. When
stdin ends, the run is over or the driver is dead, and everything that was started here ends.

An invitation holds the plan with its secrets. It goes to its actor in arguments of PIECE_BYTES: Ray passes arguments up
to 100 KB inside the call, from this process to the actor's, and puts larger ones into the object store, which may spill
to disk.

This is the only module that imports ray, and only in the functions that need it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from ..errors import LensError, PlanError
from ..frames import frame, read_frame
from .messages import Invitation

PIECE_BYTES: Final = 32 << 10
PLACEMENT_TIMEOUT_S: Final = 60.0
START_TIMEOUT_S: Final = 120.0
WATCH_S: Final = 1.0
END_S: Final = 15.0  # agents that were dismissed end within this time
LOCAL_STORE_BYTES: Final = 80 << 20  # the least that Ray takes: nothing is put into it
LOCAL: Final = "local"
STDIN: Final = 0
STDOUT: Final = 1


class LaunchOrder(msgspec.Struct, kw_only=True):
    """As the plan's `hosts`."""

    count: int
    address: str
    cpus: int | None
    labels: dict[str, str]


class LaunchWord(msgspec.Struct, kw_only=True):
    """`connected` to a cluster: the hosts reach this machine at `text`. `problem`: an agent will not come, or there is no
    cluster; `code` is the exit code that goes with it."""

    say: Literal["connected", "problem"]
    text: str = ""
    code: int = 1


class Node(NamedTuple):
    """A node of the cluster that can take a host."""

    id: str
    name: str
    cpus: int


@contextlib.contextmanager
def cluster(order: LaunchOrder) -> Iterator[None]:
    """Connected to the cluster of the order, which for `local` is made here and thrown away. Raises LensError."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise PlanError("--cluster ray needs Ray: pip install 'llm-latency-lens[ray]' on every host") from error
    if order.address.startswith("ray://"):
        raise PlanError(
            "Ray Client (ray://) cannot be used: the hosts connect back to the driver; run lens on a node of the cluster"
        )
    address = order.address
    with contextlib.ExitStack() as made:
        if address == LOCAL:
            address = made.enter_context(local_cluster(order))
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except Exception as error:  # ConnectionError, RuntimeError, ValueError: whatever this version raises
            raise LensError(
                f"no Ray cluster at {address!r}: {' '.join(str(error).split())[:300]}; start one (`ray start --head`), "
                "set RAY_ADDRESS, or try --cluster ray:local"
            ) from error
        made.callback(ray.shutdown)
        yield


@contextlib.contextmanager
def local_cluster(order: LaunchOrder) -> Iterator[str]:
    """As many nodes on this machine as hosts are wanted; their address."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="lens-ray-")
    options: dict[str, Any] = {"num_cpus": order.cpus or os.cpu_count(), "object_store_memory": LOCAL_STORE_BYTES}
    options |= {"labels": order.labels, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=options | {"temp_dir": folder})
    try:
        for _ in range(order.count - 1):
            made.add_node(**options, wait=False)
        made.wait_for_nodes()
        yield made.address
    finally:
        made.shutdown()  # type: ignore[no-untyped-call]
        shutil.rmtree(folder, ignore_errors=True)


def nodes_for(order: LaunchOrder, found: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The nodes that take the hosts, those with the most CPUs. `found` is ray.nodes(). Raises LensError."""
    alive = [node for node in found if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    fitting = [node for node in alive if order.labels.items() <= (node.get("Labels") or {}).items()]
    nodes = [
        Node(
            node["NodeID"], node.get("NodeManagerHostname") or node["NodeManagerAddress"], int(node["Resources"]["CPU"])
        )
        for node in fitting
    ]
    if len(nodes) < order.count:
        with_labels = f" with the labels {order.labels}" if order.labels else ""
        have = ", ".join(f"{node.name} ({node.cpus} CPUs)" for node in nodes) or "none"
        raise LensError(
            f"{order.count} hosts need {order.count} Ray nodes{with_labels} and the cluster has {len(nodes)}: {have}; "
            "start more (`ray start --address=HEAD:6379`) or ask for fewer hosts"
        )
    return sorted(nodes, key=lambda node: -node.cpus)[: order.count]


def placed(order: LaunchOrder, nodes: Sequence[Node]) -> Any:
    """A placement group of one bundle a node. Raises LensError when it does not come to be in time."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    bundles = [{"CPU": float(order.cpus or node.cpus)} for node in nodes]
    group = placement_group(
        bundles,
        strategy="STRICT_SPREAD",
        bundle_label_selector=[{"ray.io/node-id": node.id} for node in nodes],
    )
    ready, _ = ray.wait([group.ready()], timeout=PLACEMENT_TIMEOUT_S)
    if not ready:
        remove_placement_group(group)
        wanted = ", ".join(
            f"{bundle['CPU']:.0f} CPUs on {node.name}" for bundle, node in zip(bundles, nodes, strict=True)
        )
        raise LensError(
            f"Ray did not give the hosts {wanted} within {PLACEMENT_TIMEOUT_S:.0f} s: something else holds them "
            "(`ray status` shows it); end that, or ask for fewer with hosts.cpus"
        )
    return group


def started(order: LaunchOrder, invitations: Sequence[Invitation]) -> list[Any]:
    """An actor on each node, with its agent started. Raises LensError."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    nodes = nodes_for(order, ray.nodes())  # type: ignore[no-untyped-call]
    group = placed(order, nodes)
    # The class is made here, so that it is pickled with its code: its node needs no other module than the agent's.
    actors = []
    for index, node in enumerate(nodes):
        strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
        actors.append(
            ray.remote(agent_class())
            .options(num_cpus=order.cpus or node.cpus, max_restarts=0, scheduling_strategy=strategy)
            .remote()
        )
    calls = []
    for actor, invitation in zip(actors, invitations, strict=True):
        content = frame(invitation)
        for start in range(0, len(content), PIECE_BYTES):
            actor.feed.remote(content[start : start + PIECE_BYTES])
        calls.append(actor.start.remote())
    for node, call in zip(nodes, calls, strict=True):
        try:
            ray.get(call, timeout=START_TIMEOUT_S)
        except Exception as error:  # what Ray wraps the actor's own error into
            raise LensError(f"no agent on Ray node {node.name}: {' '.join(str(error).split())[-300:]}") from error
    return actors


def agent_class() -> type[Any]:
    """The actor that executes an agent as a process of its own, in a session of its own. It does nothing beside it."""

    class AgentProcess:
        def __init__(self) -> None:
            self.content = b""
            self.process: Any = None
            self.output: Any = None

        def feed(self, piece: bytes) -> None:
            self.content += piece

        def start(self) -> None:
            import subprocess
            import sys
            import tempfile

            self.output = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the actor is
            command = [sys.executable, "-m", "llm_latency_lens.cli.processes.host"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=self.output, stderr=self.output, start_new_session=True
            )
            try:
                self.process.stdin.write(self.content)
                self.process.stdin.close()
            except BrokenPipeError:
                pass  # it has ended: ended() says how
            self.content = b""

        def ended(self) -> tuple[int, str] | None:
            code = self.process.poll()
            if code is None:
                return None
            self.output.seek(0)
            lines = [line for line in self.output.read().decode(errors="replace").splitlines() if line.strip()]
            return code, lines[-1] if lines else "it left no message"

    return AgentProcess


def watch(actors: Sequence[Any]) -> None:
    """Until stdin ends: reports agents that have ended."""
    import ray

    reported = False
    while not select.select([STDIN], [], [], WATCH_S)[0]:
        if reported:
            continue
        for index, actor in enumerate(actors):
            with contextlib.suppress(Exception):  # an actor that is gone: its agent's connection says so
                ended = ray.get(actor.ended.remote(), timeout=WATCH_S)
                if ended is not None:
                    say(LaunchWord(say="problem", text=f"host {index + 1} ended with {ended[0]}: {ended[1]}"))
                    reported = True


def dismissed(actors: Sequence[Any]) -> None:
    """Gives agents the time to end by themselves; what is left then ends with the job."""
    import ray

    end = time.monotonic() + END_S
    for actor in actors:
        with contextlib.suppress(Exception):
            while time.monotonic() < end and ray.get(actor.ended.remote(), timeout=WATCH_S) is None:
                time.sleep(0.05)


def say(word: LaunchWord) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(STDOUT, frame(word))


def main() -> int:
    order = read_frame(STDIN, LaunchOrder)
    try:
        with cluster(order):
            import ray

            address = "127.0.0.1" if order.address == LOCAL else ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            say(LaunchWord(say="connected", text=address))
            invitations = [read_frame(STDIN, Invitation) for _ in range(order.count)]
            actors = started(order, invitations)
            watch(actors)
            dismissed(actors)
    except EOFError:
        return 0
    except LensError as error:
        say(LaunchWord(say="problem", text=str(error), code=error.exit_code))
        return error.exit_code
    except Exception as error:
        say(LaunchWord(say="problem", text=f"Ray failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
