"""An environment for each peer: its own packages first, then those of metaopt's environment."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.peer import Peer

FOLDER = Path(__file__).parent.parent / ".environments"

OPTIONS = (
    "install", "--disable-pip-version-check", "--quiet",
    # What a peer does not bring is metaopt's: one torch for all, at the version that is tested.
    # betty declares Python < 3.11 and runs on newer versions.
    "--no-deps", "--ignore-requires-python",
)  # fmt: skip


class InstallError(RuntimeError):
    """A peer could not be installed; the text says why."""


def python_for(name: str, peer: Peer, folder: Path = FOLDER) -> str:
    """Return the interpreter of a peer's environment, which is made where it is not there.

    Args:
        name: of the peer.
        peer: what is installed; one without requirements runs where metaopt does.
        folder: of the environments.

    Raises:
        InstallError: with pip's reason, or why there is no environment.
    """
    if not peer.requirements:
        return sys.executable
    place, wanted = folder / name, "\n".join(peer.requirements)
    stamp = place / "installed.txt"
    builder = venv.EnvBuilder(with_pip=True, clear=True, symlinks=True)
    python = place / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    try:
        builder.create(place)
    except (OSError, subprocess.CalledProcessError) as error:  # such as a Python without ensurepip
        raise InstallError(f"no environment: {error}") from error
    done = subprocess.run(
        [str(python), "-m", "pip", *OPTIONS, *peer.requirements], capture_output=True, text=True
    )
    if done.returncode:
        raise InstallError(reason(done.stderr))
    # After pip has run: it would take what is on the path for installed.
    shared = [path for path in sys.path if Path(path).name == "site-packages"]
    (site,) = place.glob("lib/python*/site-packages")
    (site / "metaopt.pth").write_text("\n".join(shared) + "\n")
    stamp.write_text(wanted)
    return str(python)


def reason(text: str) -> str:
    """Return the line of a program's stderr that says why it failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1]
