"""Records to batches: patients, and rows packed with their contexts at random access.

Everything random is a function of (seed, epoch, patient); a row is a function of its global index, so that a batch is a
function of (seed, step) however many hosts read it and wherever a run resumes.
"""

import json
from pathlib import Path

import grain
import numpy as np
import polars as pl

from ehrwear_jax import batch as batch_lib
from ehrwear_jax.data import augment, context, masking, records
from ehrwear_jax.data import patient as patient_lib
from ehrwear_jax.data.context import DAY_US, ContextConfig
from ehrwear_jax.data.tokenizer import Vocabulary

__all__ = ["DAY_US", "ContextConfig", "Patients", "TrainRows", "inference_batches", "train_batches"]

_AUGMENTATION = 1  # names a stream of random numbers beside that of the masks and reads


class Patients:
    """The prepared patients of one split, read at random access.

    Args:
      folder: written by `prepare.prepare_split`.
      split: "train", "tuning", "held_out" or None for all.
      config: ContextConfig.
      cache: how many decoded patients to keep in memory.
    """

    def __init__(self, folder, config, split=None, cache=20_000):
        self.folder, self.config, self._cache, self._size = Path(folder), config, {}, cache
        index = pl.read_parquet(self.folder / "index.parquet")
        self.train_days = float(index.filter(pl.col("split") == "train")["days"].sum())
        if split is not None:
            index = index.filter(pl.col("split") == split)
        self.index = index
        meta = json.loads((self.folder / "meta.json").read_text())
        self.steps, self.channels = meta["steps"], tuple(meta["channels"])
        self.window_us = meta["window_hours"] * 3_600_000_000
        self.vocabulary = Vocabulary.load(self.folder)
        self._shards = tuple(meta["shards"])
        paths = [str(self.folder / "records" / name) for name in self._shards]
        self.source = grain.sources.ArrayRecordDataSource(paths) if paths else []
        ehr, wear = "ehr" in config.modalities, "wear" in config.modalities
        self.n_static = index["n_static"].to_numpy() * ehr
        self.n_events = index["n_events"].to_numpy() * ehr
        self.n_windows = index["n_windows"].to_numpy() * wear
        self.position = index["position"].to_numpy()
        counts = self.vocabulary.tokens["count"].to_numpy()
        self.interest_V = self._starting_with(config.interest_codes)
        scale_V = np.where(self._starting_with(config.administrative_codes), config.administrative_weight, 1.0)
        self.mask_weight_V = masking.token_weights(counts, config.mask_temperature, scale_V)
        self.day_weight_V = masking.token_weights(counts, config.day_temperature, scale_V)
        self.future_codes = self.vocabulary.future_codes(config.future_codes)
        classes = {}
        for k, (_, codes) in enumerate(self.future_codes.values()):
            for code in codes:
                classes.setdefault(code, []).append(k)
        of_token = [classes.get(c, []) for c in self.vocabulary.tokens["code"]]
        # a code belongs to itself and to its ancestors; -1 fills up
        self.future_class_VxA = np.full((len(of_token), max(map(len, of_token), default=0)), -1)
        for v, found in enumerate(of_token):
            self.future_class_VxA[v, : len(found)] = found

        recalled = self.vocabulary.recalled_tokens(config.recalled_tokens)
        self.n_recalled = len(recalled)
        self.recalled_class_V = np.full(len(self.vocabulary), -1)
        self.recalled_class_V[recalled] = np.arange(len(recalled))

    def __len__(self):
        return len(self.position)

    def __getitem__(self, i):
        patient = self._cache.get(i)
        if patient is None:
            record = records.decode(self.source[int(self.position[i])])
            patient = patient_lib.make_patient(record, self.config.modalities)
            if len(self._cache) < self._size:
                self._cache[i] = patient
        return patient

    def files(self):
        """Names, below the folder, of the files that batches are made of."""
        shards = [f"records/{name}" for name in self._shards]
        return ["index.parquet", "meta.json", "vocabulary.csv", "codes.csv", *shards]

    def _starting_with(self, prefixes):
        """Which tokens are of a code that starts with one of the prefixes: bool [V]."""
        codes = self.vocabulary.tokens["code"].to_list()
        return np.array([c.startswith(tuple(prefixes)) for c in codes], bool)

    def later_rates(self):
        """Expected share of queries with a later code per horizon: 1 - exp(-events per day of training x days).

        Returns:
          tuple of floats, [future_codes x horizons] in row-major order.
        """
        counts = np.array([count for count, _ in self.future_codes.values()], np.float64)
        per_day = counts / max(self.train_days, 1.0)
        return tuple((-np.expm1(-np.outer(per_day, self.config.horizons))).ravel().tolist())

    def batch_shape(self):
        c = self.config
        wear = "wear" in c.modalities and len(self.channels) > 0
        return batch_lib.BatchShape(
            tokens=c.tokens,
            windows=c.windows if wear else 0,
            steps=self.steps,
            channels=len(self.channels),
            patches=self.steps // c.patch_steps,
            masked=max(1, c.tokens // 4),
            events=c.events,
            queries=c.queries,
            future_windows=c.future_windows,
            future_codes=len(self.future_codes),
            recalled_tokens=self.n_recalled,
        )


class TrainRows:
    """Training rows at random access: `rows[g]` is a function of (seed, g).

    Each epoch permutes the patients, draws where each context ends, and packs contexts next-fit by the most that each
    may need. Every epoch has the same number of rows as epoch 0; what does not fit is left out of that epoch (another
    part each time).

    Args:
      augmented: whether the signal is changed and a modality may be dropped, as the patients' config says. These draws
        have a Generator of their own per (seed, epoch, patient): masks and reads are the same without them.
    """

    def __init__(self, patients, seed, augmented=True):
        self.patients, self.seed, self.augmented, self._plans = patients, seed, augmented, {}
        self.shape = patients.batch_shape()
        total = patients.n_events + patients.n_windows
        self.eligible = np.nonzero(total > 0)[0]
        if not len(self.eligible):
            raise ValueError(f"{patients.folder}: no training patient has a token of {patients.config.modalities}")
        self.rows_per_epoch = len(self._plan(0)[1]) - 1

    def _plan(self, epoch):
        """(order of patients, boundaries of rows in it)."""
        plan = self._plans.get(epoch)
        if plan is None:
            c, p = self.patients.config, self.patients
            order = np.random.default_rng([self.seed, epoch]).permutation(self.eligible)
            static = np.minimum(p.n_static[order], c.context_tokens - 1)
            windows = np.minimum(p.n_windows[order], self.shape.windows)
            tokens = np.minimum(p.n_events[order] + windows + static, c.context_tokens)
            needs = np.stack([tokens, windows, self.query_count(tokens)], axis=1)
            limit = (c.tokens, self.shape.windows, c.queries)
            bounds, used = [0], (0, 0, 0)
            for i, need in enumerate(needs.tolist()):
                total = tuple(map(sum, zip(used, need, strict=True)))
                if any(t > m for t, m in zip(total, limit, strict=True)):
                    bounds.append(i)
                    total = need
                used = total
            plan = order, np.append(bounds, len(order))
            # reader threads share the plans: replace the dict, never change it
            self._plans = {k: v for k, v in self._plans.items() if k >= epoch - 1} | {epoch: plan}
        return plan

    def query_count(self, n_tokens):
        c = self.patients.config
        return np.maximum(1, c.queries * n_tokens // c.tokens)

    def __len__(self):
        return np.iinfo(np.int64).max

    def __getitem__(self, g):
        epoch, r = divmod(int(g), self.rows_per_epoch)
        order, bounds = self._plan(epoch)
        r %= len(bounds) - 1
        row, at = context.new_row(self.shape)
        for i in order[bounds[r] : bounds[r + 1]]:
            self._add(row, at, int(i), epoch)
        return context.close_row(row, at)

    def subjects(self, indices):
        """Sorted subject ids in the rows of the given global indices."""
        ids = self.patients.index["subject_id"]
        found = set()
        for g in indices:
            epoch, r = divmod(int(g), self.rows_per_epoch)
            order, bounds = self._plan(epoch)
            r %= len(bounds) - 1
            found |= set(ids.gather(order[bounds[r] : bounds[r + 1]]).to_list())
        return sorted(found)

    def _add(self, row, at, i, epoch):
        patient, c = self.patients[i], self.patients.config
        rng, augment_rng = np.random.default_rng([self.seed, epoch, i]), None
        if self.augmented:
            augment_rng = np.random.default_rng([self.seed, epoch, i, _AUGMENTATION])
            if c.drop_ehr or c.drop_wear:
                n_wear = int(patient.is_wear_N.sum())
                has_ehr, has_wear = n_wear < len(patient.is_wear_N), n_wear > 0
                keep = augment.drop_modality(augment_rng, has_ehr, has_wear, c.drop_ehr, c.drop_wear)
                patient = patient_lib.without(patient, *keep)
        n = len(patient.time_N)
        limit = max(c.context_tokens - len(patient.static_token_S), 1)
        if c.patient_days and rng.random() < c.patient_days:
            stop = patient_lib.sample_day(rng, patient, self.patients.day_weight_V)
        else:
            stop = n if n <= limit else int(rng.integers(limit, n + 1))
        start = context.first_token(patient, stop, c, self.shape.windows)
        static = min(len(patient.static_token_S), c.context_tokens - 1)
        n_query = min(int(self.query_count(stop - start + static)), c.queries - at["queries"])
        at_token = patient.time_N[start:stop][rng.integers(0, stop - start, n_query)]
        span = patient.time_N[start], patient.time_N[stop - 1]
        anywhere = rng.integers(span[0], span[1] + 1, n_query)
        query_us = np.sort(np.where(rng.random(n_query) < 0.5, at_token, anywhere))
        context.fill_context(row, at, self.patients, patient, start, stop, query_us, rng, augment_rng)


def train_batches(rows, batch_size, *, start_step=0, n_steps=None, process_index=0, process_count=1, threads=2):
    """Iterator over this process's share of each global batch, from `start_step` on.

    Raises:
      ValueError: batch_size is not divisible by process_count.
    """
    if batch_size % process_count:
        raise ValueError(f"global batch {batch_size} is not divisible by {process_count} processes")
    share = batch_size // process_count
    first = process_index * share

    def row(k):
        # contiguous shares: a row's place in the global batch, and so its dropout, is the same for any process count
        step, place = divmod(k, share)
        return rows[step * batch_size + first + place]

    n_rows = np.iinfo(np.int64).max // 2 if n_steps is None else n_steps * share
    dataset = grain.MapDataset.range(n_rows).map(row).batch(share, drop_remainder=True)[start_step:]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * max(threads, 1))
    return iter(dataset.to_iter_dataset(options))


def inference_batches(patients, index_N, time_us_N, batch_size):
    """Batches whose query i is a read of patient index_N[i] at time_us_N[i]; nothing is hidden, no targets.

    Yields:
      (batch, where): where_RxQ int64 gives, for each query slot, its place in index_N, or -1.
    """
    shape, c = patients.batch_shape(), patients.config
    rows, places = [], []
    row, at = context.new_row(shape)
    place = np.full(shape.queries, -1)
    for k, (i, t) in enumerate(zip(index_N, time_us_N, strict=True)):
        patient = patients[int(i)]
        stop = int(np.searchsorted(patient.time_N, t, side="right"))
        start = context.first_token(patient, stop, c, shape.windows)
        n_tokens = stop - start + min(len(patient.static_token_S), c.context_tokens - 1)
        n_windows = int(patient.is_wear_N[start:stop].sum())
        if (
            at["tokens"] + n_tokens > shape.tokens
            or at["windows"] + n_windows > shape.windows
            or at["queries"] + 1 > shape.queries
        ):
            rows.append(context.close_row(row, at))
            places.append(place)
            row, at = context.new_row(shape)
            place = np.full(shape.queries, -1)
            if len(rows) == batch_size:
                yield _stack(rows), np.stack(places)
                rows, places = [], []
        place[at["queries"]] = k
        context.fill_context(row, at, patients, patient, start, stop, np.array([t], np.int64), None)
    if at["queries"]:
        rows.append(context.close_row(row, at))
        places.append(place)
    while rows and len(rows) < batch_size:
        empty, cursor = context.new_row(shape)
        rows.append(context.close_row(empty, cursor))
        places.append(np.full(shape.queries, -1))
    if rows:
        yield _stack(rows), np.stack(places)


def _stack(rows):
    return {name: np.stack([r[name] for r in rows]) for name in rows[0]}
