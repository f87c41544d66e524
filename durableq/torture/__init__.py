"""``durableq torture``: tries to make durableq break its promises, on the disk and machine where it will run.

Processes are killed at every system call, disks fail and fill up, the power is cut at every write, leases are lost;
after each blow the database is opened again and everything that was acknowledged has to be there. It needs no
application: it brings its own tasks, in files of its own. What a check found is a `Verdict`; see `checks`.
"""

from durableq.torture.verdicts import Check, Progress, Sizes, Verdict

__all__ = ["Check", "Progress", "Sizes", "Verdict"]
