"""Ends a process whose step hangs, as a lost device or a lost peer makes it, with the stacks of all threads."""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ehrwear_jax.runtime.exit_codes import HUNG

# The stream as it was when the process started: tests and notebooks replace sys.stderr by what has no file.
STDERR = sys.__stderr__ or 2


class Watchdog:
    """While the `with` block lasts, `beat` is to be called at least every `timeout_s` seconds.

    Else all stacks go to stderr and to <folder>/stacks-<time>-<name>.txt, `last_words` is called, and the process ends
    with exit code HUNG. If even that hangs, because a thread that never returns holds the interpreter, a timer of
    faulthandler, which needs no interpreter, writes the stacks and ends it with code 1.

    Args:
      timeout_s: 0: watches nothing.
      name: of this process among several.
      last_words: called with one sentence, within `patience_s`.
    """

    def __init__(
        self,
        folder: Path | str,
        timeout_s: float,
        name: str = "0",
        last_words: Callable[[str], object] | None = None,
        patience_s: float = 10.0,
    ) -> None:
        self._folder, self._timeout_s, self._name = Path(folder), timeout_s, name
        self._last_words, self._patience_s = last_words, patience_s
        self._end, self._allowed = threading.Event(), timeout_s
        self._beat, self._armed, self._phase = time.monotonic(), 0.0, "starting"

    def beat(self, phase: str, allowed_s: float | None = None) -> None:
        """Something goes on; the next beat is to come within allowed_s (by default the timeout)."""
        self._allowed = max(allowed_s or 0.0, self._timeout_s)
        self._beat, self._phase = time.monotonic(), phase
        if self._timeout_s and self._beat - self._armed > min(1.0, self._timeout_s / 10):
            self._arm()

    def _arm(self):
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(2 * self._allowed + self._patience_s + 1, exit=True, file=STDERR)

    def _watch(self):
        while not self._end.wait(min(1.0, self._timeout_s / 10)):
            waited = time.monotonic() - self._beat
            if waited > self._allowed:
                self._give_up(waited)

    def _give_up(self, waited):
        path = self._folder / f"stacks-{time.strftime('%Y%m%d-%H%M%S')}-{self._name}.txt"
        sentence = f"ehrwear_jax: {self._phase} has hung for {waited:.0f} s; the stacks of all threads are in {path}"
        talker = threading.Thread(target=self._say, args=(sentence,), daemon=True)
        try:
            print(sentence, file=sys.__stderr__, flush=True)
            with open(path, "w") as f:
                f.write(sentence + "\n\n")
                f.flush()
                faulthandler.dump_traceback(file=f, all_threads=True)
            faulthandler.dump_traceback(file=STDERR, all_threads=True)
            talker.start()
            talker.join(self._patience_s)
        finally:
            os._exit(HUNG)  # the hanging thread would never let the interpreter end

    def _say(self, sentence):
        try:
            if self._last_words is not None:
                self._last_words(sentence)
        except Exception:
            logging.exception("the watchdog's last words")

    def __enter__(self) -> Self:
        if self._timeout_s:
            self._beat = time.monotonic()
            self._arm()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self._timeout_s:
            faulthandler.cancel_dump_traceback_later()
