"""Errors a user can act on.

Every command line turns an `AdeptError` into one readable message and exit code 2, a `StoppedError` into 1. Anything
else that escapes is a defect of ours and keeps its traceback. A message says where, what was given, what is allowed
and what to do.
"""


class AdeptError(Exception):
    """Base of all errors caused by input or surroundings, not by a defect in this package."""


class TaskError(AdeptError):
    """An unknown task, or rows that do not fit the task."""


class HubError(AdeptError):
    """The Hub was needed and cannot be reached, or does not have what was named."""


class BackboneError(AdeptError):
    """A model that cannot be loaded or is of a kind that cannot be driven by input embeddings."""


class MethodError(AdeptError):
    """A trial's sizes or options that its method does not admit."""


class SpaceError(AdeptError):
    """A search space that cannot be searched."""


class SpecError(AdeptError):
    """Command line options that contradict each other or the experiment folder."""


class StateError(AdeptError):
    """A stored file that is missing, damaged, or belongs to something else."""


class StoppedError(AdeptError):
    """A search that cannot go on for now; nothing of it is lost, and it can be resumed."""


class StorageError(StoppedError):
    """A disk or an object store that does not take what must be kept."""


class TrackingError(AdeptError):
    """A tracking server that does not answer."""
