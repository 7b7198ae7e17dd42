#!/usr/bin/env bash
# Extracts what configs/ukb.py reads, on the Research Analysis Platform of UK Biobank (docs/uk_biobank.md):
#
#   launch/ukb_export.sh DATASET FOLDER     # record-... or the name of the project's .dataset; a folder of the project
#
# Starts a table-exporter job a table (raw codes, names of fields as headers), waits, downloads the tables, the data
# dictionary and the files of field 90004 to ./FOLDER. Needs the dx toolkit, a login and a selected project. A job fails
# over a field that the project was not given: take it off the list.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 1; }
dataset=$1 folder=${2#/}

fields="eid p31 p34 p52 p191 p21000_i0 p40000_i0 p90010 p90011 p90012 p90015 p90016 p90051"
for i in 0 1 2 3; do
  fields+=" p53_i$i p54_i$i p20116_i$i p20117_i$i p48_i$i p49_i$i p50_i$i p21001_i$i p21002_i$i"
  fields+=" p4079_i${i}_a0 p4079_i${i}_a1 p4080_i${i}_a0 p4080_i${i}_a1"
done
for i in 0 1; do
  fields+=" p30690_i$i p30740_i$i p30750_i$i p30760_i$i p30780_i$i p30870_i$i"
done

export_table() { # ENTITY FIELD...
  local entity=$1 field names=()
  shift
  for field in "$@"; do names+=("-ifield_names=$field"); done
  dx run table-exporter "-idataset_or_cohort_or_dashboard=$dataset" "-ientity=$entity" "-ioutput=$entity" \
    -ioutput_format=CSV -icoding_option=RAW -iheader_style=FIELD-NAME "${names[@]}" \
    --destination "/$folder" --yes --brief
}

jobs=()
# shellcheck disable=SC2086
jobs+=("$(export_table participant $fields)")
jobs+=("$(export_table hesin eid ins_index dsource epistart epiend admidate disdate spell_index spell_seq admimeth)")
jobs+=("$(export_table hesin_diag eid ins_index arr_index level diag_icd9 diag_icd10)")
jobs+=("$(export_table hesin_oper eid ins_index arr_index level opdate oper3 oper4)")
jobs+=("$(export_table gp_clinical eid data_provider event_dt read_2 read_3 value1 value2 value3)")
jobs+=("$(export_table gp_scripts eid data_provider issue_date read_2 bnf_code dmd_code drug_name quantity)")
jobs+=("$(export_table gp_registrations eid data_provider reg_date deduct_date)")
jobs+=("$(export_table death eid ins_index date_of_death)")
jobs+=("$(export_table death_cause eid ins_index arr_index level cause_icd10)")
dx wait "${jobs[@]}"

mkdir -p "$folder/accelerometer"
dx download "/$folder/*.csv" --output "$folder" --overwrite
dx extract_dataset "$dataset" --dump-dataset-dictionary --output "$folder"
dx find data --property field_id=90004 --brief | while read -r file; do
  dx download "$file" --output "$folder/accelerometer" --overwrite </dev/null
done
