"""Writes a small simulated data set in MEDS form, with wearable tables, labels and a data card.

    python -m ehrwear_jax.data.sources.simulator DIR [--people=70] [--preset=noise] [--set NAME=VALUE ...]

DIR/meds is a MEDS 0.4 dataset, DIR/wearable what data/formats/wearable.py says, DIR/labels the tables of the tasks and
DIR/README.md the data card: what is in it, how it was made, what it is fit for. DIR/truth holds the hidden state of
each person and the true risks, for evaluation only. The default is 17.5 MB: the small synthetic set that the
paper's appendix A.9 promises. The same options give the same bytes. Any program that reads MEDS can use it; this one
does so by

    python -m ehrwear_jax.main --config=configs/tiny.py --config.data.source=meds --config.data.meds_dir=DIR/meds
        --config.data.wearable_dir=DIR/wearable --config.data.labels_dir=DIR/labels
"""

import argparse
import sys
from pathlib import Path

from ehrwear_jax.data.sources.simulator import data_card, simulate
from ehrwear_jax.data.sources.simulator import options as options_lib
from ehrwear_jax.runtime import files

PEOPLE = 70


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where it is written; resumes what was cut off")
    parser.add_argument("--people", type=int, default=PEOPLE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes; they change no byte")
    options_lib.add_arguments(parser)
    options = parser.parse_args(argv)
    try:
        config = options_lib.config_of(options, n_subjects=options.people, seed=options.seed)
        counts = simulate.simulate(options.folder, config, workers=options.workers)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    files.write_text(options.folder / data_card.NAME, data_card.text(options.folder, config, counts))
    n_bytes = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file())
    print(f"{options.folder / data_card.NAME}: {options.people:,} people, {n_bytes / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
