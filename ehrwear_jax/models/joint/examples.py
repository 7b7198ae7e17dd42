"""Records to batches: patients, and rows packed with their contexts at random access.

Everything random is a function of (seed, epoch, patient); a row is a function of its global index, so that a batch is a
function of (seed, step) however many hosts read it and wherever a run resumes.
"""

import dataclasses
import threading

import grain
import numpy as np
import polars as pl

from ehrwear_jax.models.joint import augmentation as augment
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import context, masking, targets
from ehrwear_jax.models.joint import packing as plan_lib
from ehrwear_jax.models.joint import patient as patient_lib
from ehrwear_jax.models.joint import vocabulary as vocabulary_lib
from ehrwear_jax.models.joint.context import DAY_US, ContextConfig

__all__ = ["DAY_US", "ContextConfig", "Patients", "TrainRows", "inference_batches", "train_batches"]

_AUGMENTATION = 1  # names a stream of random numbers beside that of the masks and reads
_PLANNED, _FURTHER = 0, 1  # so that no two appearances share a key
_GOLDEN = 0.6180339887498949  # phases of successive rows that cover [0, 1) evenly
_LEAST_FREE = 32  # a row is full when less than this part of its tokens is free
_MOST_FAILED = 3  # further patients for whose windows a row has no room, after which it is left as it is


class Patients:
    """The patients of a store as the joint model is given them, read at random access.

    Args:
      store: RecordStore of one split, or of all.
      config: ContextConfig.
      cache_bytes: how much memory patients may take; those beyond it are made at every use.
    """

    def __init__(self, store, config, cache_bytes=2**29):
        self.store, self.config, self.cache_bytes = store, config, cache_bytes
        self._cache, self._cached_bytes = {}, 0
        self.folder, self.index, self.train_days = store.folder, store.index, store.train_days
        self.steps, self.channels, self.window_us = store.steps, store.channels, store.window_us
        self.has_quality = store.has_quality
        self.further_channel_X = self._on_grid(name.rpartition("__")[0] for name in store.derived)
        raw = store.segments.get(config.raw_segments) if config.raw_windows else None
        if config.raw_windows and raw is None:
            raise ValueError(
                f"{store.records_dir} has no segments {config.raw_segments!r}, for which config.context.raw_windows "
                "makes room: name a set of config.prepare.segments in config.context.raw_segments"
            )
        self.raw_samples, self.raw_channel_A = (raw.samples, self._on_grid(raw.channels)) if raw else (0, np.zeros(0))
        self.vocabulary = vocabulary_lib.of_store(store)
        ehr, wear = "ehr" in config.modalities, "wear" in config.modalities
        self.n_static = self.index["known_static"].to_numpy() * ehr
        self.n_events = self.index["known_events"].to_numpy() * ehr
        self.n_windows = self.index["n_windows"].to_numpy() * wear
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

    def _on_grid(self, channels):
        """Where each channel lies on the grid, -1: not on it."""
        return np.array([self.channels.index(c) if c in self.channels else -1 for c in channels], int)

    def __len__(self):
        return len(self.store)

    def __getitem__(self, i):
        patient = self._cache.get(i)
        if patient is None:
            patient = self.of(patient_lib.given(self.store.read(i), self.config.modalities))
            if self._cached_bytes + patient.nbytes <= self.cache_bytes:
                self._cached_bytes += patient.nbytes
                self._cache[i] = patient
        return patient

    def record(self, i):
        """Record i with the modalities that the model is given."""
        return patient_lib.given(self.store[i], self.config.modalities)

    def of(self, record):
        """The Patient of a record as `record` returns it, changed or not."""
        has_raw = self.config.raw_windows and "wear" in self.config.modalities
        raw_segments = self.config.raw_segments if has_raw else ""
        return patient_lib.make_patient(record, self.store, self.vocabulary, raw_segments)

    def files(self):
        """Names, below the folder, of the files that batches are made of."""
        return self.store.files()

    def __getstate__(self):
        """For worker processes, which fill caches of their own."""
        return vars(self) | {"_cache": {}, "_cached_bytes": 0}

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
        raw = wear and c.raw_windows > 0
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
            further_summaries=len(self.further_channel_X),
            # what there is to align takes both modalities
            pairs=c.pairs if wear and "ehr" in c.modalities else 0,
            raw_windows=c.raw_windows if raw else 0,
            raw_samples=self.raw_samples if raw else 0,
            raw_channels=len(self.raw_channel_A) if raw else 0,
            quality=wear and self.has_quality,
        )


@dataclasses.dataclass
class Appearance:
    """A patient's appearance in a row before its length is settled."""

    patient: patient_lib.Patient
    place: int
    stop: int
    rng: np.random.Generator
    augment_rng: np.random.Generator | None


class TrainRows:
    """Training rows at random access: `rows[g]` is a function of (seed, g).

    Each epoch permutes the patients, draws where each context ends, and packs contexts next-fit by what the index tells
    of their lengths. Every epoch has the same number of rows as epoch 0; what does not fit is left out of that epoch
    (another part each time). In a row whose contexts turn out longer than planned, the longest lose their oldest
    tokens; what is left free goes to further appearances of randomly drawn patients, the last of which shows as many
    of the latest tokens as there is room for.

    Args:
      augmented: whether the signal is changed and a modality may be dropped, as the patients' config says. These draws
        have a Generator of their own: masks and reads are the same without them.

    Raises:
      ValueError: nobody has a token.
    """

    def __init__(self, patients, seed, augmented=True):
        self.patients, self.seed, self.augmented = patients, seed, augmented
        self._plans, self._lock = {}, threading.Lock()
        self.shape = patients.batch_shape()
        total = patients.n_events + patients.n_windows
        self.eligible = np.nonzero(total > 0)[0]
        if not len(self.eligible):
            raise ValueError(f"{patients.folder}: no training patient has a token of {patients.config.modalities}")
        self.weight = self._weights()
        self.rows_per_epoch = self.plan(0).n_rows

    def __getstate__(self):
        """For worker processes: they plan for themselves."""
        return {k: v for k, v in vars(self).items() if k not in ("_plans", "_lock")}

    def __setstate__(self, state):
        vars(self).update(state, _plans={}, _lock=threading.Lock())

    def _weights(self):
        """plan.patient_weights of the eligible patients, or None where all are alike."""
        config, index = self.patients.config, self.patients.index
        if not config.patient_temperature or "ehr" not in config.modalities:  # rarity is an EHR fact
            return None
        rarity = index["rarity"].cast(pl.Float64).fill_null(np.nan).to_numpy()[self.eligible]
        return plan_lib.patient_weights(rarity, config.patient_temperature)

    def plan(self, epoch):
        """The EpochPlan of an epoch; reader threads share it."""
        with self._lock:
            if epoch not in self._plans:
                rng, p = np.random.default_rng([self.seed, epoch]), self.patients
                plan = plan_lib.plan_epoch(
                    rng, p.config, self.shape.windows, self.eligible, self.weight, p.n_static, p.n_events, p.n_windows
                )
                self._plans = {k: v for k, v in self._plans.items() if k >= epoch - 1} | {epoch: plan}
            return self._plans[epoch]

    def __len__(self):
        return np.iinfo(np.int64).max

    def __getitem__(self, g):
        row = {k: v[0] for k, v in batch_lib.empty_batch(self.shape, 1).items()}
        self.fill(row, g)
        return row

    def fill(self, row, g):
        """Writes row g into the empty arrays of `row`."""
        at = context.cursors(phase=(int(g) * _GOLDEN) % 1.0)
        for drawn, span in self.contexts(int(g)):
            self._add(row, at, drawn, span)
        context.close_row(row, at)

    def subjects(self, indices):
        """Sorted subject ids in the rows of the given global indices."""
        places = {drawn.place for g in indices for drawn, _ in self.contexts(int(g))}
        return sorted(self.patients.index["subject_id"].gather(sorted(places)).to_list())

    def contexts(self, g):
        """Yields (Appearance, context.Span) of the contexts of row g: the planned ones, then those that fill it up."""
        c, shape = self.patients.config, self.shape
        epoch, r = divmod(g, self.rows_per_epoch)
        plan = self.plan(epoch)
        mine = plan.members(r)
        planned = [
            self._draw([epoch, i, copy, _PLANNED], i, by_day, end)
            for i, copy, by_day, end in zip(
                *(x[mine].tolist() for x in (plan.patient_N, plan.copy_N, plan.by_day_N, plan.end_N)), strict=True
            )
        ]
        spans = [context.fit(d.patient, d.stop, c.context_tokens, shape.windows) for d in planned]
        most = plan_lib.level([s.n_tokens for s in spans], shape.tokens)
        if most < np.inf:
            spans = [context.fit(d.patient, d.stop, min(most, c.context_tokens), shape.windows) for d in planned]
        counts = [s.n_windows(d.patient) for d, s in zip(planned, spans, strict=True)]
        most_wear = plan_lib.level(counts, shape.windows)
        tokens = windows = 0
        for drawn, span, n_wear in zip(planned, spans, counts, strict=True):
            if n_wear > most_wear:
                # what its windows leave free goes to further contexts
                span = context.fit(drawn.patient, drawn.stop, span.n_tokens - n_wear + most_wear, most_wear)
                n_wear = span.n_windows(drawn.patient)
            tokens, windows = tokens + span.n_tokens, windows + n_wear
            yield drawn, span
        r %= plan.n_rows
        least, failed, k = max(1, shape.tokens // _LEAST_FREE), 0, 0
        while failed < _MOST_FAILED:
            free, free_windows = shape.tokens - tokens, shape.windows - windows
            if min(free, free if "ehr" in c.modalities else free_windows) < least:
                break
            drawn = self._draw_any(plan, epoch, r, k)
            span = context.fit(drawn.patient, drawn.stop, min(free, c.context_tokens), free_windows)
            k += 1
            n_wear = span.n_windows(drawn.patient)
            # no room for its windows, or for the most of them: at inference a context has the whole row
            too_short = span.n_tokens < least and span.start > 0
            if span.stop == span.start or too_short or span.n_left_out > n_wear:
                failed += 1
                continue
            tokens, windows = tokens + span.n_tokens, windows + n_wear
            yield drawn, span

    def _draw_any(self, plan, epoch, r, k):
        """A further appearance in row r: patients as often as in the plan, ends as there."""
        rng = np.random.default_rng([self.seed, epoch, r, k, _FURTHER])
        place, by_day, end = rng.integers(len(plan.patient_N)), rng.random(), rng.random()
        i = int(plan.patient_N[place])
        return self._draw([epoch, r, k, _FURTHER + 1], i, by_day < self.patients.config.patient_days, end)

    def _draw(self, key, i, by_day, end):
        """Patient i up to the end that the uniform draw `end` gives; key: unique to the appearance."""
        patient, c = self.patients[i], self.patients.config
        rng, augment_rng = np.random.default_rng([self.seed, *key, 0]), None
        if self.augmented:
            # SFC64 is the fastest of numpy's generators, and what is drawn most is noise
            augment_rng = np.random.Generator(np.random.SFC64([self.seed, *key, _AUGMENTATION]))
            if c.drop_ehr or c.drop_wear:
                n_wear = int(patient.is_wear_N.sum())
                has_ehr, has_wear = n_wear < len(patient.is_wear_N), n_wear > 0
                keep = augment.drop_modality(augment_rng, has_ehr, has_wear, c.drop_ehr, c.drop_wear)
                patient = patient_lib.without(patient, *keep)
        if by_day:
            stop = patient_lib.sample_day(end, patient, self.patients.day_weight_V)
        else:
            n, limit = len(patient.time_N), max(c.context_tokens - len(patient.static_token_S), 1)
            stop = n if n <= limit else limit + int(end * (n + 1 - limit))
        return Appearance(patient, i, stop, rng, augment_rng)

    def _add(self, row, at, drawn, span):
        patient, rng, c = drawn.patient, drawn.rng, self.patients.config
        n_query = targets.share(c.queries, at, span.n_tokens, c)
        time_us = patient.time_N[span.places(patient)]
        at_token = time_us[rng.integers(0, len(time_us), n_query)]
        anywhere = rng.integers(patient.time_N[span.start], patient.time_N[span.stop - 1] + 1, n_query)
        query_us = np.sort(np.where(rng.random(n_query) < 0.5, at_token, anywhere))
        first_pair = at["pairs"]
        context.fill_context(row, at, self.patients, patient, span, query_us, rng, drawn.augment_rng)
        row["pair_patient"][first_pair : at["pairs"]] = drawn.place


def train_batches(
    rows, batch_size, *, start_step=0, n_steps=None, process_index=0, process_count=1, threads=2, workers=0
):
    """Iterator over this process's share of each global batch, from `start_step` on.

    Args:
      threads: that read ahead, in each process.
      workers: further processes that make the batches, each in turn; 0: this one does. They are spawned: a program
        that asks for them keeps its work under `if __name__ == "__main__"` and has its absl flags parsed.

    Raises:
      ValueError: batch_size is not divisible by process_count.
    """
    if batch_size % process_count:
        raise ValueError(f"global batch {batch_size} is not divisible by {process_count} processes")
    share = batch_size // process_count
    n_steps = np.iinfo(np.int64).max // 2 if n_steps is None else n_steps
    # contiguous shares: a row's place in the global batch, and so its dropout, is the same for any process count
    make = _Batches(rows, batch_size, process_index * share, share)
    dataset = grain.MapDataset.range(n_steps).map(make)[start_step:]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * max(threads, 1))
    dataset = dataset.to_iter_dataset(options)
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(dataset)


@dataclasses.dataclass(frozen=True)
class _Batches:
    """step -> rows `first` to first + share of that step's global batch; a class, since workers unpickle it."""

    rows: TrainRows
    batch_size: int
    first: int
    share: int

    def __call__(self, step):
        batch = batch_lib.empty_batch(self.rows.shape, self.share)
        for place in range(self.share):
            row = {name: array[place] for name, array in batch.items()}
            self.rows.fill(row, int(step) * self.batch_size + self.first + place)
        return batch


def inference_batches(patients, index_N, time_us_N, batch_size, transform=None):
    """Batches whose query i is a read of patient index_N[i] at time_us_N[i]; nothing is hidden, no targets.

    transform: (Record, time_us) -> the record as read then, see perturbations.py; None reads it as it is.

    Yields:
      (batch, where): where_RxQ int64 gives, for each query slot, its place in index_N, or -1.
    """
    shape, c = patients.batch_shape(), patients.config
    rows, places = [], []
    row, at = context.new_row(shape)
    place = np.full(shape.queries, -1)
    for k, (i, t) in enumerate(zip(index_N, time_us_N, strict=True)):
        patient = patients[int(i)] if transform is None else patients.of(transform(patients.record(int(i)), int(t)))
        stop = int(np.searchsorted(patient.time_N, t, side="right"))
        span = context.fit(patient, stop, c.context_tokens, shape.windows)
        n_windows = span.n_windows(patient)
        if (
            at["tokens"] + span.n_tokens > shape.tokens
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
        context.fill_context(row, at, patients, patient, span, np.array([t], np.int64), None)
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
