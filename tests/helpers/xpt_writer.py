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


class XptWriter:
    """A transport file that grows: the columns are given once, rows in blocks; use it in a with statement.

    Args:
      path: file to write. columns: {name: None for a number, or the width of a text}.
    """

    def __init__(self, path, columns, name="DATA"):
        described, offset = b"", 0
        for k, (column, width) in enumerate(columns.items()):
            length = width or 8
            described += struct.pack(
                ">hhhh8s40s8shhh2s8shhl52s", 2 if width else 1, 0, length, k + 1, column.encode().ljust(8),
                f"label of {column}".encode().ljust(40), b" " * 8, 0, 0, 0, b"  ", b" " * 8, 0, 0, offset, b"\0" * 52,
            )  # fmt: skip
            offset += length
        real = f"SAS     SAS     SASLIB  9.4     Linux{'':27}01JAN24:00:00:00".encode()
        member = f"SAS     {name:<8}SASDATA 9.4     Linux{'':27}01JAN24:00:00:00".encode()
        stamp = b"01JAN24:00:00:00".ljust(80)
        self._file = open(path, "wb")  # noqa: SIM115
        self._file.write(_header("LIBRARY") + real + stamp)
        self._file.write(_header("MEMBER", "000000000000000001600000000140") + _header("DSCRPTR") + member + stamp)
        self._file.write(_header("NAMESTR", f"000000{len(columns):04d}00000000000000000000"))
        self._file.write(described + b" " * (-len(described) % 80) + _header("OBS"))
        self._n_bytes = 0

    def append(self, columns):
        """Writes rows: {column: numbers, or texts as uint8 [N, width]}."""
        rows = np.concatenate([v if v.dtype == np.uint8 else float_to_ibm(v) for v in columns.values()], axis=1)
        self._file.write(rows.tobytes())
        self._n_bytes += rows.size

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.write(b" " * (-self._n_bytes % 80))
        self._file.close()


def texts(values, width):
    """uint8 [N, width] of texts, None for blank."""
    made = b"".join((v or "").encode("latin-1").ljust(width) for v in values)
    return np.frombuffer(made, np.uint8).reshape(-1, width)


def write_xpt(path, columns):
    """Writes {column: numbers with None for missing, or texts} of equal length."""
    made = {}
    for name, values in columns.items():
        values = values if isinstance(values, np.ndarray) else list(values)
        if isinstance(values, np.ndarray) or not any(isinstance(v, str) for v in values):
            made[name] = np.array([np.nan if v is None else v for v in values], np.float64)
        else:
            made[name] = texts(values, max(max(len(v or "") for v in values), 1))
    widths = {name: v.shape[1] if v.dtype == np.uint8 else None for name, v in made.items()}
    with XptWriter(path, widths) as file:
        file.append(made)
    return path
