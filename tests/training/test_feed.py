"""Batches are a function of (seed, step), however many processes, threads and workers make them."""

import pickle

import pytest
from toy_families import pooled

from ehrwear_jax.training.feed import Share, train_batches


@pytest.fixture(scope="module")
def examples():
    return pooled.examples(pooled.Store(split="train"), pooled.Config(), seed=3)


def rows_of(examples, first, n):
    batch = examples.spec.empty(n)
    for r in range(n):
        examples.fill({name: array[r] for name, array in batch.items()}, first + r)
    return batch


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype and one[name].tobytes() == two[name].tobytes(), name


def test_batch_k_holds_the_rows_from_k_times_its_size_on(examples):
    for step, batch in enumerate(train_batches(examples, 4, n_steps=3)):
        examples.spec.check(batch, 4)
        assert_same(batch, rows_of(examples, 4 * step, 4))
    assert step == 2, "n_steps ends it"


@pytest.mark.parametrize("threads", [0, 1, 7])
def test_a_run_that_resumes_reads_on_where_it_was(examples, threads):
    batches = train_batches(examples, 4, start_step=5, n_steps=8, threads=threads)
    for step, batch in zip(range(5, 8), batches, strict=True):
        assert_same(batch, rows_of(examples, 4 * step, 4))


@pytest.mark.parametrize("blocks", [((0,), (1,), (2,)), ((0, 2), (1,)), ((0, 1, 2), (1, 2))])
def test_processes_read_their_blocks_of_each_global_batch(examples, blocks):
    """Next to each other or not, and some of them by several processes."""
    parts = [train_batches(examples, 6, Share(mine, 3), threads=p) for p, mine in enumerate(blocks)]
    for step in range(3):
        whole = rows_of(examples, 6 * step, 6)
        for mine, part in zip(blocks, parts, strict=True):
            places = [2 * b + r for b in mine for r in range(2)]
            assert_same(next(part), {k: x[places] for k, x in whole.items()})


def test_a_batch_that_does_not_divide_is_refused(examples):
    with pytest.raises(ValueError, match="a global batch of 8 rows does not divide into 3 equal blocks"):
        train_batches(examples, 8, Share((0,), 3))


def test_examples_keep_their_contract(examples):
    """What models/family.py asks of Examples, by the family that shares nothing with the joint one."""
    copied = pickle.loads(pickle.dumps(examples))
    assert_same(rows_of(copied, 5, 3), rows_of(examples, 5, 3))
    subjects = examples.subjects(range(20))
    assert subjects == sorted(set(subjects)) and set(subjects) <= set(examples.subject_id.tolist())
    counts = examples.counts(rows_of(examples, 0, 4))
    assert {"tokens", "patient_days"} <= counts.keys() and all(n > 0 for n in counts.values())
    assert set(examples.counts(examples.spec.empty(4)).values()) == {0}


@pytest.mark.slow  # a worker process imports everything anew
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_make_the_same_batches(examples, workers):
    there = train_batches(examples, 4, start_step=1, n_steps=6, threads=1, workers=workers)
    for step, batch in zip(range(1, 6), there, strict=True):
        assert_same(batch, rows_of(examples, 4 * step, 4))
