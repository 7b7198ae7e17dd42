"""Writes a trained network of a run as a bundle, one folder that is all that new data need.

python -m ehrwear_jax.inference.bundle RUN DESTINATION [--model=joint] [--half]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code, 2 with one sentence where it cannot."""
    program, what = "python -m ehrwear_jax.inference.bundle", (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog=program, description=what)
    parser.add_argument("run", type=Path, help="folder of a run (its workdir)")
    parser.add_argument("destination", type=Path, help="folder of the bundle, which must not be there yet")
    parser.add_argument("--model", default="", help="which network; the reference model by default")
    parser.add_argument("--seed", type=int, help="the first of config.seeds by default")
    parser.add_argument("--fold", default="", help="the first one by default")
    parser.add_argument("--half", action="store_true", help="weights in half precision")
    given = parser.parse_args(arguments)
    from ehrwear_jax.inference import write_bundle

    try:
        plan = write_bundle.open_run(given.run)
        folder = write_bundle.write(
            plan, write_bundle.chosen(plan, given.model, given.seed, given.fold), given.destination, given.half
        )
    except (ValueError, OSError) as error:
        print(f"ehrwear_jax.inference.bundle: {error}", file=sys.stderr)
        return 2
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{folder}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
