"""Models of other papers, as configs/full.py adds them."""

import functools
import runpy
from pathlib import Path
from typing import Any

from ehrwear_jax.config import parse

_FULL = Path(__file__).parents[2] / "configs" / "full.py"


@functools.cache
def published(name: str) -> Any:
    """The options of one."""
    return parse(runpy.run_path(str(_FULL))["get_config"](name)).model_config(name)
