"""CLMBR, MOTOR's network pretrained on the next code: what is predicted, its loss and its size."""

import jax
import numpy as np
import pytest
import small_run
from motor_cases import batch_of, config_of, dictionary, row_of
from published_models import published
from small_model import random_params

from ehrwear_jax.config import options
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.models.motor import family
from ehrwear_jax.models.motor.config import DICTIONARY, Config
from ehrwear_jax.models.motor.timelines import Fitted
from ehrwear_jax.training import compile_only
from ehrwear_jax.training.pretrain import Model


@pytest.fixture(scope="module")
def examples(people):
    return family.examples(small_run.store(people, "train"), config_of(predicts="next_code"))


def test_the_code_of_a_token_is_its_own_and_no_ancestor():
    found = dictionary()
    task_G = np.arange(len(found.groups))
    task_G[found.groups.index("asthma")] = -1
    fitted, tokens = Fitted(None, found, task_G), found.vocabulary.tokens["token"].to_list()
    task_V = dict(zip(tokens, fitted.next_tasks().tolist(), strict=True))
    for token, code in (("flu", "flu"), ("gout", "gout"), ("lab//Q0", "lab"), ("lab//Q1", "lab"), ("F", "F")):
        assert found.groups[task_V[token]] == code
    assert task_V["asthma"] == -1 and task_V["<pad>"] == -1, "not its ancestor lung"


def test_every_token_predicts_the_code_of_the_next_one(examples):
    """In parts of long records too, whose last token is followed by one that is not shown."""
    assert set(examples.spec.fields) == {"entry", "weight", "age", "segment", "kv_range", "site", "next_task"}
    groups, n_beyond = examples.fitted.dictionary, 0
    codes = groups.vocabulary.tokens["code"].to_list()
    tasks = {name: k for k, name in enumerate(examples.fitted.task_names)}
    for g in range(examples.rows_per_epoch):
        row, at = row_of(examples, g), 0
        for _, timeline, start, stop in examples._contexts(g):
            want = [tasks.get(codes[t], -1) for t in timeline.token_K[start : stop + 1]]
            n_beyond += stop < len(timeline.token_K)
            end = at + 1 + stop - start
            assert row["next_task"][at:end].tolist() == (want + [-1])[: end - at]
            at = end
        assert (row["next_task"][at:] == -1).all()
    assert n_beyond > 3


def test_the_loss_is_the_cross_entropy_of_z(examples):
    """In numpy; z is that of a MOTOR with the same parameters."""
    batch = batch_of(examples, range(2))
    net, objective = (f(examples.spec, examples.config) for f in (family.network, family.objective))
    params = random_params(jax.eval_shape(lambda: net.init(jax.random.key(0), batch))["params"])
    everywhere = np.broadcast_to(np.arange(48, dtype=np.int32), (2, 48))
    times = family.network(examples.spec, config_of())

    @jax.jit
    def run(batch):
        z = times.apply({"params": params}, batch | {"site": everywhere}, method="encode")
        out = net.apply({"params": params}, batch)
        value, _ = objective(out, batch, objective.weights(0), objective.normalisers(batch))
        return z, net.apply({"params": params}, batch, method="read")[0], out["next_code"].nll, value

    z, found, loss, value = (np.asarray(x, np.float64) for x in run(batch))
    np.testing.assert_allclose(found, z, rtol=1e-5, atol=1e-5)
    score = z @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    real = batch["next_task"] >= 0
    own = np.take_along_axis(score, np.maximum(batch["next_task"], 0)[..., None], axis=-1)[..., 0]
    nll = np.log(np.exp(score).sum(-1)) - own
    np.testing.assert_allclose(loss[real], nll[real], rtol=1e-4, atol=1e-4)
    assert value == pytest.approx(nll[real].mean(), rel=1e-4) and real.sum() > 20


def test_the_published_sizes_have_141_million_parameters():
    spec, counts = family.assumed(published("clmbr"), PrepareConfig(), DICTIONARY)
    parts = compile_only.parameters(Model("clmbr", "motor", published("clmbr")), spec)
    assert sum(parts.values()) == pytest.approx(141e6, rel=0.01) and spec.facts.tasks == 8192
    assert parts["head"] == 768 * 8192 + 8192 and counts["targets"] == 2048
    small = config_of(predicts="next_code")
    spec, _ = family.assumed(small, PrepareConfig(), 50)
    sizes, counts = {"backbone": 1000}, {"tokens": 10, "seen": 40, "sites": 3, "targets": 9}
    keys = 2 * 2 * 3 * small.width * small.n_layers * 40
    assert family.flops(spec, small, sizes, counts) == 6 * 1000 * 10 + keys + 6 * small.width * spec.facts.tasks * 9


def test_models_of_times_keep_their_identity():
    assert "predicts" not in options.identity(Config())
    assert options.identity(published("clmbr"))["predicts"] == "next_code"
