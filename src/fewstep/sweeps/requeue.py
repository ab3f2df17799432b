"""A job that SLURM has stopped: pre-empted or out of time it asks to be started again, cancelled it does not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None
SLURM_WAITS = 60  # s; longer than SLURM's KillWait, 30 s by default


def begin_again(status: int, requeue: Handler) -> None:
    """Have SLURM start this job again, if it stopped the job and the user did not.

    Called once the job's process has ended: after it is asked, SLURM kills what is left within half a minute, and the
    checkpoint may take longer. A pre-empted job that simply ended would count as failed.

    Args:
        status: exit status of the job's process.
        requeue: submitit's handler of SIGUSR2, which asks SLURM and ends this process; it refuses after
            hydra.launcher.max_num_timeout times.

    Raises:
        SystemExit: the job will be started again; submitit leaves no result of this attempt.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm" or not callable(requeue):
        return
    job = shown_job()
    if job.get("JobState") == "RUNNING":
        requeue(signal.SIGUSR2, None)
        time.sleep(SLURM_WAITS)  # of a job of several tasks the first one asks, and the others are ended with it
    if int(job.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        sys.exit(status)  # SLURM had decided so by itself


def shown_job() -> dict[str, str]:
    """What SLURM knows of this job, by its own names; empty where it does not answer."""
    command = ["scontrol", "--oneliner", "show", "job", os.environ["SLURM_JOB_ID"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
