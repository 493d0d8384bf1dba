"""What the tests need beyond Python packages: a C compiler, a browser and a bootable systemd from Debian.

`python -m tests.bootstrap`, part of `make test`. The database servers are fetched by the tests that use them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PROGRAMS = {
    "chromium": ["chromium", "fonts-dejavu-core"],
    "gcc": ["gcc", "libc6-dev"],
    "ip": ["iproute2"],
    "setpriv": ["util-linux"],
    "systemd-analyze": ["systemd"],
    "systemd-nspawn": ["systemd-container", "python3-venv"],
    "taskset": ["util-linux"],
    "tcpdump": ["tcpdump"],
}


def main() -> int:
    """Installs the packages of the programs that are not there. Exit code 1 when that is not possible."""
    packages = [package for program, needed in PROGRAMS.items() if not shutil.which(program) for package in needed]
    if not packages:
        return 0
    if os.geteuid() != 0:
        print(f"the tests need: apt-get install {' '.join(packages)}", file=sys.stderr)
        return 1
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[0]
            print(f"the tests need {' '.join(packages)}, and apt-get {command[0]} failed: {why}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
