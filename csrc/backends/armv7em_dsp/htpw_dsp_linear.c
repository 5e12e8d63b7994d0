/* htpw_dsp_linear.c - conv, conv1x1 and packed of the Armv7E-M backend: two rows of x at a time.
 *
 * Two rows are widened into scratch once, doubled and with the input offset added, and then meet the weights of four
 * outputs at a time. So no sum of weights is needed to fold the offset, and a weight is widened once for two products.
 */
#include "../../kernels/htpw_requantise.h"
#include "../../kernels/htpw_window.h"
#include "htpw_dsp.h"

#ifdef HTPW_HAS_ARMV7EM_DSP

int8_t htpw_dsp_output_any(const struct htpw_requant *q, int32_t o, int32_t v2) {
    const int32_t i = q->per_channel ? o : 0, shift = q->shift[i];
    /* |v| * 2^L < 2^30, so the doubled value can be shifted too, and the upper half of the product is step 2 */
    const int32_t h = htpw_smmulr((int32_t)((uint32_t)v2 << (shift > 0 ? shift : 0)), q->multiplier[i]);
    const int32_t r = htpw_round_shift(h, shift > 0 ? 0 : -shift);
    return (int8_t)htpw_clamp(r + q->out_offset, q->act_min, q->act_max);
}

HTPW_DSP_SHORT void htpw_dsp_output_start(struct htpw_dsp_output *k, const struct htpw_requant *q, int32_t channels) {
    k->q = q;
    k->low = (uint8_t)q->act_min * UINT32_C(0x01010101);
    k->high = (uint8_t)q->act_max * UINT32_C(0x01010101);
    k->is_full = q->act_min == -128 && q->act_max == 127;
    const int32_t n = q->per_channel ? channels : 1;
    uint32_t any = 0, worst = 0;
    for (int32_t i = 0; i < n; i++) {
        any |= ~(uint32_t)q->shift[i]; /* R - 1, or far above everything for R < 1 */
    }
    for (int32_t i = 0; i < n && any >= 16u; i++) { /* a bit of 16 or above: no longer clear how large the largest is */
        worst = ~(uint32_t)q->shift[i] > worst ? ~(uint32_t)q->shift[i] : worst;
    }
    k->is_quick = worst < HTPW_DSP_QUICK_MAX;
}

/* Four columns of one row of x, widened. */
struct htpw_dsp_quad {
    uint32_t first, second; /* columns 0 2 and 1 3; wide: 0 1 and 2 3 */
};

HTPW_DSP_INLINE struct htpw_dsp_quad htpw_dsp_widen4(uint32_t x, uint32_t offset2, const int is_wide) {
    const uint32_t even = htpw_sxtab16(htpw_sxtab16(offset2, x), x); /* twice x, added one by one */
    const uint32_t odd = htpw_sxtab16_ror8(htpw_sxtab16_ror8(offset2, x), x);
    struct htpw_dsp_quad r = {even, odd};
    if (is_wide) {
        r.first = htpw_pkhbt(even, odd);
        r.second = htpw_pkhtb(even, odd);
    }
    return r;
}

/* The last n = 1..3 columns of a row as a word in which the zero point, which widens to 0, fills up: behind them for packed
 * weights, which are filled up as well; in front of them for row-major ones, of which the last four are then loaded, so that
 * nothing behind the row is read. */
static uint32_t htpw_dsp_last(const int8_t *x, int32_t n, int32_t in_offset, const int in_front) {
    const uint32_t fill = (uint8_t)-in_offset * UINT32_C(0x01010101);
    uint32_t word = fill;
    for (int32_t i = n; i-- > 0;) {
        word = (word << 8) | (uint8_t)x[i];
    }
    return in_front ? (word << (32 - 8 * n)) | (fill >> (8 * n)) : word;
}

enum htpw_dsp_weights { HTPW_DSP_ROWS, HTPW_DSP_PACKED, HTPW_DSP_WIDE };

/* Widens `rows` rows of n columns at x and x + pitch into scratch, filled up to a multiple of four columns. `step` bytes lie
 * between groups of four columns. Scratch may be x itself if they lie where the first word of their row will be. */
HTPW_DSP_INLINE void htpw_dsp_widen(const int rows, const enum htpw_dsp_weights kind, int32_t n, int32_t in_offset,
                                    const int8_t *x, size_t pitch, size_t step, uint32_t *to) {
    const uint32_t offset2 = (uint16_t)(2 * in_offset) * UINT32_C(0x10001);
    const int is_wide = kind == HTPW_DSP_WIDE, in_front = kind == HTPW_DSP_ROWS;
    int32_t left = n;
    for (; left >= 4; left -= 4, x += step, to += 2 * rows) {
        const struct htpw_dsp_quad a = htpw_dsp_widen4(htpw_dsp_load(x), offset2, is_wide);
        if (rows == 1) {
            to[0] = a.first;
            to[1] = a.second;
        } else {
            const struct htpw_dsp_quad b = htpw_dsp_widen4(htpw_dsp_load(x + pitch), offset2, is_wide);
            to[0] = a.first;
            to[1] = b.first;
            to[2] = a.second;
            to[3] = b.second;
        }
    }
    for (int32_t row = 0; left > 0 && row < rows; row++) {
        const uint32_t last = htpw_dsp_last(x + (size_t)row * pitch, left, in_offset, in_front);
        const struct htpw_dsp_quad a = htpw_dsp_widen4(last, offset2, is_wide);
        to[row] = a.first;
        to[row + rows] = a.second;
    }
}

/* Eight columns of one row for 4-bit weights: columns k and k + 4 in word k, words `rows` apart. */
HTPW_DSP_INLINE void htpw_dsp_widen8(const int rows, const int8_t *x, uint32_t offset, uint32_t *to) {
    const uint32_t a = htpw_dsp_load(x), b = htpw_dsp_load(x + 4);
    const uint32_t even_a = htpw_sxtab16(offset, a), odd_a = htpw_sxtab16_ror8(offset, a);
    const uint32_t even_b = htpw_sxtab16(offset, b), odd_b = htpw_sxtab16_ror8(offset, b);
    to[0] = htpw_pkhbt(even_a, even_b);
    to[rows] = htpw_pkhbt(odd_a, odd_b);
    to[2 * rows] = htpw_pkhtb(even_a, even_b);
    to[3 * rows] = htpw_pkhtb(odd_a, odd_b);
}

/* As htpw_dsp_widen for 4-bit weights. The last columns stand behind what fills up eight, as those of row-major weights do. */
HTPW_DSP_INLINE void htpw_dsp_widen_s4(const int rows, int32_t n, int32_t in_offset, const int8_t *x, size_t pitch,
                                       uint32_t *to) {
    const uint32_t offset = (uint16_t)in_offset * UINT32_C(0x10001);
    int32_t left = n;
    for (; left >= 8; left -= 8, x += 8, to += 4 * rows) {
        htpw_dsp_widen8(rows, x, offset, to);
        if (rows == 2) {
            htpw_dsp_widen8(rows, x + pitch, offset, to + 1);
        }
    }
    for (int32_t row = 0; left > 0 && row < rows; row++) {
        int8_t last[8];
        for (int32_t i = 0; i < 8; i++) {
            last[i] = i < 8 - left ? (int8_t)-in_offset : x[(size_t)row * pitch + (size_t)(i - 8 + left)];
        }
        htpw_dsp_widen8(rows, last, offset, to + row);
    }
}

/* A matrix product: what stays the same for all its rows. */
struct htpw_dsp_product {
    struct htpw_dsp_output out;
    struct htpw_dsp_job job;
    enum htpw_dsp_weights kind;
    int32_t in_c, out_c, in_offset;
    uint32_t *x; /* scratch */
};

HTPW_DSP_SHORT static void htpw_dsp_product_start(struct htpw_dsp_product *p, enum htpw_dsp_weights kind, int32_t in_c,
                                                  int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                                                  const int8_t *w, const int32_t *bias, void *scratch) {
    struct htpw_dsp_job *job = &p->job;
    const uint32_t columns = (uint32_t)in_c;
    htpw_dsp_output_start(&p->out, q, out_c);
    p->kind = kind;
    p->in_c = in_c;
    p->out_c = out_c;
    p->in_offset = in_offset;
    p->x = (uint32_t *)scratch;
    job->x = p->x;
    if (HTPW_ANY_WIDE && kind == HTPW_DSP_WIDE) { /* steps of two columns, two words; unrolled by four */
        job->steps = (columns + 1u) / 2u;
        job->x_middle = p->x + 2u * (job->steps & ~UINT32_C(3));
        job->x_end = p->x + 2u * job->steps;
    } else { /* steps of four columns, four words; unrolled by two */
        job->steps = kind == HTPW_DSP_ROWS ? columns / 4u : (columns + 3u) / 4u;
        job->x_middle = p->x + 4u * (job->steps & ~UINT32_C(1));
        job->x_end = p->x + 4u * job->steps;
    }
    job->w = w;
    job->bias = bias;
    if (q->per_channel) {
        job->scale[0] = (uintptr_t)q->multiplier;
        job->scale[1] = (uintptr_t)q->shift - (uintptr_t)q->multiplier;
        job->scale[2] = (uintptr_t)(2 * q->out_offset + 1);
    } else {
        job->scale[0] = (uintptr_t)q->multiplier[0];
        job->scale[1] = p->out.is_quick ? (uintptr_t)htpw_dsp_rounding(q, -q->shift[0]) : 0u;
        job->scale[2] = (uintptr_t)-q->shift[0];
    }
    job->out_c = out_c;
    job->clamps = p->out.is_full ? 0 : q->act_max == 127 ? 1 : 2;
    job->low = p->out.low;
    job->high = p->out.high;
    job->pitch = columns;
    job->back = columns % 4u != 0 ? 4u - columns % 4u : 0u;
    job->unused = 0;
}

/* 4-bit weights are row-major ones with routines of their own. That is a constant of the functions below, not a kind, so that
 * others do not pay for asking. */

/* Without routines for one row it goes as a pair of the same row twice, written to the same place. */
#define HTPW_DSP_IS_PAIR(rows) (!HTPW_WITH(UNROLL) || (rows) == 2)

HTPW_DSP_INLINE void htpw_dsp_run(const int is_s4, const struct htpw_dsp_job *job, enum htpw_dsp_weights kind,
                                  int32_t rows) {
    if (is_s4) {
        (HTPW_DSP_IS_PAIR(rows) ? htpw_dsp_s4_2 : htpw_dsp_s4_1)(job);
    } else if (kind == HTPW_DSP_ROWS) {
        (HTPW_DSP_IS_PAIR(rows) ? htpw_dsp_rows2 : htpw_dsp_rows1)(job);
    } else if (!HTPW_ANY_WIDE || kind == HTPW_DSP_PACKED) {
        (HTPW_DSP_IS_PAIR(rows) ? htpw_dsp_packed2 : htpw_dsp_packed1)(job);
    } else {
        (HTPW_DSP_IS_PAIR(rows) ? htpw_dsp_wide2 : htpw_dsp_wide1)(job);
    }
}

/* Outputs o .. o + count - 1, at most four, of one or two rows, by way of their sums. */
HTPW_DSP_INLINE void htpw_dsp_slowly_as(const int is_s4, const struct htpw_dsp_product *p, int32_t rows, int32_t o,
                                        int32_t count, int8_t *y) {
    int32_t sum[8], bias[4] = {0, 0, 0, 0};
    struct htpw_dsp_job job = p->job;
    job.w += (size_t)o * (p->kind == HTPW_DSP_ROWS ? job.pitch : 4u * job.steps);
    for (int32_t j = 0; j < count && p->job.bias != NULL; j++) {
        bias[j] = p->job.bias[o + j];
    }
    if (p->kind == HTPW_DSP_ROWS && count < 4) {
        job.pitch = 0; /* fewer than four rows: the first one four times */
    }
    job.bias = bias; /* four of them, also where the layer has fewer left */
    job.sum = sum;
    job.finish = HTPW_DSP_IS_PAIR(rows) ? htpw_dsp_store2 : htpw_dsp_store1;
    htpw_dsp_run(is_s4, &job, p->kind, rows);
    for (int32_t row = 0; row < rows; row++, y += p->out_c) {
        for (int32_t j = 0; j < count; j++) {
            y[o + j] = htpw_dsp_output_any(p->out.q, o + j, sum[4 * row + j]);
        }
    }
}

static HTPW_COLD void htpw_dsp_slowly(const struct htpw_dsp_product *p, int32_t rows, int32_t o, int32_t count,
                                      int8_t *y) {
    htpw_dsp_slowly_as(0, p, rows, o, count, y);
}

static HTPW_COLD void htpw_dsp_slowly_s4(const struct htpw_dsp_product *p, int32_t rows, int32_t o, int32_t count,
                                         int8_t *y) {
    htpw_dsp_slowly_as(1, p, rows, o, count, y);
}

/* All outputs of one or two widened rows. y: the first row's. Row-major weights: in_c >= 4. */
HTPW_DSP_INLINE void htpw_dsp_rows_as(const int is_s4, struct htpw_dsp_product *p, int32_t rows, int8_t *y) {
    void (*const slowly)(const struct htpw_dsp_product *, int32_t, int32_t, int32_t, int8_t *) =
        is_s4 ? htpw_dsp_slowly_s4 : htpw_dsp_slowly;
    int32_t o = 0;
    if (p->out.is_quick && p->out_c >= 4) {
        o = p->out_c & ~3;
        p->job.y = y;
        p->job.y_end = y + o;
        p->job.out_c = HTPW_WITH(UNROLL) || rows == 2 ? p->out_c : 0;
        p->job.finish = p->out.q->per_channel    ? (HTPW_DSP_IS_PAIR(rows) ? htpw_dsp_channels2 : htpw_dsp_channels1)
                        : HTPW_DSP_IS_PAIR(rows) ? htpw_dsp_tensor2
                        : p->kind == HTPW_DSP_ROWS && !is_s4 ? NULL
                                                             : htpw_dsp_tensor1;
        htpw_dsp_run(is_s4, &p->job, p->kind, rows);
    }
    for (; o < p->out_c; o += 4) {
        if (o + 4 <= p->out_c) {
            slowly(p, rows, o, 4, y);
        } else if (p->kind == HTPW_DSP_ROWS && p->out_c < 4) {
            slowly(p, rows, o, 1, y);
            o -= 3;
        } else if (p->kind == HTPW_DSP_ROWS) {
            slowly(p, rows, p->out_c - 4, 4, y); /* some are made a second time, to the same values */
        } else {
            slowly(p, rows, o, p->out_c - o, y);
        }
    }
}

HTPW_DSP_ONCE void htpw_dsp_rows(struct htpw_dsp_product *p, int32_t rows, int8_t *y) {
    htpw_dsp_rows_as(0, p, rows, y);
}

/* Widens one or two rows of the product; x, pitch and step as in htpw_dsp_widen. Only conv has a step that is not 4. */
static void htpw_dsp_widen_rows(const struct htpw_dsp_product *p, int32_t rows, const int8_t *x, size_t pitch,
                                size_t step) {
    if (!HTPW_WITH(UNROLL) && rows == 1) {
        rows = 2;
        pitch = 0;
    }
    if (HTPW_ANY_WIDE && p->kind == HTPW_DSP_WIDE) {
        if (rows == 2) {
            htpw_dsp_widen(2, HTPW_DSP_WIDE, p->in_c, p->in_offset, x, pitch, 4, p->x);
        } else {
            htpw_dsp_widen(1, HTPW_DSP_WIDE, p->in_c, p->in_offset, x, pitch, 4, p->x);
        }
    } else if (rows == 2) {
        htpw_dsp_widen(2, p->kind, p->in_c, p->in_offset, x, pitch, step, p->x);
    } else {
        htpw_dsp_widen(1, p->kind, p->in_c, p->in_offset, x, pitch, step, p->x);
    }
}

/* Rows of x that lie one after another. */
HTPW_DSP_ONCE void htpw_dsp_matrix(enum htpw_dsp_weights kind, int32_t rows, int32_t in_c, int32_t out_c,
                                   const struct htpw_requant *q, int32_t in_offset, const int8_t *x, const int8_t *w,
                                   const int32_t *bias, void *scratch, int8_t *y) {
    struct htpw_dsp_product p;
    htpw_dsp_product_start(&p, kind, in_c, out_c, q, in_offset, w, bias, scratch);
    for (int32_t n; rows > 0; rows -= n, x += n * in_c, y += n * out_c) {
        n = rows >= 2 ? 2 : 1;
        htpw_dsp_widen_rows(&p, n, x, (size_t)in_c, 4);
        htpw_dsp_rows(&p, n, y);
    }
}

static void htpw_conv1x1_s8_dsp(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch,
                                int8_t *y) {
    if (HTPW_WITH(ODD) && in_c < 4) {
        htpw_conv1x1_s8_ref(rows, in_c, out_c, q, in_offset, x, w, bias, y);
    } else {
        htpw_dsp_matrix(HTPW_DSP_ROWS, rows, in_c, out_c, q, in_offset, x, w, bias, scratch, y);
    }
}

static void htpw_packed_s8_dsp(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                               int32_t in_offset, const int8_t *x, const void *packed, const int32_t *bias,
                               void *scratch, int8_t *y) {
    htpw_dsp_matrix(HTPW_DSP_PACKED, rows, in_c, out_c, q, in_offset, x, (const int8_t *)packed, bias, scratch, y);
}

#if HTPW_ANY_WIDE
static void htpw_packed_wide_s8_dsp(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                    int32_t in_offset, const int8_t *x, const void *packed, const int32_t *bias,
                                    void *scratch, int8_t *y) {
    htpw_dsp_matrix(HTPW_DSP_WIDE, rows, in_c, out_c, q, in_offset, x, (const int8_t *)packed, bias, scratch, y);
}
#endif

/* Rows of weights must begin with a byte and have a word. */
static void htpw_conv1x1_s4_dsp(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                int32_t in_offset, const int8_t *x, const uint8_t *w, const int32_t *bias,
                                void *scratch, int8_t *y) {
    struct htpw_dsp_product p;
    if (in_c % 2 != 0 || in_c < 8 || in_c > HTPW_DSP_S4_COLUMNS || out_c < 4) {
        htpw_conv1x1_s4_ref(rows, in_c, out_c, q, in_offset, x, w, bias, y);
        return;
    }
    htpw_dsp_product_start(&p, HTPW_DSP_ROWS, in_c, out_c, q, in_offset, (const int8_t *)w, bias, scratch);
    p.job.steps = (uint32_t)in_c / 8u;
    p.job.pitch = (uint32_t)in_c / 2u;
    p.job.back = in_c % 8 != 0 ? 4u - (uint32_t)in_c % 8u / 2u : 0u;
    for (int32_t n; rows > 0; rows -= n, x += n * in_c, y += n * out_c) {
        n = rows >= 2 ? 2 : 1;
        if (HTPW_DSP_IS_PAIR(n)) {
            htpw_dsp_widen_s4(2, in_c, in_offset, x, n == 2 ? (size_t)in_c : 0u, p.x);
        } else {
            htpw_dsp_widen_s4(1, in_c, in_offset, x, (size_t)in_c, p.x);
        }
        htpw_dsp_rows_as(1, &p, n, y);
    }
}

/* Convolution: each output cell is a row of the matrix product, whose x is the cell's window. */

/* Copies the window of a cell to where htpw_dsp_widen expects it within scratch: bytes 4i .. 4i + 3 at `to` + i * step,
 * the zero point in place of the padding. y0, x0: input position of tap (0, 0); x: the batch. */
HTPW_COLD static void htpw_dsp_gather(const struct htpw_window *g, int32_t in_offset, const int8_t *x, int32_t y0,
                                      int32_t x0, size_t step, int8_t *to) {
    size_t at = 0;
    for (int32_t ky = 0; ky < g->k_h; ky++) {
        const int32_t iy = y0 + ky * g->dil_h;
        for (int32_t kx = 0; kx < g->k_w; kx++) {
            const int32_t ix = x0 + kx * g->dil_w;
            const int is_inside = iy >= 0 && iy < g->in_h && ix >= 0 && ix < g->in_w;
            const int8_t *from = is_inside ? x + htpw_cell(0, iy, ix, 0, g->in_w, g->in_c) : NULL;
            for (int32_t i = 0; i < g->in_c; i++, at++) {
                to[at / 4u * step + at % 4u] = from != NULL ? from[i] : (int8_t)-in_offset;
            }
        }
    }
}

/* Where the window of output cell `cell`, counted through batches and rows, begins in x; NULL if it is not one stretch of
 * memory: then it is gathered to `to` if that is not NULL. */
HTPW_DSP_SHORT static const int8_t *htpw_dsp_window(const struct htpw_window *g, int32_t in_offset, const int8_t *x,
                                                    int32_t cell, size_t step, int8_t *to) {
    const int32_t ox = cell % g->out_w, row = cell / g->out_w, oy = row % g->out_h, n = row / g->out_h;
    const int32_t y0 = oy * g->stride_h - g->pad_top, x0 = ox * g->stride_w - g->pad_left;
    x += htpw_cell(n, 0, 0, g->in_h, g->in_w, g->in_c);
    if (to != NULL) {
        htpw_dsp_gather(g, in_offset, x, y0, x0, step, to);
        return NULL;
    }
    const int is_stretch = g->k_h == 1 && g->dil_w == 1 && y0 >= 0 && y0 < g->in_h && x0 >= 0 && x0 + g->k_w <= g->in_w;
    return is_stretch ? x + htpw_cell(0, y0, x0, 0, g->in_w, g->in_c) : NULL;
}

HTPW_DSP_SHORT static void htpw_conv_s8_dsp(const struct htpw_window *g, const struct htpw_requant *q,
                                            int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias,
                                            void *scratch, int8_t *y) {
    const int32_t products = g->k_h * g->k_w * g->in_c, cells = g->n * g->out_h * g->out_w;
    struct htpw_dsp_product p;
    if (HTPW_WITH(ODD) && (g->groups != 1 || products < 4)) {
        htpw_conv_s8_ref(g, q, in_offset, x, w, bias, y);
        return;
    }
    htpw_dsp_product_start(&p, HTPW_DSP_ROWS, products, g->out_c, q, in_offset, w, bias, scratch);
    for (int32_t cell = 0, rows; cell < cells; cell += rows, y += (size_t)rows * (size_t)g->out_c) {
        rows = cells - cell >= 2 ? 2 : 1;
        const int8_t *a = htpw_dsp_window(g, in_offset, x, cell, 0, NULL);
        const int8_t *b = rows == 2 ? htpw_dsp_window(g, in_offset, x, cell + 1, 0, NULL) : a;
        if (a != NULL && b != NULL) {
            htpw_dsp_widen_rows(&p, rows, a, (size_t)(b - a), 4);
        } else {
            const size_t step = HTPW_DSP_IS_PAIR(rows) ? 16u : 8u;
            for (int32_t row = 0; row < rows; row++) {
                (void)htpw_dsp_window(g, in_offset, x, cell + row, step, (int8_t *)(p.x + row));
            }
            htpw_dsp_widen_rows(&p, rows, (const int8_t *)p.x, 4, step);
        }
        htpw_dsp_rows(&p, rows, y);
    }
}

const struct htpw_backend htpw_backend_armv7em_dsp = {HTPW_BACKEND_ARMV7EM_DSP,
                                                      HTPW_IF(HTPW_WITH(CONV), htpw_conv_s8_dsp),
                                                      HTPW_IF(HTPW_WITH(DEPTHWISE), htpw_depthwise_s8_dsp),
                                                      HTPW_IF(HTPW_ANY_ROWS, htpw_conv1x1_s8_dsp),
                                                      HTPW_IF(HTPW_ANY_PACKED, htpw_packed_s8_dsp),
                                                      HTPW_IF(HTPW_WITH(ADD), htpw_add_s8_dsp),
                                                      HTPW_IF(HTPW_WITH(AVGPOOL), htpw_avgpool_s8_dsp),
                                                      HTPW_IF(HTPW_WITH(MAXPOOL), htpw_maxpool_s8_dsp),
                                                      HTPW_IF(HTPW_WITH(NARROW), htpw_conv1x1_s4_dsp),
                                                      NULL /* the wide one synthesises for both */};

#if HTPW_ANY_WIDE
const struct htpw_backend htpw_backend_armv7em_dsp_wide = {HTPW_BACKEND_ARMV7EM_DSP_WIDE,
                                                           HTPW_IF(HTPW_WITH(CONV), htpw_conv_s8_dsp),
                                                           HTPW_IF(HTPW_WITH(DEPTHWISE), htpw_depthwise_s8_dsp),
                                                           HTPW_IF(HTPW_ANY_ROWS, htpw_conv1x1_s8_dsp),
                                                           HTPW_IF(HTPW_ANY_PACKED, htpw_packed_wide_s8_dsp),
                                                           HTPW_IF(HTPW_WITH(ADD), htpw_add_s8_dsp),
                                                           HTPW_IF(HTPW_WITH(AVGPOOL), htpw_avgpool_s8_dsp),
                                                           HTPW_IF(HTPW_WITH(MAXPOOL), htpw_maxpool_s8_dsp),
                                                           HTPW_IF(HTPW_WITH(NARROW), htpw_conv1x1_s4_dsp),
                                                           HTPW_IF(HTPW_ANY_FUSED, htpw_dsp_synth_run)};
#endif

#endif
