"""Defines the errors that end a run, and the exit codes that tell a supervisor what to do.

| code | meaning | start again? |
| ---: | :--- | :--- |
| 0 | done | no |
| 1 | a mistake that one sentence explains | no |
| 69 | another process of the job is lost, or did not answer in time | yes |
| 70 | too many steps in a row were not finite | no |
| 74 | a checkpoint could not be written, the disk is full for example | after making room |
| 75 | stopped by SIGTERM or SIGINT; the state was saved | yes |
| 76 | a step hung; the stacks of all threads were written | yes |
| 77 | another process writes to the run directory | no |
| 78 | the run directory is of another config or of other data | no |

69, 75 and 76, and an end by a signal (128 + its number, as a shell says it), are worth starting again.
"""

PROCESS_LOST, NOT_FINITE, NOT_SAVED, STOPPED, HUNG, IN_USE, CHANGED = 69, 70, 74, 75, 76, 77, 78
RESTART = (PROCESS_LOST, STOPPED, HUNG)


class RunError(RuntimeError):
    """Ends the process with `code` after one sentence."""

    code = 1


class ProcessLost(RunError):
    """Another process of the job is gone or late."""

    code = PROCESS_LOST


class NonFiniteStep(RunError):
    """Too many steps in a row had a loss or gradient that is not finite."""

    code = NOT_FINITE


class NotSaved(RunError):
    """A checkpoint could not be written."""

    code = NOT_SAVED


class Stopped(RunError):
    """A signal asked for the end; the state is saved."""

    code = STOPPED


class InUse(RunError):
    """Another process writes to the run directory."""

    code = IN_USE


class Changed(RunError):
    """What the run directory holds was made with another config or from other data."""

    code = CHANGED
