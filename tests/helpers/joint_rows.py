"""Training rows and prediction batches of the joint family on a prepared cohort, for tests that look into them."""

import dataclasses
from unittest import mock

import numpy as np
import small_run

from ehrwear_jax.models.joint.config import MODALITIES, Config, ContextConfig, NetworkConfig
from ehrwear_jax.models.joint.examples import JointExamples


def config_of(context, modalities=MODALITIES, weights=None, static=False, **network):
    """A joint Config; terms are weighted as by default, and contrast where there is room for pairs.

    Args:
      context: options of ContextConfig. network: options of NetworkConfig.
    """
    if weights is None:
        weights = {"contrast": (1.0, 1.0, 0)} if context.get("pairs") else {}
    return Config(tuple(modalities), static, ContextConfig(**context), NetworkConfig(**network), weights)


def examples_of(root, context, split="train", seed=0, augmented=True, **config):
    """JointExamples of a split of the cohort that small_run.store finds below root."""
    return JointExamples(small_run.store(root, split), config_of(context, **config), seed, augmented)


def row_of(examples, g):
    """Training row g: {field: array without an axis of rows}."""
    batch = examples.spec.empty(1)
    row = {name: array[0] for name, array in batch.items()}
    examples.fill(row, g)
    return row


def rows_of(examples, epochs=2):
    """The rows of the first epochs."""
    return [row_of(examples, g) for g in range(epochs * examples.rows_per_epoch)]


def check_together(examples, n=12):
    """Rows that are written together are what each is alone, bit by bit; returns them."""
    batch = examples.spec.empty(n)
    examples.fill_rows(batch, range(n))
    rows = [{name: array[r] for name, array in batch.items()} for r in range(n)]
    assert_same(rows, [row_of(examples, g) for g in range(n)], examples.spec.fields)
    return rows


def check_mapped(examples, n=12):
    """Rows of people who lie in a file, none of them in memory, are those of people who are held."""
    kept = examples.people.cache
    want = [row_of(examples, g) for g in range(n)]
    assert kept.held and kept.file is None
    cache = examples.people.cache = type(kept)(0, 2**30, kept._pack, kept._unpack)
    try:
        for _ in range(2):
            for g in range(n):
                for name, x in row_of(examples, g).items():
                    np.testing.assert_array_equal(x, want[g][name], err_msg=name)
        assert not cache.held and cache.file.nbytes
        with mock.patch.object(type(examples.people.store), "read", side_effect=AssertionError("read again")):
            row_of(examples, 0)
    finally:
        examples.people.cache = kept


def contexts(row):
    """Token positions of the row's contexts, one array each."""
    return [np.nonzero(row["segment"] == s)[0] for s in range(1, row["segment"].max() + 1)]


def assert_same(some, others, names=None):
    """The same rows, in these fields; by default those that both have, of which there are some."""
    for one, two in zip(some, others, strict=True):
        mine = one.keys() & two.keys() if names is None else names
        assert mine
        for name in mine:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def with_patient(examples, i, **changes):
    """Changes the record of person i as the examples read it; returns the examples."""
    examples.people.cache.held[i] = dataclasses.replace(examples.people[i], **changes)
    return examples
