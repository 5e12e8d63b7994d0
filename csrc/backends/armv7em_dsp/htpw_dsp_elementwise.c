/* htpw_dsp_elementwise.c - add and the pools of the Armv7E-M backend: four elements in a word. */
#include "../../kernels/htpw_requantise.h"
#include "../../kernels/htpw_window.h"
#include "htpw_dsp.h"

#ifdef HTPW_HAS_ARMV7EM_DSP

/* One input of an addition. */
struct htpw_dsp_term {
    int32_t multiplier, rounding, right, left;
    uint32_t offset; /* in each half */
};

/* rq of one widened value: steps 1 to 3 of the proof in htpw_dsp.h with zp_out = 0. With R = 0 nothing is rounded a second
 * time, so there is nothing to take off for negative values either. |x| <= 255 and left <= 22: the doubled value fits. */
HTPW_DSP_INLINE int32_t htpw_dsp_term(const int rounds, int32_t x, const struct htpw_dsp_term *t) {
    const int32_t v2 = (int32_t)((uint32_t)x << t->left);
    if (!HTPW_WITH(UNROLL)) { /* one loop for all: what is taken off is masked */
        return (htpw_smmlar(v2, t->multiplier, t->rounding) + ((v2 >> 31) & -(t->right != 0))) >> t->right;
    }
    return rounds ? (htpw_smmlar(v2, t->multiplier, t->rounding) + (v2 >> 31)) >> t->right
                  : htpw_smmulr(v2, t->multiplier);
}

/* Adds four terms to v. Compilers that mix the terms of both inputs run out of registers, so the values are tied down. */
HTPW_DSP_INLINE void htpw_dsp_terms(const int rounds, const int8_t *x, const struct htpw_dsp_term *t, int32_t v[4]) {
    const uint32_t four = htpw_dsp_load(x);
    const uint32_t even = htpw_sxtab16(t->offset, four), odd = htpw_sxtab16_ror8(t->offset, four);
    v[0] += htpw_dsp_term(rounds, (int16_t)even, t);
    v[1] += htpw_dsp_term(rounds, (int16_t)odd, t);
    v[2] += htpw_dsp_term(rounds, (int32_t)even >> 16, t);
    v[3] += htpw_dsp_term(rounds, (int32_t)odd >> 16, t);
    __asm__ volatile("" : "+r"(v[0]), "+r"(v[1]), "+r"(v[2]), "+r"(v[3]) : : "memory");
}

struct htpw_dsp_sum {
    struct htpw_dsp_term a, b;
    int32_t multiplier, rounding, right;
    struct htpw_dsp_output clamp;
};

static struct htpw_dsp_term htpw_dsp_term_of(int32_t offset, int32_t multiplier, int32_t shift, int32_t left_shift) {
    const struct htpw_dsp_term t = {multiplier, shift < 0 ? (int32_t)(UINT32_C(1) << (-shift - 1)) : 0, -shift,
                                    left_shift + 1, (uint16_t)offset * UINT32_C(0x10001)};
    return t;
}

/* n elements, a multiple of four. */
HTPW_DSP_INLINE void htpw_dsp_sums(const int a_rounds, const int b_rounds, size_t n, const struct htpw_dsp_sum *s,
                                   const int8_t *a, const int8_t *b, int8_t *y) {
    for (const int8_t *end = a + n; a != end; a += 4, b += 4, y += 4) {
        int32_t v[4] = {0, 0, 0, 0};
        htpw_dsp_terms(a_rounds, a, &s->a, v);
        htpw_dsp_terms(b_rounds, b, &s->b, v);
        const int32_t m = s->multiplier, rounding = s->rounding, right = s->right;
        const int32_t r0 = htpw_dsp_quick(2 * v[0], m, rounding, right);
        const int32_t r1 = htpw_dsp_quick(2 * v[1], m, rounding, right);
        const int32_t r2 = htpw_dsp_quick(2 * v[2], m, rounding, right);
        const int32_t r3 = htpw_dsp_quick(2 * v[3], m, rounding, right);
        htpw_dsp_store(y, htpw_dsp_clamp4(htpw_pack4(r0, r1, r2, r3), &s->clamp));
    }
}

void htpw_add_s8_dsp(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y) {
    const int32_t right = -p->out_shift;
    const size_t whole = n & ~(size_t)3;
    /* 255 << 21 < 2^29, so the sum of two terms is below 2^30 and may be doubled */
    if (HTPW_WITH(ODD) && (p->a_shift > 0 || p->b_shift > 0 || p->left_shift > 21 || right < 1 || right > HTPW_DSP_QUICK_MAX)) {
        htpw_add_s8_ref(n, p, a, b, y);
        return;
    }
    const struct htpw_dsp_sum s = {
        htpw_dsp_term_of(p->a_offset, p->a_multiplier, p->a_shift, p->left_shift),
        htpw_dsp_term_of(p->b_offset, p->b_multiplier, p->b_shift, p->left_shift),
        p->out_multiplier,
        (int32_t)((uint32_t)(2 * p->out_offset + 1) << (right - 1)),
        right,
        {NULL, (uint8_t)p->act_min * UINT32_C(0x01010101), (uint8_t)p->act_max * UINT32_C(0x01010101), 1,
         p->act_min == -128 && p->act_max == 127}};
    /* The input of larger scale usually has no second rounding. */
    if (!HTPW_WITH(UNROLL)) {
        htpw_dsp_sums(1, 1, whole, &s, a, b, y);
    } else if (p->a_shift == 0 && p->b_shift == 0) {
        htpw_dsp_sums(0, 0, whole, &s, a, b, y);
    } else if (p->a_shift == 0) {
        htpw_dsp_sums(0, 1, whole, &s, a, b, y);
    } else if (p->b_shift == 0) {
        const struct htpw_dsp_sum swapped = {s.b, s.a, s.multiplier, s.rounding, s.right, s.clamp};
        htpw_dsp_sums(0, 1, whole, &swapped, b, a, y);
    } else {
        htpw_dsp_sums(1, 1, whole, &s, a, b, y);
    }
    if (HTPW_WITH(ODD)) {
        htpw_add_s8_ref(n - whole, p, a + whole, b + whole, y + whole);
    }
}

/* The cells of a pooling window, cut to the input. */
struct htpw_dsp_cells {
    const int8_t *x; /* channel 0 of the first */
    int32_t rows, columns;
    size_t step, pitch; /* bytes to the next cell of the row, to the next row */
};

#define HTPW_DSP_HALF_SUMS 255 /* that many int8 always fit 16 bits: 255 * 128 < 2^15 */

/* Sums of four channels over n neighbouring cells, at most HTPW_DSP_HALF_SUMS, in halves: channels 0 2 and 1 3. */
struct htpw_dsp_pair {
    uint32_t even, odd;
};

HTPW_DSP_INLINE void htpw_dsp_pair_add(struct htpw_dsp_pair *sum, const int8_t *x) {
    const uint32_t four = htpw_dsp_load(x);
    sum->even = htpw_sxtab16(sum->even, four);
    sum->odd = htpw_sxtab16_ror8(sum->odd, four);
}

HTPW_DSP_INLINE struct htpw_dsp_pair htpw_dsp_strip(const int8_t *x, size_t step, int32_t n) {
    struct htpw_dsp_pair sum = {0, 0};
    for (n -= 4; HTPW_WITH(UNROLL) && n >= 0; n -= 4, x += 4 * step) {
        htpw_dsp_pair_add(&sum, x);
        htpw_dsp_pair_add(&sum, x + step);
        htpw_dsp_pair_add(&sum, x + 2 * step);
        htpw_dsp_pair_add(&sum, x + 3 * step);
    }
    for (n += 4; n > 0; n--, x += step) {
        htpw_dsp_pair_add(&sum, x);
    }
    return sum;
}

/* sum / cells to nearest, ties away from zero; where the sum is 0 either sign of half gives 0. */
HTPW_DSP_INLINE int32_t htpw_dsp_mean(int32_t sum, int32_t cells, int32_t half) {
    return (sum + (half ^ (sum >> 31)) - (sum >> 31)) / cells;
}

HTPW_DSP_INLINE uint32_t htpw_dsp_means(const int32_t total[4], int32_t cells) {
    const int32_t half = cells / 2;
    return htpw_pack4(htpw_dsp_mean(total[0], cells, half), htpw_dsp_mean(total[1], cells, half),
                      htpw_dsp_mean(total[2], cells, half), htpw_dsp_mean(total[3], cells, half));
}

/* The mean over one row of cells. A function of its own, since compilers spill its sums between those of the loops around. */
static __attribute__((noinline)) uint32_t htpw_dsp_mean_line(const int8_t *x, size_t step, int32_t cells) {
    const struct htpw_dsp_pair sum = htpw_dsp_strip(x, step, cells);
    const int32_t total[4] = {(int16_t)sum.even, (int16_t)sum.odd, (int32_t)sum.even >> 16, (int32_t)sum.odd >> 16};
    return htpw_dsp_means(total, cells);
}

/* Mean or maximum of four channels. */
HTPW_COLD static uint32_t htpw_dsp_mean_many(const struct htpw_dsp_cells *c, int32_t o) {
    int32_t total[4] = {0, 0, 0, 0};
    for (int32_t row = 0; row < c->rows; row++) {
        const int8_t *x = c->x + (size_t)row * c->pitch + (size_t)o;
        for (int32_t left = c->columns, n; left > 0; left -= n, x += (size_t)n * c->step) {
            n = left < HTPW_DSP_HALF_SUMS ? left : HTPW_DSP_HALF_SUMS;
            const struct htpw_dsp_pair sum = htpw_dsp_strip(x, c->step, n);
            total[0] += (int16_t)sum.even;
            total[1] += (int16_t)sum.odd;
            total[2] += (int32_t)sum.even >> 16;
            total[3] += (int32_t)sum.odd >> 16;
        }
    }
    return htpw_dsp_means(total, c->rows * c->columns);
}

static uint32_t htpw_dsp_mean4(const struct htpw_dsp_cells *c, int32_t o) {
    return c->rows == 1 && c->columns <= HTPW_DSP_HALF_SUMS ? htpw_dsp_mean_line(c->x + o, c->step, c->columns)
                                                            : htpw_dsp_mean_many(c, o);
}

static uint32_t htpw_dsp_max4(const struct htpw_dsp_cells *c, int32_t o) {
    uint32_t top = UINT32_C(0x80808080);
    for (int32_t row = 0; row < c->rows; row++) {
        const int8_t *x = c->x + (size_t)row * c->pitch + (size_t)o;
        for (int32_t n = c->columns; n > 0; n--, x += c->step) {
            top = htpw_max4(top, htpw_dsp_load(x));
        }
    }
    return top;
}

#if HTPW_WITH(UNROLL)
#define HTPW_DSP_POOL HTPW_DSP_INLINE
#else
#define HTPW_DSP_POOL HTPW_DSP_SHORT static
#endif

/* All windows; g->in_c >= 4. */
HTPW_DSP_POOL void htpw_dsp_pool(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x,
                                   int8_t *y, uint32_t (*reduce)(const struct htpw_dsp_cells *c, int32_t o)) {
    const struct htpw_dsp_output k = {NULL, (uint8_t)act_min * UINT32_C(0x01010101),
                                      (uint8_t)act_max * UINT32_C(0x01010101), 1, act_min == -128 && act_max == 127};
    for (int32_t n = 0; n < HTPW_ROWS(g->n); n++, x += htpw_cell(1, 0, 0, g->in_h, g->in_w, g->in_c)) {
        for (int32_t oy = 0; oy < HTPW_ROWS(g->out_h); oy++) {
            for (int32_t ox = 0; ox < g->out_w; ox++, y += g->in_c) {
                const int32_t y0 = oy * g->stride_h - g->pad_top, x0 = ox * g->stride_w - g->pad_left;
                const struct htpw_taps ty = htpw_clip_rows(y0, g->k_h, 1, g->in_h), tx = htpw_clip(x0, g->k_w, 1, g->in_w);
                const struct htpw_dsp_cells c = {
                    x + htpw_cell(0, y0 + ty.first, x0 + tx.first, 0, g->in_w, g->in_c), ty.end - ty.first,
                    tx.end - tx.first, (size_t)g->in_c, (size_t)g->in_w * (size_t)g->in_c};
                for (int32_t o = 0; o < g->in_c; o += 4) {
                    o = o <= g->in_c - 4 ? o : g->in_c - 4; /* some channels are made a second time, to the same values */
                    htpw_dsp_store(y + o, htpw_dsp_clamp4(reduce(&c, o), &k));
                }
            }
        }
    }
}

void htpw_avgpool_s8_dsp(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y) {
    if (HTPW_WITH(ODD) && g->in_c < 4) {
        htpw_avgpool_s8_ref(g, act_min, act_max, x, y);
    } else {
        htpw_dsp_pool(g, act_min, act_max, x, y, htpw_dsp_mean4);
    }
}

void htpw_maxpool_s8_dsp(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y) {
    if (HTPW_WITH(ODD) && g->in_c < 4) {
        htpw_maxpool_s8_ref(g, act_min, act_max, x, y);
    } else {
        htpw_dsp_pool(g, act_min, act_max, x, y, htpw_dsp_max4);
    }
}

#endif
