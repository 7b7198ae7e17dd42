"""Tables of what z holds: medians by kind of feature, codes in order, and nothing where there is nothing."""

from ehrwear_jax.report import ledger_tables, result_records
from ehrwear_jax.report.table_model import Group, Row


def entry(model, of, value, statistic="last", modality="ehr", days="", measure="r2"):
    return {"model": model, "modality": modality, "of": of, "statistic": statistic, "range": days, "measure": measure,
            "value": value, "n": 100, "n_train": 900}  # fmt: skip


def test_medians_by_kind_and_codes_in_order():
    codes = [f"LAB//{k:02d}" for k in range(20)]
    found = [entry(m, c, k / 20 + bonus) for m, bonus in (("joint", 0.01), ("ehr_only", 0.0))
             for k, c in enumerate(codes)]  # fmt: skip
    found += [entry("joint", "heart_rate", 0.9, "mean", "wear", d) for d in ("30d", "1d", "12h")]
    found += [entry("joint", "SEX//F", 0.75, "flag", measure="auroc")]
    kinds, of_codes = ledger_tables.ledger_tables(found)
    rows = {r.cells[0]: r.cells for r in kinds.rows if isinstance(r, Row)}
    models = [result_records.model_label(m) for m in ("joint", "ehr_only")]
    assert [c.label for c in kinds.columns] == ["Feature", "Features", *models]
    assert rows["last"][1] == "20" and rows["last"][2].startswith("0.48 (0.1") and rows["last"][3].startswith("0.47")
    assert rows["mean"][1:] == ("3", "0.90 (0.90 to 0.90)", result_records.ABSENT) and rows["flag, AUROC"][2] == "0.75"
    order = [r.cells[0] if isinstance(r, Row) else r.title for r in of_codes.rows]
    assert order[:3] == ["Best", "LAB//19", "LAB//18"] and "heart_rate, mean 12h" in order
    assert order[order.index("Worst") + 1 :] == codes[5::-1]
    assert any(isinstance(r, Group) and r.title == "Wearable" for r in kinds.rows)


def test_nothing_is_shown_of_nothing():
    assert ledger_tables.ledger_tables([]) == []
    assert len(ledger_tables.ledger_tables([entry("joint", "a", 0.1, "slope")])) == 1
