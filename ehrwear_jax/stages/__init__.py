"""Runs the stages of the main job; each resumes, skips what is done, and can be run alone.

ORDER names them; STUDY is another name for all of them. The runner is imported where it is used: it imports all the
rest.
"""

ORDER = ("prepare", "pretrain", "embed", "evaluate", "interpret", "report")
STUDY = "study"

__all__ = ["ORDER", "STUDY"]
