"""HiMAE's encoder and decoder against those of PyTorch, written from the published description (Lee et al. 2025)."""

import jax
import numpy as np
import pytest
from small_model import random_params
from torch_parity import array, assert_same, batch_norm, convolution, filled, random_statistics, renamed, torch

from ehrwear_jax.models.himae import network
from ehrwear_jax.models.himae.config import Config


def normed(n_in, n_out, kernel, stride=1):
    """A convolution without a bias, and batch norm."""
    conv = torch.nn.Conv1d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
    return torch.nn.Sequential(conv, torch.nn.BatchNorm1d(n_out))


def doubling(n_in, n_out):
    """Twice as many samples."""
    return torch.nn.ConvTranspose1d(n_in, n_out, 5, 2, padding=2, output_padding=1)


class Down(torch.nn.Module):
    """Halves the samples."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.main = torch.nn.Sequential(normed(n_in, n_out, 5, 2), torch.nn.GELU(), normed(n_out, n_out, 5))
        self.short = normed(n_in, n_out, 1, 2)

    def forward(self, x):
        return torch.nn.functional.gelu(self.main(x) + self.short(x))


class Up(torch.nn.Module):
    """Doubles the samples and reads what the encoder said of as many."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.up = doubling(n_in, n_out)
        self.main = torch.nn.Sequential(
            normed(2 * n_out, n_out, 5), torch.nn.GELU(), normed(n_out, n_out, 5), torch.nn.GELU()
        )

    def forward(self, x, skip):
        return self.main(torch.cat([self.up(x)[..., : skip.shape[-1]], skip], dim=1))


class Himae(torch.nn.Module):
    """[R, A, S] -> (the bottleneck's mean, the signal)."""

    def __init__(self, widths, channels):
        super().__init__()
        ins = [channels, *widths[:-1]]
        self.down = torch.nn.ModuleList(map(Down, ins, widths))
        self.up = torch.nn.ModuleList(map(Up, widths[1:], widths[:-1]))
        self.signal = doubling(widths[0], channels)

    def forward(self, x):
        skips = [x]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = z = skips.pop()
        for up in reversed(self.up):
            x = up(x, skips.pop())
        return z.mean(-1), torch.tanh(self.signal(x))


def tensors(p, statistics):
    """Of a Himae."""

    def conv(name, block, kept, ours):
        return convolution(f"{name}.0", block[f"conv_{ours}"]) | batch_norm(
            f"{name}.1", block[f"norm_{ours}"], kept[f"norm_{ours}"]
        )

    found = convolution("signal", p["decoder"]["signal"], transposed=True)
    for name, block in p["encoder"].items():
        kept = statistics["encoder"][name]
        short = convolution("short.0", block["shortcut"])
        short |= batch_norm("short.1", block["norm_shortcut"], kept["norm_shortcut"])
        values = conv("main.0", block, kept, "in") | conv("main.2", block, kept, "out") | short
        found |= renamed(f"down.{name.removeprefix('block_')}", values)
    for name, block in ((n, b) for n, b in p["decoder"].items() if n.startswith("block_")):
        kept = statistics["decoder"][name]
        values = conv("main.0", block, kept, "in") | conv("main.2", block, kept, "out")
        values |= convolution("up", block["up"], transposed=True)
        found |= renamed(f"up.{name.removeprefix('block_')}", values)
    return found


@pytest.mark.parametrize(
    ("widths", "n_samples", "spread"), [((16, 32, 64, 128, 256), 1000, 0.15), ((4, 6, 8), 106, 0.4)]
)
def test_encoder_and_decoder_are_those_of_torch(widths, n_samples, spread):
    """Of the published size, whose frames are odd on the way down (1000, ..., 125, 63, 32), and in training too."""
    config, rng = Config(widths=widths), np.random.default_rng(0)
    signal = rng.uniform(-1, 1, (2, 2, n_samples, 1)).astype(np.float32)
    hidden = rng.random((2, 2, -(-n_samples // config.patch))) < 0.5
    batch = {"signal": signal, "hidden": hidden, "person": np.zeros((2, 2), np.int32)}
    net = network.HimaeNetwork(config, n_samples, 1)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), batch))
    params = random_params(shapes["params"], mean=0.0, spread=spread)
    variables = {"params": params, "batch_stats": random_statistics(shapes["batch_stats"])}
    z = jax.jit(lambda v, b: net.apply(v, b, method="encode"))(variables, batch)
    said = jax.jit(lambda v, b: net.apply(v, b))(variables, batch)["masked"]
    train = jax.jit(lambda v, b: net.apply(v, b, False, mutable=["batch_stats"])[0])(variables, batch)["masked"]

    theirs = filled(Himae(widths, 1), tensors(params, variables["batch_stats"]), (params, variables["batch_stats"]))
    x = array(signal.reshape(4, n_samples, 1)).transpose(1, 2)
    seen = array(np.where(np.repeat(hidden, config.patch, axis=-1)[..., :n_samples], 0.0, signal[..., 0]))
    seen = seen.float().reshape(4, 1, n_samples)
    assert_same(f"HiMAE {widths} z", z.reshape(4, -1), theirs(x)[0])
    assert_same(f"HiMAE {widths} signal", said.reshape(4, n_samples), theirs(seen)[1][:, 0])
    assert_same(f"HiMAE {widths} in training", train.reshape(4, n_samples), theirs.train()(seen)[1][:, 0])
