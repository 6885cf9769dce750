"""What this process takes of its machine."""

import os
import resource
import time


class Usage:
    """``cpu_percent`` of one processor, between the last two times that it was counted."""

    def __init__(self) -> None:
        self.cpu_percent = 0.0
        self._counted = (time.monotonic(), time.process_time())

    def count(self) -> None:
        wall, cpu = time.monotonic(), time.process_time()
        since, spent = wall - self._counted[0], cpu - self._counted[1]
        self._counted = (wall, cpu)
        self.cpu_percent = round(100 * spent / since, 1) if since > 0 else 0.0

    @property
    def memory_mb(self) -> float:
        """Resident, in megabytes."""
        return round(_resident_mb(), 1)


def _resident_mb() -> float:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
