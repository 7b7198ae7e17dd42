"""ContextClues in plain numpy, float64, one context at a time and token by token: what the network is to compute."""

import numpy as np


def _norm(x_TxD, scale_D):
    return x_TxD / np.sqrt(np.mean(x_TxD**2, axis=-1, keepdims=True) + 1e-5) * scale_D


def _silu(x):
    return x / (1 + np.exp(-x))


def _softplus(x):
    return np.log1p(np.exp(x))


def _turned(x_TxHxD, theta):
    n = x_TxHxD.shape[-1] // 2
    angle = np.arange(len(x_TxHxD))[:, None, None] * theta ** -(np.arange(n) / n)
    turn = (x_TxHxD[..., :n] + 1j * x_TxHxD[..., n:]) * np.exp(1j * angle)
    return np.concatenate([turn.real, turn.imag], axis=-1)


def llama_block(p, x_TxD, config):
    """One layer of Llama over one context; p: parameters of the layer."""
    x = _norm(x_TxD, p["norm_attention"]["scale"])
    q, k, v = (np.einsum("td,dhe->the", x, p[n]["kernel"]) for n in ("query", "key", "value"))
    q, k = (_turned(y, config.rotary_theta) for y in (q, k))
    out = np.zeros_like(q)
    for h in range(config.n_heads):
        shared = h // (config.n_heads // config.n_kv_heads)
        for t in range(len(x)):
            score = k[: t + 1, shared] @ q[t, h] / np.sqrt(q.shape[-1])
            weight = np.exp(score - score.max())
            out[t, h] = weight @ v[: t + 1, shared] / weight.sum()
    x_TxD = x_TxD + np.einsum("the,hed->td", out, p["out"]["kernel"])
    x = _norm(x_TxD, p["norm_mlp"]["scale"])
    return x_TxD + (_silu(x @ p["gate"]["kernel"]) * (x @ p["up"]["kernel"])) @ p["down"]["kernel"]


def scanned(x_TxI, step_TxI, rate_IxS, write_TxS, read_TxS):
    """The state space, token by token: [T, I]."""
    state, out = np.zeros(rate_IxS.shape), []
    for x, step, write, read in zip(x_TxI, step_TxI, write_TxS, read_TxS, strict=True):
        state = np.exp(-step[:, None] * rate_IxS) * state + (step * x)[:, None] * write[None]
        out.append(state @ read)
    return np.array(out)


def convolved(x_TxI, kernel_WxI):
    """The causal convolution, token by token: [T, I]."""
    out = np.zeros_like(x_TxI)
    for t in range(len(x_TxI)):
        for w in range(min(len(kernel_WxI), t + 1)):
            out[t] += kernel_WxI[w] * x_TxI[t - w]
    return out


def mamba_block(p, x_TxD, config):
    """One layer of Mamba over one context; p: parameters of the layer."""
    both = np.einsum("td,dzi->tzi", _norm(x_TxD, p["norm"]["scale"]), p["in"]["kernel"])
    x = _silu(convolved(both[:, 0], p["convolution"]["kernel"]) + p["convolution"]["bias"])
    low, write, read = np.split(x @ p["select"]["kernel"], [config.rank, config.rank + config.state], axis=-1)
    step = _softplus(low @ p["step"]["kernel"] + p["step"]["bias"])
    y = scanned(x, step, np.exp(p["log_rate"]), write, read) + x * p["skip"]
    return x_TxD + (y * _silu(both[:, 1])) @ p["out"]["kernel"]


def hidden(params, token_T, config):
    """z of the tokens of one context, [T, D]; params: nested dict of float64 arrays."""
    block = {"llama": llama_block, "mamba": mamba_block}[config.backbone]
    x = params["dictionary"]["embedding"][token_T]
    for layer in range(config.n_layers):
        x = block(_of_layer(params["backbone"]["blocks"], layer), x, config)
    return _norm(x, params["backbone"]["norm_out"]["scale"])


def _of_layer(p, layer):
    return {k: _of_layer(v, layer) if isinstance(v, dict) else v[layer] for k, v in p.items()}


def log_probabilities(params, z_TxD, config):
    """Of each token to follow: [T, V]."""
    table = params["dictionary"]["embedding"].T if config.tied_head else params["head"]["kernel"]
    score = z_TxD @ table
    return (
        score
        - np.log(np.exp(score - score.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - score.max(-1, keepdims=True)
    )
