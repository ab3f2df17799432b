"""How busy other processes keep this machine's cores. Imports nothing slow."""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
BUSY = (1, 3, 6, 7, 8)  # columns of a core: user, system, irq, softirq, steal; not nice, whose processes give way


class LoadOfOthers:
    """The load by other processes since this was made."""

    def __init__(self) -> None:
        self._start = time.monotonic(), busy_seconds() - time.process_time()

    def cores(self) -> float:
        """Cores that others have kept busy, of those that this process may use; 0 where the system does not say."""
        start, before = self._start
        return max(0.0, (busy_seconds() - time.process_time() - before) / max(time.monotonic() - start, 1e-9))


def busy_seconds() -> float:
    """Seconds that the cores which this process may use have worked so far, together."""
    if not STAT.is_file():
        return 0.0
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    rows = [row for line in STAT.read_text().splitlines() if (row := line.split()) and row[0] in allowed]
    return sum(int(row[column]) for row in rows for column in BUSY) / os.sysconf("SC_CLK_TCK")
