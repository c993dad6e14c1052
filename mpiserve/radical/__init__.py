"""Jobs of mpiserve as tasks of RADICAL-Pilot: coupled jobs, and services for other tasks.

The functions make what `radical.pilot.TaskDescription` takes. They need no RADICAL-Pilot.
"""

from mpiserve.radical.service import endpoint, wait_ready
from mpiserve.radical.tasks import coupled_task, service_task

__all__ = ["coupled_task", "endpoint", "service_task", "wait_ready"]
