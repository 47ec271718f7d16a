"""What is trained: model, data and loss of a job."""

from distopt.tasks.base import Task, find_task

__all__ = ["Task", "find_task"]
