"""Prints the reference of all options: python -m ehrwear_jax.config"""

from ehrwear_jax.config import reference

if __name__ == "__main__":
    print(reference.markdown(), end="")
