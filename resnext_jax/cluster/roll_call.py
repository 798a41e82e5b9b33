"""What all processes of a run must have in common, and the sentences for what they have not."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
MAX_DIFFERENCES = 12
MAX_NAMES = 4
Facts = Mapping[str, str]  # what is compared, by the name that the user knows it by


def source_digest(root: Path = PACKAGE) -> str:
    """Twelve digits that change with any line of this package: a host left behind by `git pull` has others."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def differences(names: Sequence[str], facts: Sequence[Facts]) -> list[str]:
    """One line for each value that is not that of process 0.

    Args:
      names: of the processes, with their hosts.
      facts: of each process, in the same order.
    """
    lines = []
    first = facts[0]
    for field in dict.fromkeys(field for own in facts for field in own):
        others: dict[str, list[str]] = {}
        for name, own in zip(names, facts, strict=True):
            if own.get(field) != first.get(field):
                others.setdefault(own.get(field, "absent"), []).append(name)
        wanted = first.get(field, "absent")
        lines += [f"  {field}: {wanted} on {names[0]}, but {value} on {several(who)}" for value, who in others.items()]
    more = len(lines) - MAX_DIFFERENCES
    return lines[:MAX_DIFFERENCES] + ([f"  ... and {more} more differences"] if more > 0 else [])


def several(names: Sequence[str]) -> str:
    """The first few of them, the others counted."""
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
