"""Writes files in the schemas of UK Biobank about made-up people, with their oddities, and keeps the truth about them.

The truth is written down as each row is made, in the dataset's terms, and not read from the files: the timeline of each
person, how many rows of each table are lost for which reason, and when each person was observed.
"""

import random
from collections import Counter, defaultdict
from datetime import date, datetime, timedelta

from ehrwear_jax.data.sources.ukb import coded_events as told
from ehrwear_jax.data.sources.ukb.export_files import STRANGER

DAY = timedelta(days=1)
STYLES = {"tab": "f.{}.{}.{}", "csv": "{}-{}.{}", "rap": None}
WITHDREW, NEGATIVE, NOBODY = 9_000_001, -3, 9_999_999
LINKED = {"England": (date(1997, 4, 1), date(2022, 10, 31)), "Scotland": (date(1981, 1, 1), date(2022, 8, 31)),
          "Wales": (date(1998, 4, 1), date(2022, 5, 31))}  # fmt: skip
CENTRES = {"England": ("11010", "Leeds"), "Scotland": ("11005", "Edinburgh"), "Wales": ("11003", "Cardiff")}
GP_END = {"1": date(2017, 5, 1), "2": date(2017, 4, 1), "3": date(2016, 7, 1), "4": date(2017, 9, 1)}
SPECIAL = {"1900-01-01": "special date: unknown", "1904-04-04": "special date: unknown",
           "1910-10-10": "special date: unknown", "1901-01-01": "special date: before birth",
           "1909-09-09": "special date: in the future", "2037-07-07": "special date: in the future"}  # fmt: skip
ICD10 = ("I219", "I500", "E119", "J440", "C509", "F329", "K219", "M179", "N183", "Z511")
ICD9 = ("4109", "2500", "4019")
OPCS4 = ("K401", "W371", "X292", "H259")
READ2 = ("G30..", "C10F.", "H33..", "F25..", "E2B..", "1371.", "137R.")
CTV3 = ("XE0Uc", "X40J5", "H33..", "XaIIT")
UNITS = (  # (as written in bytes, in UCUM)
    (b"mmol/L", "mmol/L"), (b"\xb5mol/L", "umol/L"), ("µmol/L".encode(), "umol/L"), (b"MEA000", None),
    (b"g/dl", "g/dL"), (b"", None),
)  # fmt: skip
HEADERS = {
    "hesin": ("eid", "ins_index", "dsource", "source", "epistart", "epiend", "epidur", "bedyear", "epistat", "admidate",
              "admimeth", "disdate", "spell_index", "spell_seq"),
    "hesin_diag": ("eid", "ins_index", "arr_index", "level", "diag_icd9", "diag_icd9_nb", "diag_icd10",
                   "diag_icd10_nb"),
    "hesin_oper": ("eid", "ins_index", "arr_index", "level", "opdate", "oper3", "oper3_nb", "oper4", "oper4_nb",
                   "posopdur", "preopdur"),
    "gp_clinical": ("eid", "data_provider", "event_dt", "read_2", "read_3", "value1", "value2", "value3"),
    "gp_scripts": ("eid", "data_provider", "issue_date", "read_2", "bnf_code", "dmd_code", "drug_name", "quantity"),
    "gp_registrations": ("eid", "data_provider", "reg_date", "deduct_date"),
    "death": ("eid", "ins_index", "dsource", "source", "date_of_death"),
    "death_cause": ("eid", "ins_index", "arr_index", "level", "cause_icd10"),
}  # fmt: skip


def end_of(day):
    return datetime(day.year, day.month, day.day) + DAY - timedelta(microseconds=1)


class Cohort:
    """Files of `n` people, and the truth about them.

    Attributes:
      events: {eid: [(time or None, code, value or None)]}. lost: {table: {reason: rows}}. read: {table: rows}.
      followed: {eid: (start, end)} of `hospital`. registered: {eid: (start, end)}: days of the longest stretch.
      wear: {eid: values, None where missing}. people: {eid: dict}.
    """

    def __init__(self, n, seed=0, style="tab", dates="dmy", gp_rows=20, wear=0.3, wear_days=7):
        self.rng = random.Random(seed)
        self.style, self.dates, self.gp_rows, self.wear_share, self.wear_days = style, dates, gp_rows, wear, wear_days
        self.rows = {name: [] for name in HEADERS}
        self.events, self.lost = defaultdict(list), defaultdict(Counter)
        self.people, self.followed, self.registered, self.wear, self.fields = {}, {}, {}, {}, []
        self.recordings = {}
        for i in range(n):
            self._person(1_000_000 + 7 * i, i)
        self._strangers()
        self.read = {name: len(rows) for name, rows in self.rows.items()}

    # ------------------------------------------------------------------------------------------------- writing dates
    def day(self, day):
        """A date, or the text of a special one, in the style of the files."""
        if day is None:
            return ""
        iso = day if isinstance(day, str) else day.isoformat()
        if self.dates == "iso" or iso[:4].isalpha() or len(iso) != 10:
            return iso
        return f"{iso[8:]}/{iso[5:7]}/{iso[:4]}"

    def add(self, table, values, event=None, lost=None, n=1):
        """`n` equal rows; `event`: (eid, [(time, code, value)]) that they tell; `lost`: the reason why they do not."""
        row = [values.get(c, "") for c in HEADERS[table]]
        self.rows[table] += [row] * n
        if lost:
            self.lost[table][lost] += n
        else:
            self.lost[table][told.REPEATED] += n - 1
            self.events[event[0]] += event[1]

    # ------------------------------------------------------------------------------------------------------ one person
    def _person(self, eid, i):
        rng = self.rng
        country = ("England", "Scotland", "Wales")[0 if i % 5 else 1 + i % 2]
        birth = date(rng.randint(1937, 1969), rng.randint(1, 12), 15)
        visit = date(2006, 3, 1) + rng.randint(0, 1500) * DAY
        died = date(2012, 1, 1) + rng.randint(0, 3800) * DAY if rng.random() < 0.12 else None
        lost = date(2015, 1, 1) + rng.randint(0, 2000) * DAY if rng.random() < 0.03 and not died else None
        sex = rng.choice("FM")
        person = {"birth": birth, "visit": visit, "died": died, "lost": lost, "country": country, "sex": sex}
        self.people[eid] = person
        bmi, smoking = round(rng.uniform(18, 40), 2), rng.choice((0, 1, 2, -3))
        labels = self.style == "rap"
        fields = {(31, 0, 0): {"F": "Female", "M": "Male"}[sex] if labels else {"F": 0, "M": 1}[sex],
                  (34, 0, 0): birth.year, (52, 0, 0): f"{birth:%B}" if labels else birth.month,
                  (53, 0, 0): visit.isoformat(), (54, 0, 0): CENTRES[country][labels], (21001, 0, 0): bmi,
                  (20116, 0, 0): smoking, (191, 0, 0): lost and lost.isoformat()}  # fmt: skip
        at_visit = [(end_of(visit), "UKB//21001//kg/m2", bmi)]
        at_visit += [(end_of(visit), f"UKB//20116//{smoking}", None)] if smoking >= 0 else []
        self.lost["visits"]["not answered (a negative code)"] += smoking < 0
        self.events[eid] += [(datetime(*birth.timetuple()[:3]), "MEDS_BIRTH", None), (None, f"GENDER//{sex}", None)]
        self.events[eid] += at_visit
        self._death(eid, person, fields)
        self._occurrences(eid, person, fields)
        self._wear(eid, person, fields)
        self.fields.append((eid, fields))
        for spell in range(rng.choice((0, 0, 1, 1, 2, 4))):
            self._spell(eid, person, spell)
        if i % 9 < 5 or i < 20:
            self._primary_care(eid, person)
        self._follow_up(eid, person)

    def _death(self, eid, person, fields):
        died = person["died"]
        if died is None:
            return
        if self.rng.random() < 0.1:
            fields[40000, 0, 0] = died.isoformat()
        else:
            self.rows["death"].append([eid, 0, "E/W", "", self.day(died)])
            if self.rng.random() < 0.1:  # a second certificate, with another day
                self.add("death", {"eid": eid, "ins_index": 1, "date_of_death": self.day(died + 2 * DAY)},
                         lost="a further certificate of one death")  # fmt: skip
        cause = self.rng.choice(ICD10)
        self.events[eid].append((end_of(died), "MEDS_DEATH", None))
        self.add("death_cause", {"eid": eid, "ins_index": 0, "arr_index": 0, "level": 1, "cause_icd10": cause},
                 (eid, [(end_of(died), f"DEATH_CAUSE//ICD10//{cause}", None)]))  # fmt: skip

    def _occurrences(self, eid, person, fields):
        """130000 is of A00, 130002 of A01; sources 30 primary care, 40 hospital, 50 reported by the person."""
        rng, day = self.rng, date(1990, 1, 1) + self.rng.randint(0, 5000) * DAY
        if rng.random() < 0.4:
            source = rng.choice(("30", "40", "50"))
            labels = {"30": "Primary care only", "40": "Hospital admissions data only", "50": "Self-report only"}
            special = rng.random() < 0.1
            fields[130000, 0, 0] = "1909-09-09" if special else day.isoformat()
            fields[130001, 0, 0] = labels[source] if self.style == "rap" else source
            if special:
                self.lost["first occurrences"]["special date: in the future"] += 1
            elif source == "50":
                known = max(day, person["visit"])
                self.events[eid].append((end_of(known), "FIRST_OCCURRENCE//130000", None))
            else:
                self.lost["first occurrences"]["told by hesin_diag" if source == "40" else "told by gp_clinical"] += 1

    def _wear(self, eid, person, fields):
        rng = self.rng
        if rng.random() >= self.wear_share or (person["died"] and person["died"] < date(2016, 1, 1)):
            return
        start = datetime(2013, 6, 1, 10) + rng.randint(0, 800) * DAY
        end = start + self.wear_days * DAY
        what = rng.choice(("good",) * 7 + ("short", "uncalibrated", "unknown"))
        fields[90010, 0, 0], fields[90011, 0, 0] = str(start), str(end)
        fields[90012, 0, 0], fields[90051, 0, 0] = round(rng.uniform(15, 45), 2), self.wear_days
        if what != "unknown":
            yes, no = ("Yes", "No") if self.style == "rap" else (1, 0)
            fields[90015, 0, 0] = no if what == "short" else yes
            fields[90016, 0, 0] = no if what == "uncalibrated" else yes
        reasons = {"short": "not worn for long enough (90015)", "uncalibrated": "not calibrated (90016)",
                   "unknown": "quality unknown (90015, 90016)"}  # fmt: skip
        n = int(self.wear_days * 17280)
        base = rng.uniform(10, 40)
        values = [round(base * (0.2 if k // 720 % 24 > 13 else 1.5), 2) for k in range(n)]
        gap = range(n // 3, n // 3 + n // 8) if rng.random() < 0.5 else range(0)
        cut = what == "good" and rng.random() < 0.05
        self.recordings[eid] = (start, values[: n // 2] if cut else values, gap, n)
        if what != "good":
            self.lost["accelerometry"][reasons[what]] += 1
            self.lost["accelerometry files"]["quality unknown or bad (90015, 90016)"] += 1
        elif cut:
            self.lost["accelerometry files"]["file is not as field 90004 has it"] += 1
        else:
            hidden = set(gap)
            self.wear[eid] = (start, [None if k in hidden else v for k, v in enumerate(values)])

    # -------------------------------------------------------------------------------------------------------- hospital
    def _spell(self, eid, person, spell):
        rng = self.rng
        last = (person["died"] or date(2022, 3, 1)).toordinal()
        admitted = date.fromordinal(rng.randint(date(1998, 5, 1).toordinal(), last))
        left = date.fromordinal(min(admitted.toordinal() + rng.choice((0, 0, 1, 3, 12)), last))
        oddity = rng.choice(("",) * 6 + ("no epistart", "no spell", "no dates", "no discharge", "only epistart"))
        method, word = rng.choice((("11", "ELECTIVE"), ("21", "EMERGENCY"), ("31", "MATERNITY"), ("", "")))
        dsource = "HES"
        if person["country"] == "Scotland":
            dsource, method, word = "SMR", *rng.choice((("10", "ELECTIVE"), ("36", "EMERGENCY")))
        episodes = 1 if oddity in ("only epistart", "no dates") else rng.choice((1, 1, 2))
        known = left
        for k in range(episodes):
            ins = 10 * spell + k
            ends = left if oddity != "no discharge" else None
            row = {"eid": eid, "ins_index": ins, "dsource": dsource, "admidate": self.day(admitted),
                   "epistart": self.day(admitted), "epiend": self.day(ends), "admimeth": method,
                   "disdate": self.day(ends) if k == episodes - 1 else "", "spell_index": spell,
                   "spell_seq": k}  # fmt: skip
            if oddity == "no epistart":
                row["epistart"] = ""
            if oddity == "no spell":
                row["spell_index"] = ""
            if oddity == "no discharge":
                known = admitted
            if oddity == "only epistart":
                row |= {"admidate": "", "disdate": "", "epiend": ""}
                known = admitted
            if oddity == "no dates":
                row |= {"admidate": "", "disdate": "", "epiend": "", "epistart": self.day("1900-01-01")}
                self.add("hesin", row, lost="no usable date")
            else:
                self.add("hesin", row, (eid, []))
            self._coded(eid, person, ins, known, None if oddity == "no dates" else admitted)
        if oddity == "no dates":
            return
        self.events[eid].append((end_of(admitted), "HOSPITAL_ADMISSION" + (f"//{word}" if word else ""), None))
        if oddity not in ("no discharge", "only epistart"):
            self.events[eid].append((end_of(left), "HOSPITAL_DISCHARGE", None))

    def _coded(self, eid, person, ins, known, admitted):
        """Diagnoses and operations of an episode; admitted None: it has no date."""
        rng, undated = self.rng, "its episode is not in hesin, or has no date"
        for k, code in enumerate(rng.sample(ICD10, rng.randint(1, 3))):
            row = {"eid": eid, "ins_index": ins, "arr_index": k, "level": 1 + (k > 0), "diag_icd10": code}
            name = f"ICD10//{code}"
            if rng.random() < 0.1:
                row, name = row | {"diag_icd10": "I10X"}, "ICD10//I10"
            elif rng.random() < 0.05:
                nine = rng.choice(ICD9)
                row, name = row | {"diag_icd10": "", "diag_icd9": nine}, f"ICD9//{nine}"
            event = (end_of(known), name, None)
            if admitted is None:
                self.add("hesin_diag", row, lost=undated)
            elif event in self.events[eid]:  # another episode of the day told it already
                self.add("hesin_diag", row, lost=told.REPEATED)
            else:
                self.add("hesin_diag", row, (eid, [event]))
        if admitted is not None and rng.random() < 0.4:
            code, day = rng.choice(OPCS4), rng.choice((admitted, None, "1800-01-01"))
            row = {"eid": eid, "ins_index": ins, "arr_index": 0, "opdate": self.day(day), "oper4": code}
            event = (end_of(day if isinstance(day, date) else known), f"OPCS4//{code}", None)
            repeated = event in self.events[eid]
            self.add("hesin_oper", row, None if repeated else (eid, [event]), told.REPEATED if repeated else None)

    # ---------------------------------------------------------------------------------------------------- primary care
    def _primary_care(self, eid, person):
        rng = self.rng
        provider = rng.choice({"England": "13", "Scotland": "2", "Wales": "4"}[person["country"]])
        first = date(1992, 1, 1) + rng.randint(0, 3000) * DAY
        last = min(GP_END[provider], person["died"] or GP_END[provider])
        moved = first + rng.randint(1000, 3000) * DAY
        base = {"eid": eid, "data_provider": provider}
        if rng.random() < 0.3 and moved + 10 * DAY < last:  # a second practice, ten days later
            self.add(
                "gp_registrations", base | {"reg_date": self.day(first), "deduct_date": self.day(moved)}, (eid, [])
            )
            self.add("gp_registrations", base | {"reg_date": self.day(moved + 10 * DAY)}, (eid, []))
        else:
            future = self.day("2037-07-07") if rng.random() < 0.2 else ""
            self.add("gp_registrations", base | {"reg_date": self.day(first), "deduct_date": future}, (eid, []))
        if rng.random() < 0.2:
            odd = rng.choice(
                (("2037-07-07", None, "special date: in the future"), (None, None, "no date"),
                 (last + 5 * DAY, None, "begins after the system's last day, or after death"),
                 (first, first - 40 * DAY, "ends before it begins"))
            )  # fmt: skip
            row = base | {"reg_date": self.day(odd[0]), "deduct_date": self.day(odd[1])}
            self.add("gp_registrations", row, lost=odd[2])
        self.registered[eid] = (first, last)
        days = rng.sample(range((last - first).days + 1), min(self.gp_rows, (last - first).days))
        for k, ahead in enumerate(days):
            (self._clinical if k % 5 < 3 else self._script)(eid, person, base, provider, first + ahead * DAY)

    def _odd_day(self, person, day):
        """(day as written, day as meant or None, reason)."""
        rng, birth = self.rng, person["birth"]
        if rng.random() > 0.12:
            return self.day(day), day, None
        if rng.random() < 0.3:
            return (self.day("1902-02-02"), birth, None) if rng.random() < 0.5 else (
                self.day("1903-03-03"), date(birth.year, 12, 31), None)  # fmt: skip
        odd = rng.choice((*SPECIAL, "", "31/31/2001", "1920-05-05", "2040-01-01", "died"))
        if odd == "died" and not person["died"]:
            odd = ""
        if odd == "died":
            return self.day(person["died"] + DAY), None, "after death"
        reasons = {"": "no date", "31/31/2001": "unreadable date", "1920-05-05": "before birth",
                   "2040-01-01": "in the future"}  # fmt: skip
        if odd == "2040-01-01" and person["died"]:
            return self.day(odd), None, "in the future"
        return (odd if odd == "31/31/2001" else self.day(odd)), None, (reasons | SPECIAL)[odd]

    def _clinical(self, eid, person, base, provider, day):
        rng = self.rng
        written, meant, lost = self._odd_day(person, day)
        row, extra = base | {"event_dt": written}, []
        kind = rng.random()
        if kind < 0.05:
            row["read_2" if provider != "3" else "read_3"] = rng.choice(("", "-1", "-99"))
            lost, name, value = lost or "no code", "", None
        elif kind < 0.35 and provider != "3":  # a measurement: the number in value1, or behind an operator in value2
            number, (raw, unit) = round(rng.uniform(1, 90), 1), rng.choice(UNITS)
            row |= {"read_2": rng.choice(("44I4.", "44I4.00")), "value3": raw}
            row |= {"value1": number} if rng.random() < 0.5 else {"value1": "OPR003", "value2": number}
            name, value = "READ2//44I4." + (f"//{unit}" if unit else ""), number
        elif kind < 0.45 and provider != "3":  # a blood pressure
            high, low = rng.randint(90, 180), rng.randint(50, 89)
            row |= {"read_2": "246..", "value1": f"{high}.000", "value2": low}
            name, value, extra = "READ2//246..", float(high), [("READ2//246..//2", float(low))]
        elif provider == "3":
            code, number = rng.choice(CTV3), rng.choice(("", "12.5"))
            row |= {"read_3": code, "value1": number}
            name, value = f"CTV3//{code}", float(number) if number else None
        else:
            code = rng.choice(READ2)
            row |= {"read_2": code + rng.choice(("", "00", "11"))}
            name, value = f"READ2//{code}", None
        events = [] if lost else [(end_of(meant), n, v) for n, v in [(name, value), *extra]]
        if events and any(e[1:] == events[0][1:] and e[0] == events[0][0] for e in self.events[eid]):
            row, events = row | {"value2": "OPR004"}, events  # another row of that day at birth: not a repetition
            return
        self.add("gp_clinical", row, (eid, events), lost, n=2 if rng.random() < 0.03 else 1)

    def _script(self, eid, person, base, provider, day):
        rng = self.rng
        written, meant, lost = self._odd_day(person, day)
        row = base | {"issue_date": written, "drug_name": 'Gauze 10" x 10"' if rng.random() < 0.1 else "Atenolol 50mg",
                      "quantity": "28 tablets"}  # fmt: skip
        if provider == "3":
            bnf, dmd, name = rng.choice((("02.02.01.00.00", "", "BNF//020201"), ("02.12.00.00.00", "", "BNF//0212"),
                                         ("00.00.00.00.00", "319775004", "DMD//319775004")))  # fmt: skip
            row |= {"bnf_code": bnf, "dmd_code": dmd}
        elif provider == "2":
            row |= {"bnf_code": "0202010B0", "read_2": "bxd1.00"}
            name = "BNF//0202010B0"
        else:
            code, dmd, name = rng.choice((("bxd1.00", "", "READ2//bxd1."), ("bd3j.", "", "READ2//bd3j."),
                                          ("", "319775004", "DMD//319775004"), ("", "0", None)))  # fmt: skip
            row |= {"read_2": code, "dmd_code": dmd}
            lost = lost or (None if name else "no code")
        events = [] if lost else [(end_of(meant), name, None)]
        if events and events[0] in self.events[eid]:
            return
        self.add("gp_scripts", row, (eid, events), lost, n=2 if rng.random() < 0.03 else 1)

    # ------------------------------------------------------------------------------------------------------ all people
    def _follow_up(self, eid, person):
        start, end = LINKED[person["country"]]
        if eid in self.registered:
            start = min(start, self.registered[eid][0])
        end = min(d for d in (end, person["lost"], person["died"]) if d)
        self.followed[eid] = (datetime(*start.timetuple()[:3]), datetime(*end.timetuple()[:3]) + DAY)

    def _strangers(self):
        day = self.day(date(2001, 2, 3))
        for eid in (NOBODY, WITHDREW, NEGATIVE):
            base = {"eid": eid, "data_provider": "1"}
            self.add("gp_clinical", base | {"event_dt": day, "read_2": "G30.."}, lost=STRANGER)
            self.add("gp_scripts", base | {"issue_date": day, "read_2": "bxd1."}, lost=STRANGER)
            self.add("gp_registrations", base | {"reg_date": day}, lost=STRANGER)
            self.add("hesin", {"eid": eid, "ins_index": 0, "epistart": day}, lost=STRANGER)
            self.add("hesin_diag", {"eid": eid, "ins_index": 0, "diag_icd10": "I219"}, lost=STRANGER)
            self.add("death", {"eid": eid, "ins_index": 0, "date_of_death": day}, lost=STRANGER)
            self.add("death_cause", {"eid": eid, "ins_index": 0, "cause_icd10": "I219"}, lost=STRANGER)
        first = next(iter(self.people))
        self.add("gp_clinical", {"eid": first, "data_provider": "7", "event_dt": day, "read_2": "G30.."},
                 lost="data_provider is none of 1, 2, 3, 4")  # fmt: skip
        self.add("hesin_diag", {"eid": first, "ins_index": 777, "diag_icd10": "I219"},
                 lost="its episode is not in hesin, or has no date")  # fmt: skip
        for eid in (WITHDREW, NEGATIVE):
            self.fields.append((eid, {(31, 0, 0): 1, (34, 0, 0): 1950, (52, 0, 0): 5}))
        self.lost["participants"]["withdrew: negative id"] = 1
        self.lost["participants"]["withdrew: on the list of withdrawals"] = 1

    # --------------------------------------------------------------------------------------------------------- writing
    def write(self, folder):
        """All files; the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tabs = self.style != "rap"
        for name, rows in self.rows.items():
            prefix = "" if tabs else f"{name}."
            head = [f"{prefix}{c}" for c in HEADERS[name]] + ([] if tabs else [f"dnx_{name}_id"])
            lines = [_line(head, tabs)] + [_line(row + ([] if tabs else ["x-1"]), tabs) for row in rows]
            (folder / f"{name}.{'txt' if tabs else 'csv'}").write_bytes(b"\n".join(lines) + b"\n")
        self._write_fields(folder)
        (folder / "w12345_20230425.csv").write_text(f"{WITHDREW}\n")
        files = folder / "accelerometer"
        for eid, (start, values, gap, n) in self.recordings.items():
            path = files / str(eid)[:2] / f"{eid}_90004_0_0.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            end, hidden = start + timedelta(seconds=5 * (n - 1)), set(gap)
            head = f"acceleration (mg) - {start} - {end} - sampleRate = 5 seconds,imputed"
            path.write_text("\n".join([head, *(f"{v},{int(k in hidden)}" for k, v in enumerate(values))]) + "\n")
        return folder

    def _write_fields(self, folder):
        known = sorted({f for _, fields in self.fields for f in fields})
        eid = {"tab": "f.eid", "csv": "eid", "rap": "participant.eid"}[self.style]
        head = [eid, *(self._column(f) for f in known)]
        missing = "NA" if self.style == "tab" else ""
        rows = [[e, *(missing if fields.get(f) is None else fields[f] for f in known)] for e, fields in self.fields]
        name = {"tab": "ukb12345.tab", "csv": "ukb12345.csv", "rap": "participant.csv"}[self.style]
        lines = [_line(row, self.style == "tab", everything=self.style == "csv") for row in [head, *rows]]
        (folder / name).write_bytes(b"\n".join(lines) + b"\n")

    def _column(self, field):
        if self.style != "rap":
            return STYLES[self.style].format(*field)
        instances = field[0] in (53, 54, 21001, 20116)
        return f"participant.p{field[0]}" + (f"_i{field[1]}" if instances else "")


def _line(cells, tabs, everything=False):
    out = []
    for cell in cells:
        cell = cell if isinstance(cell, bytes) else str(cell).encode()
        if not tabs and (everything or b'"' in cell or b"," in cell):
            cell = b'"' + cell.replace(b'"', b'""') + b'"'
        out.append(cell)
    return (b"\t" if tabs else b",").join(out)
