# %% [markdown]
# # Explore the latent state of a person
# Loads a trained model, draws z(t) of one person beside their signals and events, and computes counterfactuals: how
# does the predicted risk change when a drug is removed or the heart rate is raised? A counterfactual describes the
# model, not an effect on the person.
#
# In Colab, first `!git clone <repository> ehrwear_jax && cd ehrwear_jax && pip install -e .`.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

import ehrwear_jax as ew
from ehrwear_jax.data import perturbations
from ehrwear_jax.data.sources.simulator import __main__ as simulator
from ehrwear_jax.report.trajectories import principal_components

DAY_US = 86_400_000_000
MODEL = os.environ.get("EHRWEAR_MODEL", "tiny")  # @param {type:"string"}
PEOPLE = os.environ.get("EHRWEAR_PEOPLE", "")  # @param {type:"string"}

# %% [markdown]
# ## The model and the people
# `MODEL` is the name of a bundle that comes with the package, or the folder of a bundle or of a run. `PEOPLE` is a
# folder with `meds/` and perhaps `wearable/`; where it is empty, 70 people are simulated whom the model has never
# seen. Of a run's own data, most people were trained on.

# %%
folder = Path(PEOPLE or tempfile.mkdtemp(prefix="people-"))
if not PEOPLE:
    simulator.main([str(folder), "--seed=7"])
model = ew.load(MODEL)
people = model.read(folder / "meds", folder / "wearable" if (folder / "wearable").is_dir() else None)
store = people.store
TASK = next(name for name in reversed(model.tasks) if model.probe(name).kind == "binary")
print(f"{model!r}\n{people.report}\ntask {TASK}")

# %% [markdown]
# ## The person
# What follows is about one time, the end of somebody's last wearable window, and the record up to it. `RANK` 0 is who
# has most windows in the 30 days before, of those with a drug where there are any: of somebody without a signal in
# what the model reads, nothing changes with the signal. People are not named.

# %%
RANK = 0  # @param {type:"integer"}
DRUG = "ATC//"  # @param {type:"string"}
is_drug = perturbations.code_matcher(store.codes, (DRUG,))


def candidate(position):
    """(has a drug, windows in the last 30 days, position, time) of a person; without a window at the last event."""
    record = store[position]
    ends = record.window_end_M if len(record.window_end_M) else record.time_K
    last = int(ends[-1]) if len(ends) else record.first_us
    windows = record.window_end_M
    recent = int(np.sum((windows <= last) & (windows > last - 30 * DAY_US)))
    return bool(is_drug(record.code_K[record.time_K <= last]).any()) and recent > 0, recent, position, last


_, recent, position, last = sorted(map(candidate, range(len(store))), reverse=True)[RANK]
person, subject = store[position], store.index["subject_id"][position]
begin = person.first_us
n_events, n_windows = np.sum(person.time_K <= last), np.sum(person.window_end_M <= last)
print(f"{n_events} events, {n_windows} windows ({recent} in the last 30 days), {(last - begin) / DAY_US:.0f} days")

# %% [markdown]
# ## z(t), signals and events on one time axis
# z is standardised by that of all people and drawn along its first two principal components over this person's
# record.

# %%
POINTS = 80  # @param {type:"integer"}
RISK = "predicted_boolean_probability"
grid = np.linspace(begin, last, POINTS).astype(np.int64)


def at(time_us):
    """The person's prediction times, of microseconds since 1970."""
    time = pl.Series("prediction_time", np.asarray(time_us, np.int64)).cast(pl.Datetime("us"))
    return pl.DataFrame([pl.Series("subject_id", [subject] * len(time), pl.Int64), time])


def values(embedded):
    """z as float64 [N, D]."""
    return embedded.drop("subject_id", "prediction_time").to_numpy().astype(np.float64)


everybody = values(people.embed())
z = values(people.embed(at(grid)))
z = (z - np.nanmean(everybody, 0)) / np.maximum(np.nanstd(everybody, 0), 1e-6)
(components,), _ = principal_components([np.nan_to_num(z)])
risk = people.predict(TASK, at(grid))[RISK].to_numpy()


def days(time_us):
    return (np.asarray(time_us) - begin) / DAY_US


names = store.codes["code"].to_list()
kinds = [names[code].split("//")[0] for code in person.code_K]
lanes = sorted(set(kinds))
fig, axes = plt.subplots(3 + len(store.channels), 1, sharex=True, figsize=(9, 2 * (3 + len(store.channels))))
axes[0].plot(days(grid), risk, color="#0072B2")
axes[0].set_ylabel("risk")
for k, color in enumerate(("#D55E00", "#009E73")):
    axes[1].plot(days(grid), components[:, k], color=color, label=f"PC{k + 1}")
axes[1].set_ylabel("z (whitened)")
axes[1].legend(frameon=False)
axes[2].scatter(days(person.time_K), [lanes.index(k) for k in kinds], s=8, color="#444444")
axes[2].set_yticks(range(len(lanes)), lanes)
for c, channel in enumerate(store.channels):
    signal = np.ma.masked_invalid(person.window_MxLxC[..., c])
    if len(signal):
        axes[3 + c].plot(days(person.window_end_M), signal.mean(1), ".", markersize=3, color="#0072B2")
    axes[3 + c].set_ylabel(f"{channel}\n(mean of a window)")
axes[-1].set_xlabel("days since the first record")
axes[-1].set_xlim(0, days(last))
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Counterfactuals
# A perturbation is a transform (record, prediction time) -> record, in physical units; more of them are in
# `ehrwear_jax/data/perturbations.py`.


# %%
def risk_at(time_us, change=None):
    return float(people.predict(TASK, at([time_us]), change)[RISK][0])


def raised(channel, sd, from_days_before=np.inf):
    """The record with a channel higher by `sd` training standard deviations."""
    return perturbations.add_to_channel(channel, sd, store.scales, from_days_before)


CHANNEL, SD = "heart_rate", 1.0
changes = {"as recorded": None, f"without {DRUG}": perturbations.drop_codes(is_drug)}
changes["no wearable"] = perturbations.drop_wear()
if CHANNEL in store.channels:
    changes[f"{CHANNEL} + {SD:g} SD"] = raised(CHANNEL, SD)
counterfactuals = {name: risk_at(last, change) for name, change in changes.items()}
for name, value in counterfactuals.items():
    print(f"{name:<24} risk {value:.3f}   change {value - counterfactuals['as recorded']:+.3f}")

# %% [markdown]
# ## The risk under a raised heart rate
# The channel is raised in all windows up to each time.

# %%
if CHANNEL in store.channels:
    changed = people.predict(TASK, at(grid), raised(CHANNEL, SD))[RISK].to_numpy()
    fig, ax = plt.subplots(figsize=(9, 3))
    ax.plot(days(grid), risk, color="#0072B2", label="as recorded")
    ax.plot(days(grid), changed, color="#D55E00", linestyle="--", label=f"{CHANNEL} + {SD:g} SD")
    ax.set_xlabel("days since the first record")
    ax.set_ylabel("risk")
    ax.legend(frameon=False)
    fig.tight_layout()
    plt.show()
