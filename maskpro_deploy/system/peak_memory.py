"""The most memory that this process had in use.

`getrusage` does not answer this on Linux: a process inherits the peak of the one that started it. The
kernel's own mark of the address space (`VmHWM`) starts at 0 with the program.
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_rss() -> int:
    """Most resident memory since the program began, in bytes."""
    if _STATUS.is_file() and (mark := re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.M)):
        return int(mark[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
