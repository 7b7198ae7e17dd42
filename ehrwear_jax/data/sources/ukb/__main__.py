"""Builds a dataset from the files of UK Biobank, and prints rows a second and the peak of memory.

python -m ehrwear_jax.data.sources.ukb SOURCE DESTINATION [--seed=0] [--followup=hospital]
"""

import argparse
import resource
import time
from pathlib import Path

from ehrwear_jax.data.sources.ukb import assembly, linkage


def main() -> None:
    """Reads the arguments, builds, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--followup", choices=linkage.KINDS, default="hospital")
    args = parser.parse_args()
    start, cpu = time.perf_counter(), time.process_time()
    records = assembly.build(args.source, args.destination, seed=args.seed, ukb_followup=args.followup)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    rows = sum(r["n"] for r in records if r["step"].endswith(": rows read"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        f"{rows:,} rows in {seconds:.1f} s ({cpu:.1f} s of processors): {rows / seconds:,.0f} rows/s; "
        f"peak {peak:.2f} GB"
    )


if __name__ == "__main__":
    main()
