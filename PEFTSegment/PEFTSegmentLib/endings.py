"""The end of a job of which the result is taken at once."""

from __future__ import annotations

from collections.abc import Callable

from . import dialogs
from .context import Context
from .runner import Task


def settle(context: Context, task: Task, take: Callable[[Task], None], failed: str) -> None:
    """Take the result of a task that has ended, or say why there is none; it is forgotten in any case.

    Parameters
    ----------
    take : callable
        Called with a task that has finished. An error of it is shown like that of the job.
    failed : str
        What did not come about, as the heading of the problem.
    """
    try:
        if task.state == "finished":
            take(task)
    except Exception as error:
        dialogs.show_later(dialogs.problem_of(error, failed))
    if task.state == "failed":
        dialogs.show_later(dialogs.problem_of_event(task.ending, failed))
    context.runner.forget(task)
