/* htpw_avx2_window.c - depthwise convolution, element-wise sum and pools with AVX2. Words as in htpw_avx2.h. */
#include "htpw_avx2.h"

#ifdef HTPW_HAS_X86_AVX2

/* Depthwise: 16 channels of 2 taps make one step. */

/* How to reach the taps of a window from its first, and their weights in pairs: channels 0-3 and 8-11, then the others,
 * which is the order that unpacking yields. */
struct htpw_avx2_taps {
    int32_t count, steps;
    size_t inside[HTPW_AVX2_TAPS]; /* distances in x */
    size_t copied[HTPW_AVX2_TAPS]; /* distances in a copy of 16 channels, for windows that leave the input */
    int16_t weights[HTPW_AVX2_TAPS * HTPW_AVX2_CHANNELS];
};

HTPW_AVX2_INLINE void htpw_avx2_depthwise_sum(const struct htpw_avx2_taps *t, const int8_t *x, const size_t *at,
                                              const int32_t *first, int32_t *sums) {
    __m256i low = _mm256_setzero_si256(), high = low;
    for (int32_t i = 0; i < t->steps; i++) {
        const __m256i a = htpw_avx2_widen(x + at[2 * i]), b = htpw_avx2_widen(x + at[2 * i + 1]);
        const int16_t *w = t->weights + 32 * i;
        low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), htpw_avx2_load(w)));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), htpw_avx2_load(w + 16)));
    }
    htpw_avx2_store(sums, _mm256_add_epi32(htpw_avx2_load(first), _mm256_permute2x128_si256(low, high, 0x20)));
    htpw_avx2_store(sums + 8, _mm256_add_epi32(htpw_avx2_load(first + 8), _mm256_permute2x128_si256(low, high, 0x31)));
}

/* `channels` channels of the window at (y0, x0), with its padding, 16 bytes per tap. */
static void htpw_avx2_window(const struct htpw_window *g, int32_t in_offset, const int8_t *x, int32_t y0, int32_t x0,
                             int32_t channels, int8_t *copy) {
    for (int32_t ky = 0; ky < g->k_h; ky++) {
        for (int32_t kx = 0; kx < g->k_w; kx++, copy += HTPW_AVX2_CHANNELS) {
            const int32_t iy = y0 + ky * g->dil_h, ix = x0 + kx * g->dil_w;
            if (iy >= 0 && iy < g->in_h && ix >= 0 && ix < g->in_w) {
                htpw_avx2_bytes(channels, x + htpw_cell(0, iy, ix, 0, g->in_w, g->in_c), copy);
            } else {
                for (int32_t c = 0; c < channels; c++) {
                    copy[c] = (int8_t)-in_offset;
                }
            }
        }
    }
}

/* Up to 16 channels from o on. */
static HTPW_AVX2 void htpw_avx2_depthwise(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                          const int8_t *x, const int8_t *w, const int32_t *bias, int32_t o,
                                          int32_t channels, int8_t *y) {
    const size_t step = (size_t)g->in_c;
    struct htpw_avx2_taps t;
    struct htpw_avx2_group u HTPW_AVX2_ALIGNED;
    int32_t sums[2 * HTPW_AVX2_LANES] = {0};
    int8_t copy[HTPW_AVX2_TAPS * HTPW_AVX2_CHANNELS] = {0};
    t.count = g->k_h * g->k_w;
    t.steps = (t.count + 1) / 2;
    for (int32_t i = 0; i < 2 * t.steps; i++) { /* an odd tap out is repeated; its weight is 0 */
        const int32_t tap = i < t.count ? i : t.count - 1;
        t.inside[i] = htpw_cell(0, tap / g->k_w * g->dil_h, tap % g->k_w * g->dil_w, 0, g->in_w, g->in_c);
        t.copied[i] = (size_t)tap * HTPW_AVX2_CHANNELS;
        for (int32_t c = 0; c < HTPW_AVX2_CHANNELS; c++) {
            const int32_t weight = i < t.count && c < channels ? w[(size_t)i * step + (size_t)c] : 0;
            const int32_t place = c / 8 * 4 + c % 4 + c / 4 % 2 * 8;
            t.weights[32 * (i / 2) + 2 * place + i % 2] = (int16_t)weight;
            sums[c] += weight * in_offset;
        }
    }
    htpw_avx2_begin(&u, q, t.count, bias, sums, o, channels, 2);

    const int32_t reach_h = (g->k_h - 1) * g->dil_h, reach_w = (g->k_w - 1) * g->dil_w;
    int32_t filled = 0;
    for (int32_t n = 0; n < g->n; n++, x += htpw_cell(1, 0, 0, g->in_h, g->in_w, g->in_c)) {
        for (int32_t cell = 0, oy = 0, ox = 0; cell < g->out_h * g->out_w; cell++) {
            const int32_t y0 = oy * g->stride_h - g->pad_top, x0 = ox * g->stride_w - g->pad_left;
            const int32_t leaves = y0 < 0 || y0 + reach_h >= g->in_h || x0 < 0 || x0 + reach_w >= g->in_w;
            if (leaves || channels < HTPW_AVX2_CHANNELS) {
                htpw_avx2_window(g, in_offset, x, y0, x0, channels, copy);
                htpw_avx2_depthwise_sum(&t, copy, t.copied, u.first, sums + HTPW_AVX2_CHANNELS * filled);
            } else {
                const int8_t *at = x + htpw_cell(0, y0, x0, 0, g->in_w, g->in_c);
                htpw_avx2_depthwise_sum(&t, at, t.inside, u.first, sums + HTPW_AVX2_CHANNELS * filled);
            }
            if (++filled == 4) {
                htpw_avx2_finish(&u, 4, sums, step, y);
                y += 4 * step;
                filled = 0;
            }
            if (++ox == g->out_w) {
                ox = 0;
                oy++;
            }
        }
    }
    htpw_avx2_finish(&u, filled, sums, step, y);
}

HTPW_AVX2 void htpw_depthwise_s8_avx2(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                      const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    (void)scratch;
    if (g->out_c != g->in_c || g->k_h > HTPW_AVX2_TAPS || g->k_w > HTPW_AVX2_TAPS || g->k_h * g->k_w > HTPW_AVX2_TAPS) {
        htpw_depthwise_s8_ref(g, q, in_offset, x, w, bias, y);
        return;
    }
    for (int32_t o = 0; o < g->in_c; o += HTPW_AVX2_CHANNELS) {
        const int32_t channels = g->in_c < HTPW_AVX2_CHANNELS ? g->in_c : HTPW_AVX2_CHANNELS;
        const int32_t c = o + channels <= g->in_c ? o : g->in_c - channels; /* the last block overlaps the one before */
        htpw_avx2_depthwise(g, q, in_offset, x + c, w + c, bias, c, channels, y + c);
    }
}

/* Element-wise sum and pools. */

/* A shift of `left` and a factor with shift <= 0. */
HTPW_AVX2_INLINE struct htpw_avx2_factor htpw_avx2_factor(int32_t left, int32_t multiplier, int32_t shift,
                                                          const int narrow) {
    const __m256i m = _mm256_set1_epi32(multiplier), r = _mm256_set1_epi32(-shift);
    const struct htpw_avx2_factor f = {_mm256_set1_epi32(left + 2), m, htpw_avx2_low(m, r, narrow), htpw_avx2_round(r),
                                       _mm256_add_epi32(r, _mm256_set1_epi32(1))};
    return f;
}

HTPW_AVX2_INLINE __m256i htpw_avx2_input(const int8_t *p, __m256i offset) {
    return _mm256_add_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)), offset);
}

/* Whole quads; returns how many elements that is. */
HTPW_AVX2_INLINE size_t htpw_avx2_add(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b,
                                      int8_t *y, const int narrow) {
    const struct htpw_avx2_factor fa = htpw_avx2_factor(p->left_shift, p->a_multiplier, p->a_shift, narrow);
    const struct htpw_avx2_factor fb = htpw_avx2_factor(p->left_shift, p->b_multiplier, p->b_shift, narrow);
    const struct htpw_avx2_factor fy = htpw_avx2_factor(0, p->out_multiplier, p->out_shift, narrow);
    const struct htpw_avx2_output t = htpw_avx2_output(p->out_offset, p->act_min, p->act_max);
    const __m256i offset_a = _mm256_set1_epi32(p->a_offset), offset_b = _mm256_set1_epi32(p->b_offset);
    size_t i = 0;
    for (; i + HTPW_AVX2_LANES <= n; i += HTPW_AVX2_LANES) {
        __m256i v[4];
        for (size_t j = 0; j < 4; j++) {
            const __m256i va = htpw_avx2_scale(htpw_avx2_input(a + i + 8 * j, offset_a), &fa, narrow);
            const __m256i vb = htpw_avx2_scale(htpw_avx2_input(b + i + 8 * j, offset_b), &fb, narrow);
            v[j] = htpw_avx2_scale(_mm256_add_epi32(va, vb), &fy, narrow);
        }
        htpw_avx2_store(y + i, htpw_avx2_narrow(v, &t));
    }
    return i;
}

HTPW_AVX2 void htpw_add_s8_avx2(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b,
                                int8_t *y) {
    const int32_t lowest = p->a_shift < p->b_shift ? p->a_shift : p->b_shift;
    const int32_t highest = p->a_shift > p->b_shift ? p->a_shift : p->b_shift;
    size_t done = 0; /* beyond 255 << 20 < 2^28 for each term the vector code is not proven */
    if (p->left_shift <= 20 && highest <= 0 && p->out_shift <= 0 && lowest >= -29 && p->out_shift >= -29) {
        done = ((p->a_multiplier | p->b_multiplier | p->out_multiplier) & 0xFFFF) == 0
                   ? htpw_avx2_add(n, p, a, b, y, 1)
                   : htpw_avx2_add(n, p, a, b, y, 0);
    }
    htpw_add_s8_ref(n - done, p, a + done, b + done, y + done);
}

/* 8 sums or 16 maxima of the cells [y.first, y.end) x [x.first, x.end). */
static HTPW_AVX2 __m256i htpw_avx2_sum(const struct htpw_window *g, struct htpw_taps ty, struct htpw_taps tx,
                                       const int8_t *x) {
    __m256i sum = _mm256_setzero_si256();
    for (int32_t iy = ty.first; iy < ty.end; iy++) {
        for (int32_t ix = tx.first; ix < tx.end; ix++) {
            sum = htpw_avx2_input(x + htpw_cell(0, iy, ix, 0, g->in_w, g->in_c), sum);
        }
    }
    return sum;
}

static HTPW_AVX2 __m128i htpw_avx2_top(const struct htpw_window *g, struct htpw_taps ty, struct htpw_taps tx,
                                       const int8_t *x, __m128i top) {
    for (int32_t iy = ty.first; iy < ty.end; iy++) {
        for (int32_t ix = tx.first; ix < tx.end; ix++) {
            const int8_t *at = x + htpw_cell(0, iy, ix, 0, g->in_w, g->in_c);
            top = _mm_max_epi8(top, _mm_loadu_si128((const void *)at));
        }
    }
    return top;
}

/* One output cell. */
static HTPW_AVX2 void htpw_avx2_pool_cell(const struct htpw_window *g, int32_t act_min, int32_t act_max,
                                          const int8_t *x, int8_t *y, int32_t y0, int32_t x0, int32_t want_mean) {
    const int32_t lanes = want_mean ? 8 : 16;
    struct htpw_taps ty = htpw_clip(y0, g->k_h, 1, g->in_h), tx = htpw_clip(x0, g->k_w, 1, g->in_w);
    const int32_t cells = (ty.end - ty.first) * (tx.end - tx.first), half = cells / 2;
    ty.first += y0;
    ty.end += y0;
    tx.first += x0;
    tx.end += x0;
    for (int32_t i = 0; i < g->in_c; i += lanes) {
        const int32_t c = i + lanes <= g->in_c ? i : g->in_c - lanes; /* the last block overlaps the one before */
        if (want_mean) {
            int32_t sums[8];
            htpw_avx2_store(sums, htpw_avx2_sum(g, ty, tx, x + c));
            for (int32_t j = 0; j < 8; j++) {
                y[c + j] =
                    (int8_t)htpw_clamp((sums[j] > 0 ? sums[j] + half : sums[j] - half) / cells, act_min, act_max);
            }
        } else {
            const __m128i top = htpw_avx2_top(g, ty, tx, x + c, _mm_set1_epi8((int8_t)act_min));
            _mm_storeu_si128((void *)(y + c), _mm_min_epi8(top, _mm_set1_epi8((int8_t)act_max)));
        }
    }
}

static HTPW_AVX2 void htpw_avx2_pool(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x,
                                     int8_t *y, int32_t want_mean) {
    for (int32_t n = 0; n < g->n; n++, x += htpw_cell(1, 0, 0, g->in_h, g->in_w, g->in_c)) {
        for (int32_t oy = 0; oy < g->out_h; oy++) {
            for (int32_t ox = 0; ox < g->out_w; ox++, y += g->in_c) {
                htpw_avx2_pool_cell(g, act_min, act_max, x, y, oy * g->stride_h - g->pad_top,
                                    ox * g->stride_w - g->pad_left, want_mean);
            }
        }
    }
}

void htpw_avgpool_s8_avx2(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y) {
    if (g->in_c < 8) {
        htpw_avgpool_s8_ref(g, act_min, act_max, x, y);
    } else {
        htpw_avx2_pool(g, act_min, act_max, x, y, 1);
    }
}

void htpw_maxpool_s8_avx2(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y) {
    if (g->in_c < 16) {
        htpw_maxpool_s8_ref(g, act_min, act_max, x, y);
    } else {
        htpw_avx2_pool(g, act_min, act_max, x, y, 0);
    }
}

#else

typedef int htpw_avx2_window_is_not_built; /* C99 asks for at least one declaration */

#endif
