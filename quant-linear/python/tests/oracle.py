"""The contract again, in NumPy: slow, small, and from the text, not from the code."""

import numpy as np

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def e4m3(byte):
    """Values of e4m3 bytes."""
    exponent, mantissa = byte >> 3 & 15, (byte & 7).astype(np.float64)
    value = np.where(exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0), mantissa / 512)
    return np.where(byte & 0x80, -value, value)


E4M3 = e4m3(np.arange(127))


def scale_bytes(scales, kind):
    """The nearest scale byte of positive finite values (C2): ties to even, of e8m0 up."""
    scales = scales.astype(np.float64)
    if kind == "e8m0":
        exponent = np.floor(np.log2(np.maximum(scales, 2.0**-127)))
        up = scales / 2.0**exponent >= 1.5
        return np.clip(exponent + up + 127, 0, 254).astype(np.uint8)
    nearest = np.abs(np.minimum(scales, 448)[..., None] - E4M3)
    # Of two equally near the even one.
    return np.argmin(nearest * 4096 + (np.arange(127) & 1) * 2.0**-40, axis=-1).astype(np.uint8)


def scale_values(byte, kind):
    """Values of scale bytes, f32."""
    value = 2.0 ** (byte.astype(np.float64) - 127) if kind == "e8m0" else e4m3(byte)
    return value.astype(np.float32)


def quantize(x, kind, group, gs, ss):
    """Codes and scale bytes (C4), ties to even, of finite values."""
    gs, ss = np.float32(gs), np.float32(ss)
    rows, k = x.shape
    groups = x.astype(np.float32).reshape(rows, k // group, group)
    amax = np.abs(groups).max(axis=-1)
    scales = scale_bytes(amax / (ss * gs), kind)
    d = (scale_values(scales, kind) * gs)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(d == 0, np.float32(0), groups / d)
    middles = (E2M1[1:] + E2M1[:-1]) / 2
    below = (np.abs(q)[..., None] > middles).sum(axis=-1)
    tie = (np.abs(q)[..., None] == middles).any(axis=-1)
    code = below + (tie & (below % 2 == 1))
    code = (code + 8 * np.signbit(groups)).astype(np.uint8).reshape(rows, k)
    return code[:, 0::2] | code[:, 1::2] << 4, scales


def unpack(codes):
    """Values of packed codes, f64."""
    code = np.stack([codes & 15, codes >> 4], -1).reshape(codes.shape[0], 2 * codes.shape[1])
    return np.where(code & 8, -1.0, 1.0) * E2M1[code & 7]


def values(codes, scales, kind, group, gs):
    """What packed values are worth (C4.4), f32."""
    d = scale_values(scales, kind) * np.float32(gs)
    return unpack(codes).astype(np.float32) * np.repeat(d, group, axis=1)


def matmul_nvfp4(a, b, alpha):
    """The exact product (C6) by integers in units of 2^-20, rounded once, times alpha."""

    def operand(codes, scales):
        units = (unpack(codes) * 2).astype(np.int64)
        return units * np.repeat((e4m3(scales) * 512).astype(np.int64), 16, axis=1)

    exact = operand(*a) @ operand(*b).T
    # int64 to f32 is one rounding; so is the product.
    return exact.astype(np.float32) * np.float32(2.0**-20) * np.float32(alpha)
