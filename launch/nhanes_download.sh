#!/usr/bin/env bash
# Fetches NHANES as the CDC publishes it, some 30 GB for all four cycles, into one folder:
#
#   launch/nhanes_download.sh DIR [CYCLE ...]      cycles: C (2003-2004), D (2005-2006), G (2011-2012), H (2013-2014)
#   launch/nhanes_download.sh --list [CYCLE ...]   prints the addresses
#
# Checksums: the CDC publishes none. The first download of a file writes its SHA-256 to DIR/SHA256SUMS, and every later
# run checks the file against it; keep SHA256SUMS with what you report. A file that is there is not fetched again; an
# interrupted one is continued. The CDC corrects files now and then: a new version then differs, and is an error here.
#
# The addresses follow the pattern of the site in 2024 and later. They have not been tried from the machine on which
# this was written, which has no internet: if one fails, correct it in `url` below.
set -euo pipefail

TABLES=(DEMO BMX BPX BPQ DIQ MCQ SMQ ALQ PFQ HUQ RXQ_RX)
LABS_C=(L13 L13AM L10 L10AM L11 L40 L25) # cholesterol; triglycerides; HbA1c; glucose; CRP; biochemistry; blood count
LABS_D=(TCHOL HDL TRIGLY GHB GLU CRP BIOPRO CBC)
LABS_GH=(TCHOL HDL TRIGLY GHB GLU BIOPRO CBC)
declare -A BEGIN=([C]=2003 [D]=2005 [G]=2011 [H]=2013)

files() { # the files of cycle $1
  local tables=("${TABLES[@]}") name
  case $1 in
    C) tables+=("${LABS_C[@]}") ;;
    D) tables+=("${LABS_D[@]}") ;;
    G | H) tables+=("${LABS_GH[@]}" PAXHD PAXMIN) ;;
    *) echo "cycle '$1' is none of C, D, G, H" >&2 && return 2 ;;
  esac
  for name in "${tables[@]}"; do echo "${name}_$1.xpt"; done
  case $1 in C | D) echo "PAXRAW_$1.zip" ;; esac
  echo "NHANES_${BEGIN[$1]}_$((BEGIN[$1] + 1))_MORT_2019_PUBLIC.dat"
}

url() { # the address of file $2 of cycle $1
  case $2 in
    *.dat) echo "https://ftp.cdc.gov/pub/Health_Statistics/NCHS/datalinkage/linked_mortality/$2" ;;
    PAXMIN_*) echo "https://ftp.cdc.gov/pub/NHANES/LargeDataFiles/$2" ;;
    *) echo "https://wwwn.cdc.gov/Nchs/Data/Nhanes/Public/${BEGIN[$1]}/DataFiles/$2" ;;
  esac
}

looks_right() { # content $1 of file $2: the site answers a wrong address with a page and status 200
  case $2 in
    *.xpt) [[ $(head -c 13 "$1") == "HEADER RECORD" ]] ;;
    *.zip) [[ $(head -c 2 "$1") == "PK" ]] ;;
    *.dat) [[ $(head -c 1 "$1") =~ [0-9] ]] ;;
  esac
}

check() { # file $1 against its line of SHA256SUMS, which is written if there is none
  local line sum
  line=$(awk -v name="$1" '$2 == name' SHA256SUMS)
  sum=$(sha256sum "$1")
  if [[ -z $line ]]; then
    echo "$sum" >>SHA256SUMS
  elif [[ $line != "$sum" ]]; then
    echo "$1: differs from its line in SHA256SUMS: changed by the CDC, or damaged" >&2 && return 1
  fi
}

fetch() { # file $2 of cycle $1
  echo "$(url "$1" "$2")"
  curl --fail --location --retry 3 --continue-at - --output "$2.part" "$(url "$1" "$2")"
  if ! looks_right "$2.part" "$2"; then
    mv "$2.part" "$2.wrong"
    echo "$2: what came is not such a file; see $2.wrong" >&2 && return 1
  fi
  mv "$2.part" "$2"
}

main() {
  local list="" dir="" cycle file
  if [[ ${1:-} == --list ]]; then list=yes; else dir=${1:?launch/nhanes_download.sh DIR [CYCLE ...]}; fi
  shift
  [[ $# -gt 0 ]] || set -- C D G H
  for cycle in "$@"; do files "$cycle" >/dev/null; done
  if [[ -n $list ]]; then
    for cycle in "$@"; do for file in $(files "$cycle"); do url "$cycle" "$file"; done; done
    return
  fi
  mkdir -p "$dir" && cd "$dir" && touch SHA256SUMS
  for cycle in "$@"; do
    for file in $(files "$cycle"); do
      [[ -f $file ]] || fetch "$cycle" "$file"
      check "$file"
      if [[ $file == *.zip && ! -f ${file%.zip}.xpt ]]; then
        unzip -p "$file" >"${file%.zip}.part"
        looks_right "${file%.zip}.part" "${file%.zip}.xpt" || { echo "$file: holds no transport file" >&2 && return 1; }
        mv "${file%.zip}.part" "${file%.zip}.xpt"
      fi
    done
  done
  echo "whole: $(wc -l <SHA256SUMS) files in $dir"
}

main "$@"
