"""Writes SAS transport files of version 5, as the CDC publishes them, of numbers and short texts."""

import struct

import numpy as np

_ZEROS = "0" * 30


def _header(kind, rest=_ZEROS):
    return f"HEADER RECORD*******{kind:<8}HEADER RECORD!!!!!!!{rest}".ljust(80).encode()


def float_to_ibm(value_N):
    """uint8 [N, 8]: IBM hexadecimal floating point; NaN is the missing value ".". Exact for all but subnormals."""
    value_N = np.asarray(value_N, np.float64)
    number_N = np.where(np.isnan(value_N), 0.0, np.abs(value_N))
    fraction_N, two_N = np.frexp(number_N)  # number = fraction * 2**two, fraction in [0.5, 1)
    sixteen_N = -(-two_N // 4)
    mantissa_N = np.ldexp(fraction_N, two_N - 4 * sixteen_N + 56).astype(np.uint64)
    head_N = np.where(number_N == 0, 0, sixteen_N + 64).astype(np.uint64)
    head_N |= np.where((value_N < 0) & (number_N > 0), 0x80, 0).astype(np.uint64)
    bytes_Nx8 = ((head_N << np.uint64(56)) | mantissa_N).astype(">u8").view(np.uint8).reshape(-1, 8).copy()
    bytes_Nx8[np.isnan(value_N)] = [ord("."), 0, 0, 0, 0, 0, 0, 0]
    return bytes_Nx8


def _cells(values):
    """(is a number, uint8 [N, L]) of a column: numbers with None or NaN, or texts with None."""
    values = list(values) if not isinstance(values, np.ndarray) else values
    if isinstance(values, np.ndarray) or not any(isinstance(v, str) for v in values):
        return True, float_to_ibm(np.array([np.nan if v is None else v for v in values], np.float64))
    texts = [(v or "").encode("latin-1") for v in values]
    width = max(max(map(len, texts), default=1), 1)
    return False, np.frombuffer(b"".join(t.ljust(width) for t in texts), np.uint8).reshape(len(texts), width)


def write_xpt(path, columns, name="DATA"):
    """Writes {column: numbers or texts} of equal length."""
    described, cells, offset = b"", [], 0
    for k, (column, values) in enumerate(columns.items()):
        is_number, bytes_NxL = _cells(values)
        length = bytes_NxL.shape[1]
        described += struct.pack(
            ">hhhh8s40s8shhh2s8shhl52s", 1 if is_number else 2, 0, length, k + 1, column.encode().ljust(8),
            f"label of {column}".encode().ljust(40), b" " * 8, 0, 0, 0, b"  ", b" " * 8, 0, 0, offset, b"\0" * 52,
        )  # fmt: skip
        cells.append(bytes_NxL)
        offset += length
    rows = np.concatenate(cells, axis=1).tobytes()
    real = f"SAS     SAS     SASLIB  9.4     Linux{'':27}01JAN24:00:00:00".encode()
    member = f"SAS     {name:<8}SASDATA 9.4     Linux{'':27}01JAN24:00:00:00".encode()
    stamp = b"01JAN24:00:00:00".ljust(80)
    with open(path, "wb") as file:
        file.write(_header("LIBRARY") + real + stamp)
        file.write(_header("MEMBER", "000000000000000001600000000140") + _header("DSCRPTR") + member + stamp)
        file.write(_header("NAMESTR", f"000000{len(columns):04d}00000000000000000000"))
        file.write(described + b" " * (-len(described) % 80) + _header("OBS"))
        file.write(rows + b" " * (-len(rows) % 80))
    return path
