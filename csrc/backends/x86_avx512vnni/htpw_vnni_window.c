/* htpw_vnni_window.c - depthwise convolution, element-wise sum and pools with AVX-512 VNNI. Words as in htpw_vnni.h. */
#include "htpw_vnni.h"

#ifdef HTPW_HAS_X86_AVX512VNNI

/* Depthwise: 16 channels of 4 taps make one step. */

/* Cells of one batch and block, and how to reach the taps of a window from its first. */
struct htpw_vnni_taps {
    int32_t count, steps;
    __mmask16 lanes;
    size_t inside[HTPW_VNNI_TAPS]; /* distances in x */
    size_t copied[HTPW_VNNI_TAPS]; /* distances in a copy of 16 channels, for windows that leave the input */
    int8_t weights[HTPW_VNNI_TAPS * 16] HTPW_VNNI_QUAD;
};

/* 16 channels of 4 taps, the taps of a channel side by side. All 16 are read if `full`, else those in `lanes`. */
HTPW_VNNI_INLINE __m512i htpw_vnni_interleave(const int8_t *x, const size_t at[4], __mmask16 lanes, const int full) {
    const __m512i words = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m128i v[4];
    for (int32_t j = 0; j < 4; j++) {
        v[j] = full ? _mm_loadu_si128((const void *)(x + at[j])) : _mm_maskz_loadu_epi8(lanes, x + at[j]);
    }
    const __m256i a = _mm256_inserti128_si256(_mm256_castsi128_si256(v[0]), v[1], 1);
    const __m256i b = _mm256_inserti128_si256(_mm256_castsi128_si256(v[2]), v[3], 1);
    const __m512i all = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(words, all), bytes);
}

HTPW_VNNI_INLINE __m512i htpw_vnni_depthwise_sum(const struct htpw_vnni_taps *t, const int8_t *x, const size_t *at,
                                                 __m512i sum, const int full) {
    for (int32_t i = 0; i < t->steps; i++) {
        const __m512i v = htpw_vnni_flip(htpw_vnni_interleave(x, at + 4 * i, t->lanes, full));
        sum = _mm512_dpbusd_epi32(sum, v, _mm512_load_si512(t->weights + 64 * i));
    }
    return sum;
}

/* The window at (y0, x0) of one block, with its padding. */
static HTPW_VNNI void htpw_vnni_window(const struct htpw_window *g, int32_t in_offset, const int8_t *x, int32_t y0,
                                       int32_t x0, __mmask16 lanes, int8_t *copy) {
    for (int32_t ky = 0; ky < g->k_h; ky++) {
        for (int32_t kx = 0; kx < g->k_w; kx++, copy += HTPW_VNNI_BLOCK) {
            const int32_t iy = y0 + ky * g->dil_h, ix = x0 + kx * g->dil_w;
            __m128i v = _mm_set1_epi8((int8_t)-in_offset);
            if (iy >= 0 && iy < g->in_h && ix >= 0 && ix < g->in_w) {
                v = _mm_maskz_loadu_epi8(lanes, x + htpw_cell(0, iy, ix, 0, g->in_w, g->in_c));
            }
            _mm_storeu_si128((void *)copy, v);
        }
    }
}

/* Up to 16 channels from o on. */
static HTPW_VNNI void htpw_vnni_depthwise(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                          const int8_t *x, const int8_t *w, const int32_t *bias, int32_t o,
                                          int32_t channels, int8_t *y) {
    const size_t step = (size_t)g->in_c;
    struct htpw_vnni_taps t;
    struct htpw_vnni_group u HTPW_VNNI_QUAD;
    int32_t sums[HTPW_VNNI_LANES] HTPW_VNNI_QUAD = {0};
    int8_t copy[HTPW_VNNI_TAPS * HTPW_VNNI_BLOCK];
    __m512i weight_sum = _mm512_setzero_si512();
    t.count = g->k_h * g->k_w;
    t.steps = (t.count + 3) / 4;
    t.lanes = htpw_vnni_mask16(channels);
    for (int32_t i = 0; i < 4 * t.steps; i++) { /* taps that fill up the last step repeat the last one; their weight is 0 */
        const int32_t tap = i < t.count ? i : t.count - 1;
        t.inside[i] = htpw_cell(0, tap / g->k_w * g->dil_h, tap % g->k_w * g->dil_w, 0, g->in_w, g->in_c);
        t.copied[i] = (size_t)tap * HTPW_VNNI_BLOCK;
        const __m128i v = i < t.count ? _mm_maskz_loadu_epi8(t.lanes, w + (size_t)i * step) : _mm_setzero_si128();
        _mm_storeu_si128((void *)(copy + i * HTPW_VNNI_BLOCK), v);
    }
    for (int32_t i = 0; i < t.steps; i++) {
        const size_t at[4] = {0, 16, 32, 48};
        const __m512i v = htpw_vnni_interleave(copy + 64 * i, at, 0xFFFF, 1);
        _mm512_store_si512(t.weights + 64 * i, v);
        weight_sum = _mm512_dpbusd_epi32(weight_sum, _mm512_set1_epi8(1), v);
    }
    _mm512_store_si512(sums, weight_sum);
    htpw_vnni_begin(&u, q, in_offset, t.count, bias, sums, o, channels, 1);

    const __m512i first = _mm512_load_si512(u.first);
    const int32_t reach_h = (g->k_h - 1) * g->dil_h, reach_w = (g->k_w - 1) * g->dil_w;
    int32_t filled = 0;
    for (int32_t n = 0; n < g->n; n++, x += htpw_cell(1, 0, 0, g->in_h, g->in_w, g->in_c)) {
        for (int32_t cell = 0, oy = 0, ox = 0; cell < g->out_h * g->out_w; cell++) {
            const int32_t y0 = oy * g->stride_h - g->pad_top, x0 = ox * g->stride_w - g->pad_left;
            __m512i sum;
            if (y0 < 0 || y0 + reach_h >= g->in_h || x0 < 0 || x0 + reach_w >= g->in_w) {
                htpw_vnni_window(g, in_offset, x, y0, x0, t.lanes, copy);
                sum = htpw_vnni_depthwise_sum(&t, copy, t.copied, first, 1);
            } else {
                const int8_t *at = x + htpw_cell(0, y0, x0, 0, g->in_w, g->in_c);
                sum = channels == HTPW_VNNI_BLOCK ? htpw_vnni_depthwise_sum(&t, at, t.inside, first, 1)
                                                  : htpw_vnni_depthwise_sum(&t, at, t.inside, first, 0);
            }
            _mm512_store_si512(sums + HTPW_VNNI_BLOCK * filled, sum);
            if (++filled == 4) {
                htpw_vnni_finish(&u, 4, sums, step, y);
                y += 4 * step;
                filled = 0;
            }
            if (++ox == g->out_w) {
                ox = 0;
                oy++;
            }
        }
    }
    htpw_vnni_finish(&u, filled, sums, step, y);
}

HTPW_VNNI void htpw_depthwise_s8_vnni(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                             const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch,
                                             int8_t *y) {
    (void)scratch;
    if (g->out_c != g->in_c || g->k_h > HTPW_VNNI_TAPS || g->k_w > HTPW_VNNI_TAPS || g->k_h * g->k_w > HTPW_VNNI_TAPS) {
        htpw_depthwise_s8_ref(g, q, in_offset, x, w, bias, y);
        return;
    }
    for (int32_t o = 0; o < g->in_c; o += HTPW_VNNI_BLOCK) {
        const int32_t left = g->in_c - o;
        const int32_t c = left < HTPW_VNNI_BLOCK && o > 0 ? g->in_c - HTPW_VNNI_BLOCK : o; /* the last block overlaps */
        const int32_t channels = left < HTPW_VNNI_BLOCK && o == 0 ? left : HTPW_VNNI_BLOCK;
        htpw_vnni_depthwise(g, q, in_offset, x + c, w + c, bias, c, channels, y + c);
    }
}

/* Element-wise sum and pools. */

/* A shift of `left` and a factor with shift <= 0. */
HTPW_VNNI_INLINE struct htpw_vnni_factor htpw_vnni_factor(int32_t left, int32_t multiplier, int32_t shift, const int narrow) {
    const __m512i m = _mm512_set1_epi32(multiplier), r = _mm512_set1_epi32(-shift);
    const struct htpw_vnni_factor f = {_mm512_set1_epi32(left + 2), m, htpw_vnni_low(m, r, narrow), htpw_vnni_round(r),
                                       _mm512_add_epi32(r, _mm512_set1_epi32(1))};
    return f;
}

HTPW_VNNI_INLINE void htpw_vnni_add(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y,
                                    const int narrow) {
    const struct htpw_vnni_factor fa = htpw_vnni_factor(p->left_shift, p->a_multiplier, p->a_shift, narrow);
    const struct htpw_vnni_factor fb = htpw_vnni_factor(p->left_shift, p->b_multiplier, p->b_shift, narrow);
    const struct htpw_vnni_factor fy = htpw_vnni_factor(0, p->out_multiplier, p->out_shift, narrow);
    const struct htpw_vnni_output t = htpw_vnni_output(p->out_offset, p->act_min, p->act_max);
    const __m512i offset_a = _mm512_set1_epi32(p->a_offset), offset_b = _mm512_set1_epi32(p->b_offset);
    for (size_t i = 0; i < n; i += 64) {
        const __mmask64 k = htpw_vnni_mask64(n - i < 64 ? (int32_t)(n - i) : 64);
        int8_t xa[64] HTPW_VNNI_QUAD, xb[64] HTPW_VNNI_QUAD;
        __m512i v[4];
        _mm512_store_si512(xa, _mm512_maskz_loadu_epi8(k, a + i));
        _mm512_store_si512(xb, _mm512_maskz_loadu_epi8(k, b + i));
        for (int32_t j = 0; j < 4; j++) {
            const __m512i va = _mm512_cvtepi8_epi32(_mm_load_si128((const void *)(xa + 16 * j)));
            const __m512i vb = _mm512_cvtepi8_epi32(_mm_load_si128((const void *)(xb + 16 * j)));
            const __m512i ra = htpw_vnni_scale(_mm512_add_epi32(va, offset_a), &fa, narrow);
            const __m512i rb = htpw_vnni_scale(_mm512_add_epi32(vb, offset_b), &fb, narrow);
            v[j] = htpw_vnni_scale(_mm512_add_epi32(ra, rb), &fy, narrow);
        }
        _mm512_mask_storeu_epi8(y + i, k, htpw_vnni_narrow(v, &t));
    }
}

HTPW_VNNI void htpw_add_s8_vnni(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b,
                                       int8_t *y) {
    const int32_t lowest = p->a_shift < p->b_shift ? p->a_shift : p->b_shift;
    const int32_t highest = p->a_shift > p->b_shift ? p->a_shift : p->b_shift;
    if (p->left_shift > 20 || highest > 0 || p->out_shift > 0 || lowest < -29 || p->out_shift < -29) {
        htpw_add_s8_ref(n, p, a, b, y); /* beyond 255 << 20 < 2^28 for each term the vector code is not proven */
    } else if (((p->a_multiplier | p->b_multiplier | p->out_multiplier) & 0xFFFF) == 0) {
        htpw_vnni_add(n, p, a, b, y, 1);
    } else {
        htpw_vnni_add(n, p, a, b, y, 0);
    }
}

/* The cells of a pooling window, cut to the input. */
struct htpw_vnni_cells {
    struct htpw_taps y, x;
    int32_t count;
};

static struct htpw_vnni_cells htpw_vnni_cells(const struct htpw_window *g, int32_t oy, int32_t ox) {
    const int32_t y0 = oy * g->stride_h - g->pad_top, x0 = ox * g->stride_w - g->pad_left;
    const struct htpw_taps ty = htpw_clip(y0, g->k_h, 1, g->in_h), tx = htpw_clip(x0, g->k_w, 1, g->in_w);
    const struct htpw_vnni_cells c = {
        {ty.first + y0, ty.end + y0}, {tx.first + x0, tx.end + x0}, (ty.end - ty.first) * (tx.end - tx.first)};
    return c;
}

static HTPW_VNNI void htpw_vnni_mean(const struct htpw_window *g, const struct htpw_vnni_cells *cells, int32_t act_min,
                                     int32_t act_max, const int8_t *x, int8_t *y) {
    for (int32_t c = 0; c < g->in_c; c += HTPW_VNNI_BLOCK) {
        const __mmask16 k = htpw_vnni_mask16(g->in_c - c);
        __m512i sum = _mm512_setzero_si512();
        int32_t sums[HTPW_VNNI_BLOCK];
        for (int32_t iy = cells->y.first; iy < cells->y.end; iy++) {
            const int8_t *at = x + htpw_cell(0, iy, cells->x.first, 0, g->in_w, g->in_c) + c;
            for (int32_t i = 0; i < cells->x.end - cells->x.first; i++) {
                const __m128i v = _mm_maskz_loadu_epi8(k, at + (size_t)i * (size_t)g->in_c);
                sum = _mm512_add_epi32(sum, _mm512_cvtepi8_epi32(v));
            }
        }
        _mm512_storeu_si512(sums, sum);
        for (int32_t j = 0; j < HTPW_VNNI_BLOCK && c + j < g->in_c; j++) {
            const int32_t half = cells->count / 2;
            y[c + j] = (int8_t)htpw_clamp((sums[j] > 0 ? sums[j] + half : sums[j] - half) / cells->count, act_min, act_max);
        }
    }
}

static HTPW_VNNI void htpw_vnni_top(const struct htpw_window *g, const struct htpw_vnni_cells *cells, int32_t act_min,
                                    int32_t act_max, const int8_t *x, int8_t *y) {
    for (int32_t c = 0; c < g->in_c; c += 64) {
        const __mmask64 k = htpw_vnni_mask64(g->in_c - c);
        __m512i top = _mm512_set1_epi8((int8_t)act_min);
        for (int32_t iy = cells->y.first; iy < cells->y.end; iy++) {
            const int8_t *at = x + htpw_cell(0, iy, cells->x.first, 0, g->in_w, g->in_c) + c;
            for (int32_t i = 0; i < cells->x.end - cells->x.first; i++) {
                top = _mm512_max_epi8(top, _mm512_maskz_loadu_epi8(k, at + (size_t)i * (size_t)g->in_c));
            }
        }
        _mm512_mask_storeu_epi8(y + c, k, _mm512_min_epi8(top, _mm512_set1_epi8((int8_t)act_max)));
    }
}

HTPW_VNNI_INLINE void htpw_vnni_pool(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x,
                                     int8_t *y, const int want_mean) {
    for (int32_t n = 0; n < g->n; n++, x += htpw_cell(1, 0, 0, g->in_h, g->in_w, g->in_c)) {
        for (int32_t oy = 0; oy < g->out_h; oy++) {
            for (int32_t ox = 0; ox < g->out_w; ox++, y += g->in_c) {
                const struct htpw_vnni_cells cells = htpw_vnni_cells(g, oy, ox);
                if (want_mean) {
                    htpw_vnni_mean(g, &cells, act_min, act_max, x, y);
                } else {
                    htpw_vnni_top(g, &cells, act_min, act_max, x, y);
                }
            }
        }
    }
}

HTPW_VNNI void htpw_avgpool_s8_vnni(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x,
                                           int8_t *y) {
    htpw_vnni_pool(g, act_min, act_max, x, y, 1);
}

HTPW_VNNI void htpw_maxpool_s8_vnni(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x,
                                           int8_t *y) {
    htpw_vnni_pool(g, act_min, act_max, x, y, 0);
}

#else

typedef int htpw_vnni_window_is_not_built; /* C99 asks for at least one declaration */

#endif
