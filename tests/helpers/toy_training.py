"""Puts the family toy_families.value_mean, of four numbers, in the place of the joint one, and its optimizer."""

import jax
import jax.numpy as jnp
import optax

from ehrwear_jax.training import pretrain

FAMILY = "toy_families.value_mean"


def toy_optimizer(config):
    """w <- 0.9 w + gradient."""
    del config

    def update(gradient, state, params):
        return jax.tree.map(lambda g, w: g - 0.1 * w, gradient, params), state

    return optax.GradientTransformation(lambda params: (jnp.zeros((), jnp.int32),), update)


def install(setattr):
    """setattr: the builtin, or monkeypatch's."""
    setattr(pretrain, "make_optimizer", toy_optimizer)
