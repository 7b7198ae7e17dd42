"""Kernel attention in float64 numpy, its gradients, and what counts as close to them."""

import numpy as np

# Factors of a tile are float32: where one underflows, the weights that it stands for, below 1e-8 of a row, are zero.
# Where a gradient has no larger terms (one of 5e-22 was met), no bound relative to it can be kept.
UNRESOLVED = 1e-15


class Oracle:
    """Outputs and gradients of sum(out * weight), and the size of the terms that each gradient is a sum of."""

    def __init__(self, shape, x):
        c, u64 = shape, np.float64
        scale = c.D**-0.5
        qt, kt = x["q_time"].astype(u64)[:, :, None], x["k_time"].astype(u64)[:, None]
        position = np.arange(c.S)[None, None]
        mask = (position >= x["kv_range"][..., :1]) & (position < x["kv_range"][..., 1:])
        gap = np.where(mask, np.maximum(qt - kt, 0.0), 0.0)  # d
        newest = np.where(mask, gap, np.inf).min(-1, keepdims=True)
        newest = np.where(np.isfinite(newest), newest, 0.0)  # g
        logit = scale * np.einsum("bthd,bshd->bhts", x["q"], x["k"])
        if c.M:
            logit += np.take_along_axis(x["bias"], x["modality"][:, None, :, None].repeat(c.H, 1), 2)
        d, g = gap[:, None], newest[:, None]
        a, b = x["first"], x["second"]
        if c.R > 0:
            each = np.log(a)[None, :, :, None, None] - b[None, :, :, None, None] * d[:, :, None]  # [B, H, R, T, S]
            log_k = np.logaddexp.reduce(each, axis=2)
            share = np.exp(each - log_k[:, :, None])
            each_new = np.log(a)[None, :, :, None, None] - b[None, :, :, None, None] * g[:, :, None]
            log_k_new = np.logaddexp.reduce(each_new, axis=2)
            share_new = np.exp(each_new - log_k_new[:, :, None])
        elif c.R < 0:
            a4, l4 = a[None, :, None, None], b[None, :, None, None]
            ratio, ratio_new = (t**2 / (2 * a4 * l4**2) for t in (d, g))
            log_k, log_k_new = -a4 * np.log1p(ratio), -a4 * np.log1p(ratio_new)
        else:
            log_k, log_k_new = 0.0, 0.0
        m = np.broadcast_to(mask[:, None], logit.shape)
        relative = np.where(m, logit + log_k - log_k_new, -np.inf)
        top = relative.max(-1, keepdims=True)
        top = np.where(np.isfinite(top), top, 0.0)
        p = np.exp(relative - top)
        total = p.sum(-1, keepdims=True)
        p = p / np.where(total > 0, total, 1.0)
        with np.errstate(divide="ignore"):
            self.log_sum_exp = (top + np.log(total))[..., 0]
        self.out = np.einsum("bhts,bshd->bthd", p, x["v"])
        dp = np.einsum("bthd,bshd->bhts", x["weight"], x["v"])
        delta = (p * dp).sum(-1, keepdims=True)
        ds, size = p * (dp - delta), p * (np.abs(dp) + np.abs(delta))
        self.grads, self.sizes = {}, {}

        def both(name, f, *others):
            self.grads[name] = f(ds, *others)
            self.sizes[name] = f(size, *(np.abs(o) for o in others))

        both("q", lambda s, k: scale * np.einsum("bhts,bshd->bthd", s, k), x["k"])
        both("k", lambda s, q: scale * np.einsum("bhts,bthd->bshd", s, q), x["q"])
        self.grads["v"] = np.einsum("bhts,bthd->bshd", p, x["weight"])
        self.sizes["v"] = np.einsum("bhts,bthd->bshd", p, np.abs(x["weight"]))
        onehot = np.eye(max(c.M, 1))[x["modality"]]
        both("bias", lambda s: np.einsum("bhts,btm->bhms", s, onehot) * (c.M > 0))
        if c.R > 0:
            # rows of dS sum to zero: the gradient may be taken relative to the newest key, where its terms are small
            both("first", lambda s, z: np.einsum("bhts,bhrts->hr", s, z) / a, share - share_new)
            move = -(share * d[:, :, None] - share_new * g[:, :, None])
            both("second", lambda s, z: np.einsum("bhts,bhrts->hr", s, z), np.where(m[:, :, None], move, 0.0))
            self.sizes["first"] = np.einsum("bhts,bhrts->hr", size, share) / a
        elif c.R < 0:
            # differences between a key and the newest one, written so that float64 does not lose them either
            apart = (d - g) * (d + g) / (2 * a4 * l4**2)
            less = apart / ((1 + ratio) * (1 + ratio_new))
            for name, z in (("first", less - np.log1p(apart / (1 + ratio_new))), ("second", 2 * a4 * less / l4)):
                both(name, lambda s, z: np.einsum("bhts,bhts->h", s, z), np.where(m, z, 0.0))
            self.sizes["first"] = np.einsum("bhts->h", size)
        else:
            self.grads |= {"first": np.zeros_like(a), "second": np.zeros_like(b)}
            self.sizes |= {"first": np.ones_like(a), "second": np.ones_like(b)}


def assert_close(name, got, want, tolerance, size=None):
    """Relative error by norm; where terms cancel beyond the inputs' precision, relative to `size`, a share of theirs.

    A gradient is also close when it is off by UNRESOLVED.
    """
    got = np.asarray(got, np.float64)
    assert np.all(np.isfinite(got)), f"{name} is not finite"
    scale, floor = np.linalg.norm(want), 1e-30
    if size is not None:
        scale, floor = max(scale, np.linalg.norm(size)), UNRESOLVED
    error = np.linalg.norm(got - want)
    assert error <= tolerance * scale + floor, f"{name}: {error:.3g} of {scale:.3g}, {error / max(scale, 1e-300):.2e}"
