"""The residual network of PaPaGei and Pulse-PPG in PyTorch, from the published description (Hong et al. 2020).

Blocks of two convolutions behind norm, ReLU and dropout; every second one halves the frames, and beside it goes the
highest of two frames; features are doubled by zeros on both sides.
"""

from torch_parity import batch_norm, convolution, renamed, torch


class SameConvolution(torch.nn.Conv1d):
    """As many frames as input frames / stride, rounded up, with zeros on both sides, the odd one behind."""

    def forward(self, x):
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = max(0, (-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1])
        return super().forward(torch.nn.functional.pad(x, (missing // 2, missing - missing // 2)))


class Block(torch.nn.Module):
    """[R, E, S] -> [R, D, ceil(S / stride)]."""

    def __init__(self, n_in, n_out, kernel, stride, is_first):
        super().__init__()
        self.stride, self.more = stride, n_out - n_in
        # without dropout: it is off at inference, and random in training
        self.ready_in = torch.nn.Identity() if is_first else torch.nn.Sequential(
            torch.nn.BatchNorm1d(n_in), torch.nn.ReLU()
        )  # fmt: skip
        self.conv_in = SameConvolution(n_in, n_out, kernel, stride)
        self.ready_out = torch.nn.Sequential(torch.nn.BatchNorm1d(n_out), torch.nn.ReLU())
        self.conv_out = SameConvolution(n_out, n_out, kernel)

    def forward(self, x):
        y = self.conv_out(self.ready_out(self.conv_in(self.ready_in(x))))
        if self.stride > 1:
            x = torch.nn.functional.max_pool1d(torch.nn.functional.pad(x, (0, self.stride - 1)), self.stride)
        return y + torch.nn.functional.pad(x, (0, 0, self.more // 2, self.more - self.more // 2))


class ResNet(torch.nn.Module):
    """[R, A, S] -> [R, D]; `last`: a norm and ReLU ahead of the pool."""

    def __init__(self, channels, width, kernel, n_blocks, *, pool, last):
        super().__init__()
        self.stem = torch.nn.Sequential(
            SameConvolution(channels, width, kernel), torch.nn.BatchNorm1d(width), torch.nn.ReLU()
        )
        blocks, before = [], width
        for k in range(n_blocks):
            after = width * 2 ** (k // 4)
            blocks.append(Block(before, after, kernel, 2 if k % 2 else 1, k == 0))
            before = after
        self.blocks = torch.nn.Sequential(*blocks)
        self.last = torch.nn.Sequential(torch.nn.BatchNorm1d(before), torch.nn.ReLU()) if last else torch.nn.Identity()
        self.pool = pool

    def forward(self, x):
        x = self.last(self.blocks(self.stem(x)))
        return x.mean(-1) if self.pool == "mean" else x.amax(-1)


def tensors(p, statistics):
    """Of a ResNet, from the parameters and statistics of layers.resnet1d.ResNet1D."""
    found = convolution("stem.0", p["stem"]) | batch_norm("stem.1", p["norm_stem"], statistics["norm_stem"])
    for name in (name for name in p if name.startswith("block_")):
        block, kept = p[name], statistics[name]
        values = convolution("conv_in", block["conv_in"]) | convolution("conv_out", block["conv_out"])
        values |= batch_norm("ready_out.0", block["norm_out"], kept["norm_out"])
        if "norm_in" in block:
            values |= batch_norm("ready_in.0", block["norm_in"], kept["norm_in"])
        found |= renamed(f"blocks.{name.removeprefix('block_')}", values)
    return found | (batch_norm("last.0", p["norm_out"], statistics["norm_out"]) if "norm_out" in p else {})
