# %% [markdown]
# # Explore the latent state of a person
# Loads a finished run, draws z(t) of one held-out person beside their signals and events, and computes counterfactuals:
# how does the predicted risk change when a drug is removed or the heart rate is raised? A counterfactual describes the
# model, not an effect on the person.
#
# Make a run first: `launch/demo.sh` (minutes on two CPU cores), or in Colab
# `!git clone <repository> ehrwear_jax && cd ehrwear_jax && pip install -e . && launch/demo.sh`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

from ehrwear_jax.data import perturbations
from ehrwear_jax.interpret import geometry
from ehrwear_jax.report.trajectories import principal_components
from ehrwear_jax.stages import loaded_run
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir

DAY_US = 86_400_000_000
WORKDIR = Path(os.environ.get("EHRWEAR_RUN", "runs/tiny"))  # @param {type:"string"}

# %% [markdown]
# ## The run
# Config, networks and embeddings are those of the last config that ran in the workdir; the model is the reference
# model. The probe is the one of the evaluate stage: logistic regression on frozen z, fitted on the training split.

# %%
workdir = Workdir(WORKDIR)
plan = Plan(workdir.read_config(), workdir)
run = loaded_run.LoadedRun(plan)
model = loaded_run.reference(plan)
store, probe = run.store, run.probe(model)
print(f"{WORKDIR}: model {model}, task {run.task}, {run.held.height} held-out prediction times")

# %% [markdown]
# ## The person
# `RANK` 0 is the held-out person with the most wearable windows in the 30 days before a prediction time; what follows
# is about this prediction time and the record up to it. People are not named.

# %%
RANK = 0  # @param {type:"integer"}


def recent_windows(row):
    """How many windows of a person end in the 30 days before a prediction time."""
    end_us = run.record(model, run.position[row["subject_id"]]).window_end_M
    return int(np.sum((end_us <= row["at_us"]) & (end_us > row["at_us"] - 30 * DAY_US)))


held = run.held.select("subject_id", at_us=pl.col("prediction_time").to_physical())
held = held.with_columns(recent=pl.struct("subject_id", "at_us").map_elements(recent_windows, pl.Int64))
ranked = held.sort("recent", "at_us", "subject_id", descending=[True, True, False])
subject, last, recent = ranked.unique("subject_id", keep="first", maintain_order=True).row(RANK)
person = run.record(model, run.position[subject])
begin = person.first_us
n_events, n_windows = np.sum(person.time_K <= last), np.sum(person.window_end_M <= last)
print(f"{n_events} events, {n_windows} windows ({recent} in the last 30 days), {(last - begin) / DAY_US:.0f} days")

# %% [markdown]
# ## z(t), signals and events on one time axis
# z is whitened by the training split and drawn along its first two principal components over this person's record.

# %%
POINTS = 80  # @param {type:"integer"}
grid = np.linspace(begin, last, POINTS).astype(np.int64)
along = loaded_run.prediction_times([subject] * POINTS, grid)
whiten = geometry.fit_whitening(run.train_latents(model))
z = run.embed(model, along)
(components,), _ = principal_components([whiten(z)])
risk = probe.predict_proba(z)


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
    values = np.ma.masked_invalid(person.window_MxLxC[..., c])
    if len(values):
        axes[3 + c].plot(days(person.window_end_M), values.mean(1), ".", markersize=3, color="#0072B2")
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
    return float(probe.predict_proba(run.embed(model, loaded_run.prediction_times([subject], [time_us]), change))[0])


def without(prefix):
    """The record without the codes that start with `prefix`."""
    return perturbations.drop_codes(perturbations.code_matcher(store.codes, (prefix,)))


def raised(channel, sd, from_days_before=np.inf):
    """The record with a channel higher by `sd` training standard deviations."""
    return perturbations.add_to_channel(channel, sd, store.scales, from_days_before)


DRUG = "ATC//"  # @param {type:"string"}
CHANNEL, SD = "heart_rate", 1.0
changes = {"as recorded": None, f"without {DRUG}": without(DRUG), "no wearable": perturbations.drop_wear()}
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
    changed = probe.predict_proba(run.embed(model, along, raised(CHANNEL, SD)))
    fig, ax = plt.subplots(figsize=(9, 3))
    ax.plot(days(grid), risk, color="#0072B2", label="as recorded")
    ax.plot(days(grid), changed, color="#D55E00", linestyle="--", label=f"{CHANNEL} + {SD:g} SD")
    ax.set_xlabel("days since the first record")
    ax.set_ylabel("risk")
    ax.legend(frameon=False)
    fig.tight_layout()
    plt.show()
