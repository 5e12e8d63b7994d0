/* The mapping between row-major kernels and the layouts that backends cache them in: one formula for all backends. */
#include "backends/armv7em_dsp/htpw_dsp.h"
#include "backends/armv81m_mve/htpw_mve.h"
#include "backends/htpw_backend.h"

/* What the backends of this build keep beside int8 weights. */
#if defined(HTPW_HAS_ARMV81M_MVE) || !defined(__arm__)
#define HTPW_ANY_SUMS HTPW_ANY_BLOCKS
#else
#define HTPW_ANY_SUMS 0
#endif

static uint32_t htpw_blocks(uint32_t n, uint32_t block) { return (n + block - 1u) / block; }

/* Index of element (o, i) by the formula in htpw_backend.h. */
static uint32_t htpw_layout_index(const struct htpw_layout *layout, uint32_t steps, uint32_t o, uint32_t i) {
    const uint32_t ob = layout->out_block, ib = layout->in_block;
    return ((o / ob * steps + i / ib) * ob + o % ob) * ib + i % ib;
}

/* Elements of the filled-up matrix. */
static uint32_t htpw_layout_elements(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c) {
    return htpw_blocks(out_c, layout->out_block) * layout->out_block * htpw_blocks(in_c, layout->in_block) *
           layout->in_block;
}

static uint32_t htpw_layout_weight_bytes(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c) {
    return (htpw_layout_elements(layout, out_c, in_c) * layout->bytes + 3u) & ~UINT32_C(3);
}

uint32_t htpw_layout_bytes(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c) {
    if (!HTPW_ANY_BLOCKS) {
        return (out_c * in_c + 3u) & ~UINT32_C(3);
    }
    const uint32_t sums = layout->sums ? 4u * htpw_blocks(out_c, layout->out_block) * layout->out_block : 0u;
    return htpw_layout_weight_bytes(layout, out_c, in_c) + sums;
}

HTPW_COLD void htpw_layout_clear(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c, void *packed) {
    if (!HTPW_ANY_BLOCKS || (out_c % layout->out_block == 0 && in_c % layout->in_block == 0)) {
        return; /* nothing fills up */
    }
    const uint32_t bytes = htpw_layout_weight_bytes(layout, out_c, in_c);
    for (uint32_t i = 0; i < bytes; i++) {
        ((uint8_t *)packed)[i] = 0;
    }
}

static void htpw_layout_put_one(const struct htpw_layout *layout, void *packed, uint32_t at, int8_t weight) {
    if (!HTPW_ANY_WIDE || layout->bytes == 1) {
        ((int8_t *)packed)[at] = weight;
    } else {
        ((int16_t *)packed)[at] = weight;
    }
}

/* n columns of row o from column i on, one by one. */
static HTPW_COLD void htpw_layout_put_apart(const struct htpw_layout *layout, uint32_t steps, uint32_t o, uint32_t i,
                                            uint32_t n, const int8_t *w, void *packed) {
    for (uint32_t k = 0; k < n; k++) {
        htpw_layout_put_one(layout, packed, htpw_layout_index(layout, steps, o, i + k), w[k]);
    }
}

struct htpw_four { /* copied as a whole, which compilers do with one word where the core can */
    int8_t byte[4];
};

/* `n` columns of one row from column i on, a multiple of in_block; n is too. row: element of column 0 of the row. */
static void htpw_layout_put_steps(const struct htpw_layout *layout, uint32_t row, uint32_t i, uint32_t n,
                                  const int8_t *w, void *packed) {
    const uint32_t ib = layout->in_block, stride = layout->out_block * ib;
    uint32_t at = row + i * layout->out_block;
    if (layout->bytes == 2 && ib == 2) {
        for (uint32_t k = 0; k < n; k += 2u, at += stride) {
            ((int16_t *)packed)[at] = w[k];
            ((int16_t *)packed)[at + 1u] = w[k + 1u];
        }
    } else if (layout->bytes == 1 && ib == 4) {
        for (uint32_t k = 0; k < n; k += 4u, at += stride) {
            *(struct htpw_four *)(void *)((int8_t *)packed + at) = *(const struct htpw_four *)(const void *)(w + k);
        }
    } else {
        for (uint32_t k = 0; k < n; k++) {
            htpw_layout_put_one(layout, packed, at + k / ib * stride + k % ib, w[k]);
        }
    }
}

HTPW_COLD void htpw_layout_put(const struct htpw_layout *layout, uint32_t in_c, uint32_t first, uint32_t count,
                               const int8_t *w, void *packed) {
    if (!HTPW_ANY_BLOCKS) {
        for (uint32_t i = 0; i < count; i++) {
            ((int8_t *)packed)[first + i] = w[i];
        }
        return;
    }
    if (!HTPW_WITH(UNROLL)) {
        for (uint32_t k = 0; k < count; k++) {
            const uint32_t o = (first + k) / in_c, i = (first + k) % in_c;
            htpw_layout_put_one(layout, packed, htpw_layout_index(layout, htpw_blocks(in_c, layout->in_block), o, i),
                                w[k]);
        }
        return;
    }
    const uint32_t ib = layout->in_block, ob = layout->out_block, steps = htpw_blocks(in_c, ib);
    uint32_t o = first / in_c, i = first % in_c, row = htpw_layout_index(layout, steps, o, 0);
    uint32_t left_of_block = ob - o % ob; /* rows, this one included */
#if defined(HTPW_HAS_ARMV7EM_DSP) && HTPW_ANY_WIDE
    if (layout->bytes == 2 && ob == 4 && ib == 2 && i == 0 && in_c % 4u == 0 && count % in_c == 0) {
        htpw_dsp_put_rows(o, in_c, count / in_c, w, packed);
        return;
    }
#endif
#ifdef HTPW_HAS_ARMV81M_MVE
    if (ob == 4 && ib == 16 && steps == 1 && i == 0) { /* whole rows of one vector each */
        htpw_mve_put_rows(in_c, count, w, (int8_t *)packed + row);
        return;
    }
#endif
    const int fits = in_c % ib == 0 && i % ib == 0 && count % ib == 0; /* the usual case */
    for (uint32_t n; count > 0; count -= n, w += n) {
        n = in_c - i < count ? in_c - i : count;
        if (fits) {
            htpw_layout_put_steps(layout, row, i, n, w, packed);
        } else { /* whole steps at once, what stands before and behind them one by one */
            const uint32_t front = (ib - i % ib) % ib, before = front > n ? n : front;
            const uint32_t whole = (n - before) / ib * ib;
            htpw_layout_put_apart(layout, steps, o, i, before, w, packed);
            htpw_layout_put_steps(layout, row, i + before, whole, w + before, packed);
            htpw_layout_put_apart(layout, steps, o, i + before + whole, n - before - whole, w + before + whole, packed);
        }
        i = 0;
        o++;
        row += ib;
        if (--left_of_block == 0) {
            left_of_block = ob;
            row += (steps - 1u) * ob * ib;
        }
    }
}

static int32_t htpw_layout_weight(const struct htpw_layout *layout, const void *packed, uint32_t at) {
    return layout->bytes == 1 ? ((const int8_t *)packed)[at] : ((const int16_t *)packed)[at];
}

void htpw_layout_finish(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c, void *packed) {
    if (!HTPW_ANY_SUMS || !layout->sums) {
        return;
    }
    const uint32_t steps = htpw_blocks(in_c, layout->in_block);
    const uint32_t rows = htpw_blocks(out_c, layout->out_block) * layout->out_block;
    int32_t *sums = (int32_t *)(void *)((uint8_t *)packed + htpw_layout_weight_bytes(layout, out_c, in_c));
#ifdef HTPW_HAS_ARMV81M_MVE
    if (layout->out_block == 4 &&
        layout->in_block == 16) { /* its own layout, for which a loop over weights is too slow */
        htpw_mve_row_sums(rows / 4u, steps, (const int8_t *)packed, sums);
        return;
    }
#endif
    for (uint32_t o = 0; o < rows; o++) {
        int32_t sum = 0;
        for (uint32_t i = 0; i < in_c; i++) {
            sum += htpw_layout_weight(layout, packed, htpw_layout_index(layout, steps, o, i));
        }
        sums[o] = sum;
    }
}

HTPW_COLD void htpw_layout_get(const struct htpw_layout *layout, uint32_t out_c, uint32_t in_c, const void *packed,
                               int8_t *w) {
    const uint32_t steps = htpw_blocks(in_c, layout->in_block);
    for (uint32_t o = 0; o < out_c; o++) {
        for (uint32_t i = 0; i < in_c; i++) {
            *w++ = (int8_t)htpw_layout_weight(layout, packed, htpw_layout_index(layout, steps, o, i));
        }
    }
}
