"""Writes a survey in the exact files of NHANES, with every oddity of theirs, and remembers what is true of whom.

People are drawn as facts (a former smoker, readings of 120 and 124 mmHg), which are then written as the CDC codes
them. SEQN modulo KINDS says what is odd about a person's monitor.
"""

import dataclasses
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from xpt_writer import XptWriter, texts, write_xpt

KINDS = 8
NOT_WORN_DAY, GAP = 3, (2000, 2300)  # day of kind 0 in a drawer; missing minutes of kind 4
CYCLES = {"C": (3, "2003_2004", 85), "D": (4, "2005_2006", 85), "G": (7, "2011_2012", 80), "H": (8, "2013_2014", 80)}
LAB_FILES = {"TCHOL": "L13", "HDL": "L13", "TRIGLY": "L13AM", "GHB": "L10", "GLU": "L10AM", "BIOPRO": "L40",
             "CBC": "L25", "CRP": "L11"}  # fmt: skip
RACES = ("mexican_american", "other_hispanic", "white", "black", "other")
DRUGS = ("METFORMIN", "ATORVASTATIN", "INSULIN GLARGINE", "ACETAMINOPHEN; HYDROCODONE")
# table -> {column: (code, low, high)}
LABS = {
    "TRIGLY": {"LBXTR": ("LAB//triglycerides", 40, 400), "LBDLDL": ("LAB//ldl", 50, 200)},
    "GHB": {"LBXGH": ("LAB//hba1c", 4, 9)},
    "GLU": {"LBXGLU": ("LAB//fasting_glucose", 70, 200)},
    "BIOPRO": {"LBXSAL": ("LAB//albumin", 3, 5), "LBXSCR": ("LAB//creatinine", 0.5, 2)},
    "CBC": {"LBXHGB": ("LAB//haemoglobin", 9, 17)},
}
TOLD = {"MCQ160B": "DX//chf", "MCQ160F": "DX//stroke", "MCQ220": "DX//cancer", "MCQ010": "DX//asthma"}
RAW_COLUMNS = ("SEQN", "PAXSTAT", "PAXCAL", "PAXDAY", "PAXN", "PAXHOUR", "PAXMINUT", "PAXINTEN")
MIN_COLUMNS = {"SEQN": None, "PAXDAYM": 1, "PAXDAYWM": 1, "PAXSSNMP": None, "PAXTSM": None, "PAXMTSM": None,
               "PAXPREDM": 1, "PAXQFM": None}  # fmt: skip


@dataclasses.dataclass
class Person:
    """What is true of somebody; events: (code, value or None); wear: {channel: [T], NaN where nothing is known}."""

    seqn: int
    letter: str
    examined: bool
    years: int
    months: int | None
    season: int
    adult: bool
    tables: dict = dataclasses.field(default_factory=dict)
    rx: list = dataclasses.field(default_factory=list)
    events: set = dataclasses.field(default_factory=set)
    mortality: tuple | None = None  # eligible, died, cause, months from examination
    weekday: int | None = None  # of the first minute
    start_seconds: int = 0
    wear: dict = dataclasses.field(default_factory=dict)


def _facts(rng, person):
    """Draws what the examination finds: fills tables (as coded) and events (as true)."""
    events, tables = person.events, person.tables

    def put(table, column, value):
        tables.setdefault(table, {})[column] = value

    gender = int(rng.integers(1, 3))
    race = int(rng.integers(1, 6))
    educated = int(rng.choice([1, 2, 3, 4, 5, 7, 9]))
    names = ("below_9th_grade", "9th_to_11th_grade", "high_school", "some_college", "college")
    if educated < 6:
        events.add((f"EDUCATION//{names[educated - 1]}", None))
    put("DEMO", "DMDEDUC2", educated)
    put("DEMO", "RIAGENDR", gender)
    put("DEMO", "RIDRETH1", race)
    poverty = round(float(rng.uniform(0, 5)), 2)
    put("DEMO", "INDFMPIR", poverty)
    events |= {("GENDER//M" if gender == 1 else "GENDER//F", None), (f"RACE//{RACES[race - 1]}", None),
               ("SOCIAL//poverty_income_ratio", poverty)}  # fmt: skip
    bmi = round(float(rng.uniform(18, 40)), 2) if rng.random() < 0.9 else None
    put("BMX", "BMXBMI", bmi)
    if bmi is not None:
        events.add(("VITAL//bmi", bmi))
    sbp = [float(x) for x in rng.integers(100, 180, int(rng.integers(0, 5)))]
    dbp = [float(x) for x in rng.integers(50, 100, len(sbp))]
    for k in range(4):
        put("BPX", f"BPXSY{k + 1}", sbp[k] if k < len(sbp) else None)
        put("BPX", f"BPXDI{k + 1}", dbp[k] if k < len(dbp) else None)
    if dbp and rng.random() < 0.3:  # the sound never ended
        dbp[0] = tables["BPX"]["BPXDI1"] = 0.0
        dbp = dbp[1:]
    events |= {("VITAL//sbp", float(np.mean(sbp)))} if sbp else set()
    events |= {("VITAL//dbp", float(np.mean(dbp)))} if dbp else set()
    cholesterol, hdl = (float(rng.integers(*r)) if rng.random() < 0.9 else None for r in ((120, 300), (25, 90)))
    put("TCHOL", "LBXTC", cholesterol)
    put("HDL", "LBXHDD" if person.letter == "C" else "LBDHDD", hdl)
    for code, value in (("LAB//total_cholesterol", cholesterol), ("LAB//hdl", hdl)):
        events |= {(code, value)} if value is not None else set()
    for table, columns in LABS.items():
        for column, (code, low, high) in columns.items():
            value = round(float(rng.uniform(low, high)), 2) if rng.random() < 0.9 else None
            put(table, column, value)
            if value is not None:
                true = value * 0.978 - 0.016 if (column, person.letter) == ("LBXSCR", "D") else value
                events.add((code, true))
    if person.letter in "CD":
        put("CRP", "LBXCRP", 0.25)
        events.add(("LAB//crp", 0.25))
    _answers(rng, person, put, gender)


def _answers(rng, person, put, gender):
    events = person.events
    for column, code in TOLD.items():
        answer = int(rng.choice([1, 2, 7, 9]))
        put("MCQ", column, answer)
        events |= {(code, None)} if answer == 1 else set()
    diabetes = int(rng.choice([1, 2, 3, 7, 9]))
    put("DIQ", "DIQ010", diabetes)
    events |= {(("DX//diabetes", None, "DX//diabetes_borderline")[diabetes - 1], None)} if diabetes in (1, 3) else set()
    pressure = int(rng.choice([1, 2, 9]))
    put("BPQ", "BPQ020", pressure)
    events |= {("DX//hypertension", None)} if pressure == 1 else set()
    smoker, now = [("never", (2, None)), ("former", (1, 3)), ("current", (1, 1)), ("current", (1, 2)),
                   (None, (9, None)), (None, (1, 9))][int(rng.integers(6))]  # fmt: skip
    put("SMQ", "SMQ020", now[0])
    put("SMQ", "SMQ040", now[1])
    events |= {(f"SMOKING//{smoker}", None)} if smoker else set()
    times, unit, each, drinks = [(3, 1, 2, 6.0), (7, 1, 5, 35.0), (0, None, None, 0.0), (12, 3, 2, 24 * 7 / 365.25),
                                 (2, 2, 4, 8 * 12 * 7 / 365.25), (999, None, None, None), (2, 1, 999, None),
                                 (2, 1, 5, 10.0)][int(rng.integers(8))]  # fmt: skip
    for column, value in (("ALQ110", None), ("ALQ120Q", times), ("ALQ120U", unit), ("ALQ130", each)):
        put("ALQ", column, value)
    if drinks is not None:
        kind = "none" if drinks == 0 else "heavy" if drinks > (14 if gender == 1 else 7) else "moderate"
        events.add((f"DRINKING//{kind}", drinks))
    walk, climb, equipment, limits, moves = [
        (1, 1, 2, 2, "no_difficulty"), (3, 1, 2, 1, "difficulty"), (1, 4, 2, 1, "difficulty"),
        (None, None, 1, 2, "difficulty"), (None, None, 2, 2, "no_difficulty"), (9, 5, 2, 1, None),
    ][int(rng.integers(6))]  # fmt: skip
    for column, value in (("PFQ061B", walk), ("PFQ061C", climb), ("PFQ054", equipment), ("PFQ049", limits),
                          ("PFQ057", limits), ("PFQ059", limits)):  # fmt: skip
        put("PFQ", column, value)
    events |= {(f"MOBILITY//{moves}", None)} if moves else set()
    health = int(rng.choice([1, 2, 3, 4, 5, 7]))
    put("HUQ", "HUQ010", health)
    levels = ("excellent", "very_good", "good", "fair", "poor")
    events |= {(f"HEALTH//{levels[health - 1]}", None)} if health < 6 else set()
    stayed = int(rng.choice([1, 2]))
    put("HUQ", "HUQ071", stayed)
    events |= {("HOSPITAL//past_year", None)} if stayed == 1 else set()
    kind = int(rng.integers(4))
    if kind == 0:
        person.rx = [(2, None, None)]
    elif kind == 1:
        person.rx = [(1, "55555", 30.0), (7, None, None)][: int(rng.integers(1, 3))]
    else:
        taken = rng.choice(DRUGS, size=kind, replace=False)
        days = [float(x) for x in rng.integers(1, 4000, kind)]
        days[0] = 99999.0 if rng.random() < 0.5 else days[0]
        person.rx = [(1, str(drug), d) for drug, d in zip(taken, days, strict=True)]
        person.rx += person.rx[:1] if rng.random() < 0.3 else []
        for _, drug, d in person.rx:
            code = {"INSULIN GLARGINE": "insulin_glargine", DRUGS[3]: "acetaminophen_hydrocodone"}.get(
                drug, drug.lower()
            )
            events.add((f"RX//{code}", None if d == 99999.0 else d))


def _day_shape(rng, n):
    """Counts of n minutes: bouts of movement by day, sleep by night with a movement now and then."""
    hour = np.arange(n) % 1440 / 60
    awake = (hour > 7) & (hour < 23)
    counts = np.where(awake, rng.gamma(0.5, 600, n), np.where(rng.random(n) < 0.1, 50.0, 0.0))
    return np.floor(np.minimum(counts, 20_000))


class Survey:
    """A survey of n_people, in the cycles of `letters` by turns.

    Attributes:
      people: [Person]. dropped: {(file, part of the reason): rows}. rows: {file: rows written}.
    """

    def __init__(self, n_people, letters="CDGH", seed=0):
        self.seed, self.letters = seed, letters
        self.dropped, self.rows = Counter(), Counter()
        self.people = []
        for i in range(n_people):
            rng = np.random.default_rng((seed, i))
            letter = letters[i * len(letters) // n_people]
            years = int(rng.integers(12, 90))
            oldest = CYCLES[letter][2]
            exact = years < oldest if letter in "CD" else years < 20
            months = 12 * years + int(rng.integers(0, 12)) if exact else None
            person = Person(21_001 + i, letter, bool(rng.random() < 0.93), min(years, oldest), months,
                            int(rng.integers(1, 3)), years >= 18)  # fmt: skip
            _facts(rng, person)
            months_followed = float(rng.integers(0, 180))
            dies = rng.random() < 0.3
            if person.adult and rng.random() < 0.97:
                cause = int(rng.choice([1, 2, 5, 10])) if dies else None
                # of some it is not known what they died of
                person.mortality = (1, int(dies), None if cause == 10 and person.seqn % 2 else cause, months_followed)
            self.people.append(person)

    def write(self, folder):
        """Writes all files."""
        folder.mkdir()
        for letter in self.letters:
            people = [p for p in self.people if p.letter == letter]
            self._tables(folder, letter, people)
            self._mortality(folder / f"NHANES_{CYCLES[letter][1]}_MORT_2019_PUBLIC.dat", people)
            (self._counts if letter in "CD" else self._mims)(folder, letter, people)
        return folder

    def _tables(self, folder, letter, people):
        number = CYCLES[letter][0]
        demo = {name: [] for name in ("SEQN", "SDDSRVYR", "RIDSTATR", "RIDEXMON", "RIDAGEYR", "RIDAGEMN", "WTINT2YR",
                                      "WTMEC2YR", "SDMVPSU", "SDMVSTRA", "RIDAGEEX" if letter in "CD" else "RIDEXAGM",
                                      *people[0].tables["DEMO"])}  # fmt: skip
        for p in people:
            # 2003-2006 tells the months at the interview too, weeks before; 2011-2014 those of infants alone
            interview = p.months - 1 if letter in "CD" and p.months is not None else None
            row = (p.seqn, number, 2 if p.examined else 1, p.season if p.examined else None, p.years, interview,
                   5000.25, 6000.5 if p.examined else 0.0, p.seqn % 2 + 1, 40 + p.seqn % 15,
                   p.months if p.examined else None, *p.tables["DEMO"].values())  # fmt: skip
            for name, value in zip(demo, row, strict=True):
                demo[name].append(value)
        write_xpt(folder / f"DEMO_{letter}.xpt", demo)
        joined = {}
        for table in people[0].tables:
            if table != "DEMO":
                stem = f"{LAB_FILES.get(table, table) if letter == 'C' else table}_{letter}"
                joined.setdefault(stem, []).append(table)
        for stem, tables in joined.items():
            columns = {"SEQN": [p.seqn for p in people]}
            for table in tables:
                columns |= {c: [p.tables[table][c] for p in people] for c in people[0].tables[table]}
            write_xpt(folder / f"{stem}.XPT", columns)
            self.rows[stem] = len(people)
        rx = [(p.seqn, *row) for p in people for row in p.rx]
        write_xpt(folder / f"rxq_rx_{letter.lower()}.xpt",
                  dict(zip(("SEQN", "RXDUSE", "RXDDRUG", "RXDDAYS"), zip(*rx, strict=True), strict=True)))  # fmt: skip
        self.rows[f"RXQ_RX_{letter}"] = len(rx)

    def _mortality(self, path, people):
        lines = []
        for p in people:
            line = [" "] * 48
            eligible, died, cause, months = p.mortality or (2 if not p.adult else 3, None, None, None)

            def put(first, text, line=line):
                line[first - 1 : first - 1 + len(text)] = text

            put(1, f"{p.seqn:<6d}")
            put(15, str(eligible))
            put(16, "." if died is None else str(died))
            put(17, "." if cause is None else f"{cause:03d}")
            put(20, "." if not died else "0")
            put(21, "." if not died else "1")
            put(43, "." if months is None else f"{months + 1:3.0f}")
            put(46, "." if months is None or not p.examined else f"{months:3.0f}")
            lines.append("".join(line))
        path.write_text("\n".join(lines) + "\n")

    def _counts(self, folder, letter, people):
        """PAXRAW: kinds 1 no rows, 2 out of calibration, 3 unreliable, 4 a gap, 5 odd rows, 6 never worn, 7 full."""
        stem = f"paxraw_{letter.lower()}"
        steps = letter == "D"
        names = (*RAW_COLUMNS, *(("PAXSTEP",) if steps else ()))
        with XptWriter(folder / f"{stem}.xpt", dict.fromkeys(names)) as file:
            for p in people:
                rng, kind, n = np.random.default_rng((self.seed, p.seqn)), p.seqn % KINDS, 10_080
                weekday = int(rng.integers(1, 8))
                counts = np.zeros(n) if kind == 6 else _day_shape(rng, n)
                if kind == 0:
                    counts[NOT_WORN_DAY * 1440 : (NOT_WORN_DAY + 1) * 1440] = 0
                if kind == 1:
                    continue
                stepped = np.floor(counts / 100)
                true, number = counts.copy(), np.arange(n)
                if kind == 7:
                    counts[3000:3050], true[3000:3050] = 32_767, np.nan
                keep = np.ones(n, bool)
                if kind == 4:
                    keep[slice(*GAP)], true[slice(*GAP)] = False, np.nan
                columns = {
                    "SEQN": np.full(n, p.seqn), "PAXSTAT": np.full(n, 2 if kind == 3 else 1),
                    "PAXCAL": np.full(n, 2 if kind == 2 else 1), "PAXDAY": (weekday - 1 + number // 1440) % 7 + 1,
                    "PAXN": number + 1, "PAXHOUR": number % 1440 // 60, "PAXMINUT": number % 60, "PAXINTEN": counts,
                }  # fmt: skip
                columns |= {"PAXSTEP": stepped} if steps else {}
                columns = {name: v[keep].astype(np.float64) for name, v in columns.items()}
                if kind == 5:
                    columns = self._odd_rows(columns, "PAXN", 10_081, "PAXHOUR")
                    true[5000] = np.nan  # its hour is wrong
                    if p.examined:
                        for reason in ("number", "clock", "once more"):
                            self.dropped[f"{stem}.xpt", reason] += 1
                file.append(columns)
                rows = len(columns["SEQN"])
                self.rows[f"{stem}.xpt"] += rows
                if not p.examined:
                    self.dropped[f"{stem}.xpt", "examined"] += rows
                elif kind in (2, 3):
                    self.dropped[f"{stem}.xpt", "calibration"] += rows
                else:
                    p.weekday, p.wear = weekday, {"activity_count": true}
                    if kind != 7:  # a full counter says nothing of the steps
                        stepped[np.isnan(true)] = np.nan
                    p.wear |= {"step_count": stepped} if steps else {}

    def _odd_rows(self, columns, place, impossible, clock):
        """Row 5000 with another clock, then one at an impossible place, and row 100 once more."""
        columns[clock][5000] += 1
        extra = {name: v[[100, 100]].copy() for name, v in columns.items()}
        extra[place][0] = impossible
        return {name: np.concatenate([v, extra[name]]) for name, v in columns.items()}

    def _mims(self, folder, letter, people):
        """PAXMIN: 1 no rows, 2 no data by the header, 3 flagged, 4 no units, 5 odd rows, 6 not worn, 7 unknown."""
        stem, head = f"PAXMIN_{letter}", {name: [] for name in ("SEQN", "PAXSTS", "PAXFTIME", "PAXFDAY")}
        with XptWriter(folder / f"{stem}.xpt", MIN_COLUMNS) as file:
            for p in people:
                rng, kind = np.random.default_rng((self.seed, p.seqn)), p.seqn % KINDS
                weekday = int(rng.integers(1, 8))
                start = int(rng.integers(9 * 60, 21 * 60))
                if p.examined:
                    time = None if kind == 1 else f"{start // 60:2d}:{start % 60:02d}:00"
                    row = (p.seqn, 2 if kind in (1, 2) else 1, time, str(weekday))
                    for name, value in zip(head, row, strict=True):
                        head[name].append(value)
                if kind == 1:
                    continue
                n = 9 * 1440 - start - 700
                minute = np.arange(n)
                clock = minute + start
                asleep = (clock % 1440 < 420) & (kind != 6)
                mims = np.where(asleep, 0.5, np.round(rng.gamma(2, 6, n), 3))
                state = np.where(kind == 6, 3, np.where(asleep, 2, 1))
                if kind == 0:
                    state[3000:3600] = 3
                if kind == 7:
                    state[100:160] = 4
                quality, true = np.zeros(n), mims.copy()
                if kind == 3:
                    quality[500:520], true[500:520] = 2, np.nan
                if kind == 4:
                    mims[700:705], true[700:705] = -0.01, np.nan
                day = clock // 1440
                columns = {
                    "SEQN": np.full(n, p.seqn), "PAXDAYM": day + 1, "PAXDAYWM": (weekday - 1 + day) % 7 + 1,
                    "PAXSSNMP": minute * 4800, "PAXTSM": np.full(n, 60), "PAXMTSM": mims, "PAXPREDM": state,
                    "PAXQFM": quality,
                }  # fmt: skip
                columns = {name: v.astype(np.float64) for name, v in columns.items()}
                worn = np.where(state == 4, np.nan, state != 3)
                sleeping = np.where(np.isin(state, (1, 2)), state == 2, np.nan)
                if kind == 5:
                    columns = self._odd_rows(columns, "PAXSSNMP", 4801, "PAXDAYM")
                    true[5000] = np.nan
                    worn, sleeping = worn.astype(np.float64), sleeping.astype(np.float64)
                    worn[5000] = sleeping[5000] = np.nan
                    if p.examined:
                        for reason in ("PAXSSNMP", "day or weekday", "once more"):
                            self.dropped[f"{stem}.xpt", reason] += 1
                for name in ("PAXDAYM", "PAXDAYWM", "PAXPREDM"):
                    columns[name] = texts([str(int(v)) for v in columns[name]], 1)
                file.append(columns)
                rows = len(columns["SEQN"])
                self.rows[f"{stem}.xpt"] += rows
                if not p.examined:
                    self.dropped[f"{stem}.xpt", "examined"] += rows
                elif kind == 2:
                    self.dropped[f"{stem}.xpt", "PAXHD"] += rows
                else:
                    p.weekday, p.start_seconds = weekday, start * 60
                    p.wear = {"mims": true, "wear_flag": worn, "sleep_flag": sleeping}
        write_xpt(folder / f"PAXHD_{letter}.xpt", head)


if __name__ == "__main__":  # python tests/helpers/nhanes_survey.py DIR N_PEOPLE
    Survey(int(sys.argv[2])).write(Path(sys.argv[1]))
