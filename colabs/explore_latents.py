# %% [markdown]
# # Explore what a model has learnt of a person
# Loads a finished run, draws z(t) of one held-out person beside their signals and events, and asks what-if: how does
# the predicted risk move when a drug is removed or the heart rate is raised? A what-if describes the model, not what
# would happen to the person.
#
# Make a run first: `launch/demo.sh` (minutes on two CPU cores), or in Colab
# `!git clone <repository> ehrwear_jax && cd ehrwear_jax && pip install -e . && launch/demo.sh`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.data import perturbations
from ehrwear_jax.interpret import geometry
from ehrwear_jax.stages.loaded_run import Study, reads

DAY_US = 86_400_000_000
WORKDIR = Path(os.environ.get("EHRWEAR_RUN", "runs/tiny"))  # @param {type:"string"}

# %% [markdown]
# ## The run
# The probe is the one of the evaluate stage: logistic regression on frozen z, fitted on the training split.

# %%
study = Study(config_lib.read(WORKDIR / "config.json"), WORKDIR)
row = study.joint
patients, probe = study.rows[row].patients, study.probes[row]
print(f"{WORKDIR}: row {row}, task {study.task}, {study.held.height} held-out reads")

# %% [markdown]
# ## The person
# `RANK` 0 is the held-out person with the most wearable windows and events; they are not named.

# %%
RANK = 0  # @param {type:"integer"}
held = patients.index.filter(pl.col("subject_id").is_in(study.held["subject_id"].to_list()))
ranked = held.sort(pl.col("n_windows") > 0, "n_events", "subject_id", descending=[True, True, False])
subject = ranked["subject_id"][RANK]
person = patients.record(patients.index["subject_id"].to_list().index(subject))
last = study.held.filter(pl.col("subject_id") == subject)["prediction_time"].to_physical().max()
begin = person.first_us
print(f"{len(person.time_K)} events, {len(person.window_end_M)} windows, {(last - begin) / DAY_US:.0f} days")

# %% [markdown]
# ## z(t), signals and events on one time axis
# z is whitened by the training split and drawn along the two directions in which this person moves most.

# %%
POINTS = 80  # @param {type:"integer"}
grid = np.linspace(begin, last, POINTS).astype(np.int64)
whiten = geometry.fit_whitening(study.train_latents(row))
z = study.read(row, reads([subject] * POINTS, grid))
centred = whiten(z) - whiten(z).mean(0)
components = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
risk = probe.predict_proba(z)


def days(time_us):
    return (np.asarray(time_us) - begin) / DAY_US


names = study.store.codes["code"].to_list()
kinds = [names[k].split("//")[0] for k in person.code_K]
lanes = sorted(set(kinds))
fig, axes = plt.subplots(3 + len(patients.channels), 1, sharex=True, figsize=(9, 2 * (3 + len(patients.channels))))
axes[0].plot(days(grid), risk, color="#0072B2")
axes[0].set_ylabel("risk")
for k, color in enumerate(("#D55E00", "#009E73")):
    axes[1].plot(days(grid), components[:, k], color=color, label=f"direction {k + 1}")
axes[1].set_ylabel("z (whitened)")
axes[1].legend(frameon=False)
axes[2].scatter(days(person.time_K), [lanes.index(k) for k in kinds], s=8, color="#444444")
axes[2].set_yticks(range(len(lanes)), lanes)
for c, channel in enumerate(patients.channels):
    values = np.ma.masked_invalid(person.window_MxLxC[..., c])
    if len(values):
        axes[3 + c].plot(days(person.window_end_M), values.mean(1), ".", markersize=3, color="#0072B2")
    axes[3 + c].set_ylabel(channel)
axes[-1].set_xlabel("days since the first record")
axes[-1].set_xlim(0, days(last))
fig.tight_layout()
plt.show()

# %% [markdown]
# ## What if?
# A change is a transform of the record as known at the read: see `ehrwear_jax/data/perturbations.py`.


# %%
def risk_at(time_us, change=None):
    return float(probe.predict_proba(study.read(row, reads([subject], [time_us]), change))[0])


def without(prefix):
    """The record without the codes that start with `prefix`."""
    return perturbations.drop_codes(perturbations.code_matcher(study.store.codes, (prefix,)))


def raised(channel, sd, from_days_before=np.inf):
    """The record with a channel higher by `sd` training standard deviations."""
    return perturbations.add_to_channel(channel, sd, from_days_before, scales=study.store.scales)


DRUG = "ATC//"  # @param {type:"string"}
CHANNEL, SD = "heart_rate", 1.0
changes = {"as recorded": None, f"without {DRUG}": without(DRUG), "no wearable": perturbations.drop_wear()}
if CHANNEL in patients.channels:
    changes[f"{CHANNEL} + {SD:g} SD"] = raised(CHANNEL, SD)
what_if = {name: risk_at(last, change) for name, change in changes.items()}
for name, value in what_if.items():
    print(f"{name:<24} risk {value:.3f}   change {value - what_if['as recorded']:+.3f}")

# %% [markdown]
# ## How the risk moves when the heart rate stays up
# The channel is raised in all windows up to each read.

# %%
if CHANNEL in patients.channels:
    changed = probe.predict_proba(study.read(row, reads([subject] * POINTS, grid), raised(CHANNEL, SD)))
    fig, ax = plt.subplots(figsize=(9, 3))
    ax.plot(days(grid), risk, color="#0072B2", label="as recorded")
    ax.plot(days(grid), changed, color="#D55E00", linestyle="--", label=f"{CHANNEL} + {SD:g} SD")
    ax.set_xlabel("days since the first record")
    ax.set_ylabel("risk")
    ax.legend(frameon=False)
    fig.tight_layout()
    plt.show()
