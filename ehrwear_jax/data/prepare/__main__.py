"""Verifies what prepare wrote: python -m ehrwear_jax.data.prepare verify DIR"""

import sys

from ehrwear_jax.data.prepare import output_manifest

if __name__ == "__main__":
    sys.exit(output_manifest.main(sys.argv[1:]))
