"""Makes batches of records: rows packed with contexts at random access, and batches for prediction times.

Everything random is a function of (seed, epoch, patient); a row is a function of its global number, so that a batch is
a function of (seed, step) however many hosts make it and wherever a run resumes.
"""

import dataclasses
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from ehrwear_jax.data import random_streams
from ehrwear_jax.data import store as store_lib
from ehrwear_jax.data.cache import Cache
from ehrwear_jax.models import vocabulary as vocabulary_lib
from ehrwear_jax.models.family import Batch, BatchSpec, Examples, Transform
from ehrwear_jax.models.joint import augmentation, context, masking, packing, query_times, terms, value_scales
from ehrwear_jax.models.joint import patient as patient_lib
from ehrwear_jax.models.joint import prediction as prediction_lib
from ehrwear_jax.models.joint import row as row_lib
from ehrwear_jax.models.joint.batch import MODALITY_WEAR, Facts, batch_spec
from ehrwear_jax.models.joint.config import Config
from ehrwear_jax.models.joint.value_states import names as value_statistics

_AUGMENTATION = 1  # names a stream of random numbers beside that of masks and prediction times
_PLANNED, _FURTHER = 0, 1  # so that no two samples share a key
_GOLDEN = 0.6180339887498949  # phases of successive rows that cover [0, 1) evenly
_LEAST_FREE = 32  # a row is full when less than this part of its tokens is free
_MOST_FAILED = 3  # further patients for whose windows a row has no room, after which it is left as it is


class People:
    """The patients of a store as the joint model is given them, read at random access.

    Args:
      store: RecordStore of one split, or of all.
      config: of the joint family.
      cache_bytes: how much memory patients may take; those beyond it lie in a file, as the store says, or are made at
        every use. None: the store's.
    """

    def __init__(self, store: store_lib.RecordStore, config: Config, cache_bytes: int | None = None) -> None:
        self.store = store
        memory = store.cache_bytes if cache_bytes is None else cache_bytes
        self.cache = Cache(memory, store.file_cache_bytes, patient_lib.packed, patient_lib.unpacked)
        self.modalities, self.static = config.modalities, config.static
        self.config = c = config.context
        self.terms: tuple[terms.Term, ...] = ()
        self.hides_signal = False
        self.row_tokens = 0
        self.index, self.train_days = store.index, store.train_days
        self.steps, self.channels, self.window_us = store.steps, store.channels, store.window_us
        self.has_quality = store.has_quality
        self.derived_channel_X = self._on_grid(name.rpartition("__")[0] for name in store.derived)
        raw = store.segments.get(c.raw_segments) if c.raw_windows else None
        if c.raw_windows and raw is None:
            raise ValueError(
                f"{store.records_dir} has no segments {c.raw_segments!r}, for which "
                "config.joint.context.raw_windows makes room: name a set of config.prepare.segments in "
                "config.joint.context.raw_segments"
            )
        self.raw_samples: int = raw.samples if raw else 0
        self.raw_channel_A: np.ndarray = self._on_grid(raw.channels) if raw else np.zeros(0)
        self.vocabulary = vocabulary_lib.of_store(store)
        ehr, wear = "ehr" in self.modalities, "wear" in self.modalities
        self.n_static = self.index["known_static"].to_numpy() * (ehr or self.static)
        self.n_events = self.index["known_events"].to_numpy() * ehr
        self.n_windows = self.index["n_windows"].to_numpy() * wear
        counts = self.vocabulary.tokens["count"].to_numpy()
        self.interest_V = self._starting_with(c.interest_codes)
        scale_V = np.where(self._starting_with(c.administrative_codes), c.administrative_weight, 1.0)
        self.mask_weight_V = masking.token_weights(counts, c.mask_temperature, scale_V)
        self.day_weight_V = masking.token_weights(counts, c.day_temperature, scale_V)
        self.future_codes = self.vocabulary.future_codes(c.future_codes)
        self.future_class_VxA = self.vocabulary.classes([codes for _, codes in self.future_codes.values()])
        history = self.vocabulary.history_tokens(c.history_tokens)
        self.n_history = len(history)
        self.value_quantiles = value_scales.fit_quantiles(self.vocabulary, store.code_statistics)
        self.reads_quantiles = config.network.value_features > 0 and (ehr or self.static)
        self.value_inputs = config.network.value_inputs
        self.value_scales = value_scales.fit(self.vocabulary, store.code_statistics, c.value_codes)
        self.history_class_V = np.full(len(self.vocabulary), -1)
        self.history_class_V[history] = np.arange(len(history))

    def _on_grid(self, channels):
        """Where each channel lies on the grid, -1: not on it."""
        return np.array([self.channels.index(c) if c in self.channels else -1 for c in channels], int)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, i: int) -> patient_lib.Patient:
        patient = self.cache.get(i)
        if patient is None:
            patient = self.of(patient_lib.given(self.store.read(i), self.modalities, self.static))
            self.cache.put(i, patient)
        return patient

    def record(self, i: int) -> store_lib.Record:
        """Record i with the modalities that the model is given."""
        return patient_lib.given(self.store[i], self.modalities, self.static)

    def of(self, record: store_lib.Record) -> patient_lib.Patient:
        """The Patient of a record as `record` returns it, changed or not."""
        has_raw = self.config.raw_windows and "wear" in self.modalities
        raw_segments = self.config.raw_segments if has_raw else ""
        return patient_lib.make_patient(record, self.store, self.vocabulary, raw_segments)

    def _starting_with(self, prefixes):
        """Which tokens are of a code that starts with one of the prefixes: bool [V]."""
        codes = self.vocabulary.tokens["code"].to_list()
        return np.array([c.startswith(tuple(prefixes)) for c in codes], bool)

    def future_rates(self) -> tuple[float, ...]:
        """Expected share of queries with a later code per horizon: 1 - exp(-events per day of training x days).

        Returns:
          tuple of floats, [future_codes x horizons] in row-major order.
        """
        counts = np.array([count for count, _ in self.future_codes.values()], np.float64)
        per_day = counts / max(self.train_days, 1.0)
        return tuple((-np.expm1(-np.outer(per_day, self.config.horizons))).ravel().tolist())

    def facts(self) -> Facts:
        """What the data decide of a model."""
        wear = "wear" in self.modalities and len(self.channels) > 0
        return Facts(
            modalities=tuple(m for m in self.modalities if m != "wear" or wear),
            vocabulary=len(self.vocabulary),
            steps=self.steps,
            channels=len(self.channels),
            derived=len(self.derived_channel_X),
            future_codes=len(self.future_codes),
            history_tokens=self.n_history,
            n_horizons=len(self.config.horizons),
            future_rates=self.future_rates(),
            raw_samples=self.raw_samples,
            raw_channels=len(self.raw_channel_A),
            quality=self.has_quality,
            static=self.static,
            value_codes=len(self.value_scales.names) * ("ehr" in self.modalities),
            quantiles=self.reads_quantiles,
            value_inputs=self.value_inputs,
        )


@dataclasses.dataclass
class Sample:
    """One appearance of a patient in a row, before its length is settled."""

    patient: patient_lib.Patient
    position: int
    stop: int
    draws: context.Draws


class JointExamples(Examples):
    """Training rows at random access, and batches for prediction times.

    Each epoch permutes the patients, draws where each context ends, and packs contexts next-fit by what the index tells
    of their lengths. Every epoch has the same number of rows as epoch 0; what does not fit is left out of that epoch
    (another part each time). In a row whose contexts turn out longer than planned, the longest lose their oldest
    tokens; what is left free goes to further samples of randomly drawn patients, the last of which shows as many of the
    latest tokens as there is room for.

    Args:
      augmented: whether the signal is changed and a modality may be dropped, as the config says. These draws have a
        Generator of their own: masks and prediction times are the same without them.

    Raises:
      ValueError: nobody has a token.
    """

    def __init__(self, store: store_lib.RecordStore, config: Config, seed: int = 0, augmented: bool = True) -> None:
        self.people, self.config, self.seed, self.augmented = People(store, config), config, seed, augmented
        self.facts = self.people.facts()
        active = terms.active(config, self.facts)
        self.people.terms, self.people.hides_signal = active, any(t.hides_signal for t in active)
        self.spec: BatchSpec = batch_spec(config.context, self.facts, terms.target_fields(active))
        self.people.row_tokens = self.spec.sizes["T"]
        self.subject_id = self.people.index["subject_id"].to_numpy()
        self._plans: dict[int, packing.EpochPlan] = {}
        self._lock = threading.Lock()
        self.eligible = np.nonzero(self.people.n_events + self.people.n_windows > 0)[0]
        self.weight = self._weights() if len(self.eligible) else None
        self._lengths = packing.Lengths(self.people.n_static, self.people.n_events, self.people.n_windows)
        room = self.spec.sizes["T"], self.spec.sizes["W"]
        self.limits = packing.row_limits(config.context, *room, self._lengths)

    def __getstate__(self) -> dict:
        """For worker processes: they plan for themselves."""
        return {k: v for k, v in vars(self).items() if k not in ("_plans", "_lock")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _plans={}, _lock=threading.Lock())

    def __len__(self) -> int:
        return len(self.people)

    # ----------------------------------------------------------------------------------------------- training rows

    @property  # of the plan of an epoch, which is drawn when rows are first asked for
    def rows_per_epoch(self) -> int:  # type: ignore[override]
        """Rows of every epoch."""
        return self.plan(0).n_rows

    def _weights(self):
        """packing.patient_weights of the eligible patients, or None where all are alike."""
        temperature, index = self.config.context.patient_temperature, self.people.index
        if not temperature or "ehr" not in self.config.modalities:  # rarity is an EHR fact
            return None
        rarity = index["rarity"].cast(pl.Float64).fill_null(np.nan).to_numpy()[self.eligible]
        return packing.patient_weights(rarity, temperature)

    def plan(self, epoch: int) -> packing.EpochPlan:
        """The plan of an epoch; reader threads share it."""
        with self._lock:
            if epoch not in self._plans:
                if not len(self.eligible):
                    raise ValueError(
                        f"{self.people.store.records_dir}: no training patient has a token of {self.config.modalities}"
                    )
                rng, who = np.random.default_rng([self.seed, epoch]), (self.eligible, self.weight)
                plan = packing.plan_epoch(rng, self.config.context, self.limits, who, self._lengths)
                self._plans = {k: v for k, v in self._plans.items() if k >= epoch - 1} | {epoch: plan}
            return self._plans[epoch]

    def fill(self, row: Batch, g: int) -> None:
        """Writes training row g into the empty arrays of a row."""
        row_lib.fill_rows({name: array[None] for name, array in row.items()}, self.people, [self._contents(g)])

    def fill_rows(self, batch: Batch, numbers: Sequence[int]) -> None:
        """Writes training rows into an empty batch, several at once."""
        for some, part in row_lib.blocks(batch):
            row_lib.fill_rows(part, self.people, [self._contents(g) for g in numbers[some]])

    def _contents(self, g):
        """What training row g holds."""
        c, phase = self.config.context, (int(g) * _GOLDEN) % 1.0
        found = list(self.contexts(int(g)))
        bound_C = np.cumsum([0, *(span.n_tokens for _, span in found)])
        n_query_C = context.quotas(c.queries, bound_C[:-1], bound_C[1:], self.people.row_tokens, phase).tolist()
        query_us = [
            query_times.draw(sample.draws.rng, sample.patient, span, n, c.queries_behind)
            for (sample, span), n in zip(found, n_query_C, strict=True)
        ]
        shown = [context.Shown(sample.patient, span, sample.position) for sample, span in found]
        return context.Contents(shown, query_us, [sample.draws for sample, _ in found], phase)

    def subjects(self, rows: Sequence[int]) -> list[int]:
        """Sorted subject ids in the rows of the given global numbers."""
        positions = {sample.position for g in rows for sample, _ in self.contexts(int(g))}
        return sorted(self.subject_id[sorted(positions)].tolist())

    def contexts(self, g: int) -> Iterator[tuple[Sample, context.Span]]:
        """The contexts of row g: the planned ones, then those that fill it up."""
        epoch, r = divmod(g, self.rows_per_epoch)
        plan, tokens, windows = self.plan(epoch), 0, 0
        for sample, span in self._planned(plan, epoch, r):
            tokens, windows = tokens + span.n_tokens, windows + span.n_windows
            yield sample, span
        yield from self._further(plan, epoch, r % plan.n_rows, tokens, windows)

    def _planned(self, plan, epoch, r):
        """The planned contexts of a row, cut where they are longer than it."""
        c, limits = self.config.context, self.limits
        columns = (plan.patient_N, plan.copy_N, plan.by_day_N, plan.end_N)
        samples = [
            self._draw([epoch, i, copy, _PLANNED], i, by_day, end)
            for i, copy, by_day, end in zip(*(x[plan.members(r)].tolist() for x in columns), strict=True)
        ]
        spans = [context.fit(s.patient, s.stop, c.context_tokens, limits.windows) for s in samples]
        max_windows = limits.of_row([s.n_windows for s in spans])
        most_wear = int(min(packing.waterfill([s.n_windows for s in spans], max_windows), max_windows))
        n_wear = sum(min(s.n_windows, most_wear) for s in spans)
        most_ehr = int(min(packing.waterfill([s.n_ehr for s in spans], limits.tokens - n_wear), c.context_tokens))
        for sample, span in zip(samples, spans, strict=True):
            if span.n_ehr > most_ehr or span.n_static >= most_ehr or span.n_windows > most_wear:
                span = context.fit(sample.patient, sample.stop, most_ehr, most_wear)
            yield sample, span

    def _further(self, plan, epoch, r, tokens, windows):
        """Contexts of randomly drawn patients in what is left free of a row."""
        c, sizes = self.config.context, self.spec.sizes
        least, failed, k = max(1, sizes["T"] // _LEAST_FREE), 0, 0
        has_ehr = "ehr" in self.config.modalities
        while failed < _MOST_FAILED:
            free, free_windows = sizes["T"] - tokens, self.limits.of_row([windows]) - windows
            if (free if has_ehr else free_windows) < least:
                break
            sample = self._draw_any(plan, epoch, r, k)
            patient, k = sample.patient, k + 1
            whole = context.fit(patient, sample.stop, c.context_tokens, sizes["W"])
            n_wear = min(whole.n_windows, free_windows, free)
            span = context.fit(patient, sample.stop, min(free - n_wear, c.context_tokens), n_wear)
            # no room for its events, or for the most of its windows: at inference a context has the whole row
            too_short = span.n_ehr < min(least, whole.n_ehr)
            if span.stop == span.start or too_short or (has_ehr and 2 * n_wear < whole.n_windows):
                failed += 1
                continue
            tokens, windows = tokens + span.n_tokens, windows + n_wear
            yield sample, span

    def _draw_any(self, plan, epoch, r, k):
        """A further sample in row r: patients as often as in the plan, ends as there."""
        rng = np.random.default_rng(random_streams.words([self.seed, epoch, r, k, _FURTHER]))
        place, by_day, end = rng.integers(len(plan.patient_N)), rng.random(), rng.random()
        i = int(plan.patient_N[place])
        return self._draw([epoch, r, k, _FURTHER + 1], i, by_day < self.config.context.patient_days, end)

    def _draw(self, key, i, by_day, end):
        """Patient i up to the end that the uniform draw `end` gives; key: unique to the sample."""
        patient, c = self.people[i], self.config.context
        rng, augment_rng = np.random.default_rng(random_streams.words([self.seed, *key, 0])), None
        if self.augmented and (c.augments_signal or c.drop_ehr or c.drop_wear):
            # SFC64 is the fastest of numpy's generators, and what is drawn most is noise
            augment_rng = np.random.Generator(np.random.SFC64(random_streams.words([self.seed, *key, _AUGMENTATION])))
            if c.drop_ehr or c.drop_wear:
                has_ehr, has_wear = len(patient.event_at) > 0, len(patient.window_at) > 0
                keep = augmentation.drop_modality(augment_rng, has_ehr, has_wear, c.drop_ehr, c.drop_wear)
                patient = patient_lib.without(patient, *keep)
        if by_day:
            stop = patient_lib.sample_day(end, patient, self.people.day_weight_V)
        else:
            full = patient_lib.first_full(patient, c.context_tokens, self.spec.sizes["W"])
            stop = full + int(end * (len(patient.time_N) + 1 - full))
        return Sample(patient, i, stop, context.Draws(rng, augment_rng))

    # -------------------------------------------------------------------------------------------- prediction times

    def prediction_batches(
        self, position_N: np.ndarray, time_us_N: np.ndarray, batch_size: int, transform: Transform | None = None
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """See models/family.py and joint/prediction.py."""
        return prediction_lib.batches(self.people, self.spec, position_N, time_us_N, batch_size, transform)

    def tokens_seen(self, position_N: np.ndarray, time_us_N: np.ndarray) -> dict[str, np.ndarray]:
        """Static tokens, events and windows, see models/family.py."""
        spans = prediction_lib.shown_at_all(self.people, self.spec, position_N, time_us_N)
        named = {"static": "n_static", "events": "n_events", "windows": "n_windows",
                 "events_left_out": "n_events_out", "windows_left_out": "n_windows_out"}  # fmt: skip
        return {name: np.array([getattr(s, of) for s in spans], np.int64) for name, of in named.items()}

    # ------------------------------------------------------------------------------------------------- for others

    def counts(self, batch: Batch) -> dict[str, int]:
        """Contexts, tokens, queries, windows, patient-days, and the keys that tokens and queries see in all."""
        segment, day = batch["segment"], np.floor(batch["time"])
        begins = np.ones(segment.shape, bool)
        begins[:, 1:] = (segment[:, 1:] != segment[:, :-1]) | (day[:, 1:] != day[:, :-1])
        seen = sum(np.diff(batch[n], axis=-1).sum(dtype=np.int64) for n in ("kv_range", "query_kv_range"))
        return {
            "contexts": int(segment.max(axis=1, initial=0).sum()),
            "tokens": int((segment > 0).sum()),
            "queries": int((batch["query_segment"] > 0).sum()),
            "windows": int((batch["modality"] == MODALITY_WEAR).sum()),
            "patient_days": int((begins & (segment > 0)).sum()),
            "seen": int(seen),
        }

    def place_names(self) -> dict[str, list[str]]:
        """Names of tokens, of predicted codes and of reconstructed tokens, in order."""
        names = self.people.vocabulary.tokens["token"].to_list()
        history = self.people.vocabulary.history_tokens(self.config.context.history_tokens)
        return {
            "token": names,
            "future_code": list(self.people.future_codes),
            "history_token": [names[i] for i in history],
            "value_code": list(self.people.value_scales.names),
        }

    def content_names(self) -> dict[str, list[str]]:
        """The horizons that predictions of codes are for; the statistics of values where they are predicted."""
        found = {"horizon": [str(h) for h in self.config.context.horizons]}
        if any(t.name == "ehr_values" for t in self.people.terms):
            found["value_statistic"] = list(value_statistics(self.config.context.value_spans))
        return found
