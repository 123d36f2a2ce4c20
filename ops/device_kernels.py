"""The kernels themselves, as Triton compiles them; `ops.kernels` says what they are for."""

import triton
import triton.language as tl


@triton.jit
def norm_kernel(
    x,
    y,
    weight,
    bias,
    total,
    normed,
    scales,
    rows,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    KEEP_SUM: tl.constexpr,
    QUANTISE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    in_row = column < WIDTH
    ok = in_row & (row < rows)
    at = row.to(tl.int64) * WIDTH + column
    value = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
    value += tl.load(y + at, mask=ok, other=0.0).to(tl.float32)
    rounded = value.to(x.dtype.element_ty)
    if KEEP_SUM:
        tl.store(total + at, rounded, mask=ok)
    value = rounded.to(tl.float32)
    mean = tl.sum(value, axis=1)[:, None] / WIDTH
    centred = tl.where(in_row, value - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / WIDTH
    scale = tl.load(weight + column, mask=in_row, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=in_row, other=0.0).to(tl.float32)
    result = centred * (1.0 / tl.sqrt(variance + EPS)) * scale + shift
    if QUANTISE:
        top = tl.max(tl.abs(result), axis=1)[:, None]
        step = tl.maximum(top, 1e-12) / 448.0
        only = tl.arange(0, 1)[None, :]
        tl.store(scales + row + only, step, mask=row + only < rows)
        result = result / step
    tl.store(normed + at, result.to(normed.dtype.element_ty), mask=ok)


@triton.jit
def _gelu_of(x, EXACT: tl.constexpr):
    """x times the normal distribution at x, in fp32.

    EXACT: by erf. Else by Abramowitz and Stegun 7.1.26, whose error of at most 1.5e-7 is far below
    the rounding of what it is used for, in half the instructions and without a branch.
    """
    if EXACT:
        result = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    else:
        z = tl.abs(x) * 0.7071067811865476
        t = 1.0 / (1.0 + 0.3275911 * z)
        poly = 1.061405429 * t - 1.453152027
        poly = poly * t + 1.421413741
        poly = poly * t - 0.284496736
        poly = (poly * t + 0.254829592) * t
        tail = 0.5 * poly * tl.math.exp2(-1.4426950408889634 * z * z)
        result = x * tl.where(x < 0, tail, 1.0 - tail)
    return result


@triton.jit
def gelu_kernel(
    a, out, FFN: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, EXACT: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = column < FFN
    if GATED:
        first = tl.load(a + row * 2 * FFN + column, mask=ok, other=0.0).to(tl.float32)
        second = tl.load(a + row * 2 * FFN + FFN + column, mask=ok, other=0.0).to(tl.float32)
        # Rounded in between, as the plain version's two steps do.
        result = _gelu_of(first, EXACT).to(a.dtype.element_ty).to(tl.float32) * second
    else:
        result = _gelu_of(tl.load(a + row * FFN + column, mask=ok, other=0.0).to(tl.float32), EXACT)
    tl.store(out + row * FFN + column, result.to(out.dtype.element_ty), mask=ok)


@triton.jit
def fp8_kernel(
    a,
    out,
    scales,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    REST: tl.constexpr,
    ACTIVATE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HEAD)
    behind = HEAD + tl.arange(0, REST)
    first = tl.load(a + row * WIDTH + column).to(tl.float32)
    second = tl.load(a + row * WIDTH + behind, mask=behind < WIDTH, other=0.0).to(tl.float32)
    if ACTIVATE:
        first = _gelu_of(first, False)
        second = _gelu_of(second, False)
    top = tl.maximum(tl.max(tl.abs(first), axis=0), tl.max(tl.abs(second), axis=0))
    step = tl.maximum(top, 1e-12) / 448.0
    tl.store(scales + row, step)
    inverse = 1.0 / step
    kind = out.dtype.element_ty
    tl.store(out + row * WIDTH + column, (first * inverse).to(kind))
    tl.store(out + row * WIDTH + behind, (second * inverse).to(kind), mask=behind < WIDTH)


@triton.jit
def turn_kernel(
    qkv,
    positions,
    cos,
    sin,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    MANY: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    half = tl.arange(0, BLOCK)[None, :]
    angle = tl.load(positions + row) * HALF + half
    c = tl.load(cos + angle, mask=half < HALF, other=0.0)
    s = tl.load(sin + angle, mask=half < HALF, other=0.0)
    head = tl.arange(0, MANY)[:, None]
    ok = (head < HEADS) & (half < HALF)
    for part in tl.static_range(2):
        at = qkv + row * 3 * WIDTH + part * WIDTH + head * 2 * HALF + half
        first = tl.load(at, mask=ok, other=0.0).to(tl.float32)
        second = tl.load(at + HALF, mask=ok, other=0.0).to(tl.float32)
        tl.store(at, (first * c - second * s).to(qkv.dtype.element_ty), mask=ok)
        tl.store(at + HALF, (second * c + first * s).to(qkv.dtype.element_ty), mask=ok)


@triton.jit
def attend_kernel(
    qkv,
    out,
    tiles,
    slopes,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIBI: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Flash attention: one pass over the keys with a running maximum and sum, in powers of two.
    head = tl.program_id(0)
    tile = tiles + 3 * tl.program_id(1)
    length = tl.load(tile + 1)
    if length == 0:
        return
    start = tl.load(tile).to(tl.int64)
    i = tl.load(tile + 2) + tl.arange(0, QUERIES)
    kind = qkv.dtype.element_ty
    base = qkv + start * 3 * WIDTH + head * D
    column = tl.arange(0, BLOCK)
    mask = (i < length)[:, None] & (column < D)[None, :]
    q = tl.load(base + i[:, None] * 3 * WIDTH + column[None, :], mask=mask, other=0.0)
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + head) * 1.4426950408889634
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    summed = tl.zeros([QUERIES, BLOCK], tl.float32)
    for first in range(0, length, KEYS):
        j = first + tl.arange(0, KEYS)
        there = j < length
        k = tl.load(
            base + WIDTH + j[None, :] * 3 * WIDTH + column[:, None],
            mask=there[None, :] & (column < D)[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision=PRECISION) * SCALE
        v = tl.load(
            base + 2 * WIDTH + j[:, None] * 3 * WIDTH + column[None, :],
            mask=there[:, None] & (column < D)[None, :],
            other=0.0,
        )
        if ALIBI:
            scores -= slope * tl.abs(i[:, None] - j[None, :]).to(tl.float32)
        scores = tl.where(there[None, :], scores, float("-inf"))
        now = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.math.exp2(scores - now[:, None])
        fade = tl.math.exp2(highest - now)
        total = total * fade + tl.sum(weights, axis=1)
        summed = tl.dot(weights.to(kind), v, summed * fade[:, None], input_precision=PRECISION)
        highest = now
    to = out + (start + i)[:, None] * WIDTH + head * D + column[None, :]
    tl.store(to, (summed / total[:, None]).to(kind), mask=mask)


@triton.jit
def pool_kernel(
    hidden, spans, out, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    span = spans + 3 * tl.program_id(0)
    place = tl.load(span + 2)
    if place < 0:
        return
    start = tl.load(span)
    stop = tl.load(span + 1)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_row = column < WIDTH
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(start, stop, ROWS):
        row = first + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        mask = (row < stop)[:, None] & in_row[None, :]
        total += tl.sum(tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32), axis=0)
    mean = total / (stop - start).to(tl.float32)
    tl.store(out + place.to(tl.int64) * stride + column, mean, mask=in_row)
