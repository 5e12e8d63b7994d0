/* htpw_vnni_window.c - depthwise convolution, element-wise sum and pools with AVX-512 VNNI. Words as in htpw_vnni.h. */
#include "htpw_vnni.h"

#ifdef HTPW_HAS_X86_AVX512VNNI

/* Depthwise: a step is 4 taps of 64 lanes: of 64 channels of one cell, of 32 of two or of 16 of four. */

enum {
    HTPW_VNNI_STEP = 4 * HTPW_VNNI_LANES, /* bytes */
    HTPW_VNNI_BATCH = 8 /* groups of 64 lanes that are requantised together */
};

/* How to reach the taps of a window from its first, and the weights in the order of htpw_vnni_steps. */
struct htpw_vnni_taps {
    int32_t steps, width; /* channels: 16, 32 or 64 */
    __mmask16 lanes; /* of 16; with more channels all */
    size_t inside[HTPW_VNNI_TAPS]; /* distances in x */
    size_t copied[HTPW_VNNI_TAPS]; /* distances in a copy of 64 lanes, for windows that leave the input */
    int8_t weights[HTPW_VNNI_TAPS * HTPW_VNNI_LANES] HTPW_VNNI_QUAD;
};

/* Where the windows of up to 4 cells begin. */
struct htpw_vnni_cell {
    const int8_t *at[4];
    int32_t y0[4], x0[4];
};

/* One tap of 64 lanes. */
HTPW_VNNI_INLINE __m512i htpw_vnni_tap(const struct htpw_vnni_cell *c, size_t from, __mmask16 lanes, const int width) {
    if (width == 64) {
        return _mm512_loadu_si512(c->at[0] + from);
    }
    if (width == 32) {
        const __m256i a = _mm256_loadu_si256((const void *)(c->at[0] + from));
        return _mm512_inserti64x4(_mm512_castsi256_si512(a), _mm256_loadu_si256((const void *)(c->at[1] + from)), 1);
    }
    __m512i v = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(lanes, c->at[0] + from));
    v = _mm512_inserti32x4(v, _mm_maskz_loadu_epi8(lanes, c->at[1] + from), 1);
    v = _mm512_inserti32x4(v, _mm_maskz_loadu_epi8(lanes, c->at[2] + from), 2);
    return _mm512_inserti32x4(v, _mm_maskz_loadu_epi8(lanes, c->at[3] + from), 3);
}

/* 4 taps of 64 lanes become 4 registers, in which the taps of a lane are side by side: word e of the 128 bits number L in
 * register j is lane 16 * L + 4 * j + e. This is what is called turned below. */
HTPW_VNNI_INLINE void htpw_vnni_interleave(const __m512i t[4], __m512i v[4]) {
    const __m512i a = _mm512_unpacklo_epi8(t[0], t[1]), b = _mm512_unpackhi_epi8(t[0], t[1]);
    const __m512i c = _mm512_unpacklo_epi8(t[2], t[3]), d = _mm512_unpackhi_epi8(t[2], t[3]);
    v[0] = _mm512_unpacklo_epi16(a, c);
    v[1] = _mm512_unpackhi_epi16(a, c);
    v[2] = _mm512_unpacklo_epi16(b, d);
    v[3] = _mm512_unpackhi_epi16(b, d);
}

/* Turns 64 words, or turns them back: a transposition of 4 x 4 parts of 128 bits. */
static HTPW_VNNI void htpw_vnni_turn(int32_t *words) {
    const __m512i a = _mm512_load_si512(words), b = _mm512_load_si512(words + 16);
    const __m512i c = _mm512_load_si512(words + 32), d = _mm512_load_si512(words + 48);
    const __m512i ab = _mm512_shuffle_i32x4(a, b, 0x44), cd = _mm512_shuffle_i32x4(c, d, 0x44);
    const __m512i ba = _mm512_shuffle_i32x4(a, b, 0xEE), dc = _mm512_shuffle_i32x4(c, d, 0xEE);
    _mm512_store_si512(words, _mm512_shuffle_i32x4(ab, cd, 0x88));
    _mm512_store_si512(words + 16, _mm512_shuffle_i32x4(ab, cd, 0xDD));
    _mm512_store_si512(words + 32, _mm512_shuffle_i32x4(ba, dc, 0x88));
    _mm512_store_si512(words + 48, _mm512_shuffle_i32x4(ba, dc, 0xDD));
}

/* sums[64], turned, of up to 4 cells. */
HTPW_VNNI_INLINE void htpw_vnni_steps(const struct htpw_vnni_taps *t, const struct htpw_vnni_cell *c,
                                      const size_t *from, const int32_t *first, int32_t *sums, const int width) {
    __m512i s0 = _mm512_load_si512(first), s1 = _mm512_load_si512(first + 16);
    __m512i s2 = _mm512_load_si512(first + 32), s3 = _mm512_load_si512(first + 48);
    const int8_t *w = t->weights;
    for (int32_t i = 0; i < t->steps; i++, from += 4, w += HTPW_VNNI_STEP) {
        const __m512i tap[4] = {htpw_vnni_tap(c, from[0], t->lanes, width), htpw_vnni_tap(c, from[1], t->lanes, width),
                                htpw_vnni_tap(c, from[2], t->lanes, width), htpw_vnni_tap(c, from[3], t->lanes, width)};
        __m512i v[4];
        htpw_vnni_interleave(tap, v);
        s0 = _mm512_dpbusd_epi32(s0, htpw_vnni_flip(v[0]), _mm512_load_si512(w));
        s1 = _mm512_dpbusd_epi32(s1, htpw_vnni_flip(v[1]), _mm512_load_si512(w + 64));
        s2 = _mm512_dpbusd_epi32(s2, htpw_vnni_flip(v[2]), _mm512_load_si512(w + 128));
        s3 = _mm512_dpbusd_epi32(s3, htpw_vnni_flip(v[3]), _mm512_load_si512(w + 192));
    }
    _mm512_store_si512(sums, s0);
    _mm512_store_si512(sums + 16, s1);
    _mm512_store_si512(sums + 32, s2);
    _mm512_store_si512(sums + 48, s3);
}

/* The windows of some cells with their padding, 64 lanes of each tap. */
static HTPW_VNNI void htpw_vnni_window(const struct htpw_window *g, int32_t in_offset, const int8_t *x, int32_t cells,
                                       const struct htpw_vnni_cell *c, int32_t width, int32_t channels, int8_t *copy) {
    const __mmask64 lanes = htpw_vnni_mask64(channels), all = htpw_vnni_mask64(width);
    for (int32_t j = 0; j < cells; j++) {
        int8_t *to = copy + j * width;
        for (int32_t ky = 0; ky < g->k_h; ky++) {
            for (int32_t kx = 0; kx < g->k_w; kx++, to += HTPW_VNNI_LANES) {
                const int32_t iy = c->y0[j] + ky * g->dil_h, ix = c->x0[j] + kx * g->dil_w;
                __m512i v = _mm512_set1_epi8((int8_t)-in_offset);
                if (iy >= 0 && iy < g->in_h && ix >= 0 && ix < g->in_w) {
                    v = _mm512_maskz_loadu_epi8(lanes, x + htpw_cell(0, iy, ix, 0, g->in_w, g->in_c));
                }
                _mm512_mask_storeu_epi8(to, all, v);
            }
        }
    }
}

/* Requantises turned sums of `cells` cells, 64 / width of them in each group of 64 lanes. */
HTPW_VNNI_INLINE void htpw_vnni_finish_turned_as(const struct htpw_vnni_group *u, int32_t cells, const int32_t *sums,
                                                 int32_t width, size_t stride, int8_t *y, const int narrow) {
    const struct htpw_vnni_factor f0 = htpw_vnni_factor_of(u, 0, narrow), f1 = htpw_vnni_factor_of(u, 16, narrow);
    const struct htpw_vnni_factor f2 = htpw_vnni_factor_of(u, 32, narrow), f3 = htpw_vnni_factor_of(u, 48, narrow);
    const struct htpw_vnni_output t = htpw_vnni_output(u->q->out_offset, u->q->act_min, u->q->act_max);
    const __mmask64 k = htpw_vnni_mask64(u->count);
    for (int32_t done = 0; done < cells; sums += HTPW_VNNI_LANES) {
        const __m512i v0 = htpw_vnni_scale(_mm512_load_si512(sums), &f0, narrow);
        const __m512i v1 = htpw_vnni_scale(_mm512_load_si512(sums + 16), &f1, narrow);
        const __m512i v2 = htpw_vnni_scale(_mm512_load_si512(sums + 32), &f2, narrow);
        const __m512i v3 = htpw_vnni_scale(_mm512_load_si512(sums + 48), &f3, narrow);
        const __m512i a = _mm512_adds_epi16(_mm512_packs_epi32(v0, v1), t.offset); /* packing turns back */
        const __m512i b = _mm512_adds_epi16(_mm512_packs_epi32(v2, v3), t.offset);
        __m512i bytes = _mm512_min_epi8(_mm512_max_epi8(_mm512_packs_epi16(a, b), t.low), t.high);
        for (int32_t lane = 0; lane < HTPW_VNNI_LANES && done < cells; lane += width, done++, y += stride) {
            _mm512_mask_storeu_epi8(y, k, bytes);
            if (width == 16) {
                bytes = _mm512_alignr_epi32(bytes, bytes, 4);
            } else if (width == 32) {
                bytes = _mm512_alignr_epi32(bytes, bytes, 8);
            }
        }
    }
}

static HTPW_VNNI void htpw_vnni_finish_turned(const struct htpw_vnni_group *u, int32_t cells, int32_t *sums,
                                              int32_t width, size_t stride, int8_t *y) {
    if (u->mode == HTPW_VNNI_NARROW) {
        htpw_vnni_finish_turned_as(u, cells, sums, width, stride, y, 1);
    } else if (u->mode == HTPW_VNNI_WIDE) {
        htpw_vnni_finish_turned_as(u, cells, sums, width, stride, y, 0);
    } else {
        for (int32_t i = 0; i * (HTPW_VNNI_LANES / width) < cells; i++) {
            htpw_vnni_turn(sums + HTPW_VNNI_LANES * i);
        }
        htpw_vnni_finish(u, cells, sums, stride, y);
    }
}

/* Distances and weights; `sums` of the weights of each channel. */
static HTPW_VNNI void htpw_vnni_taps(const struct htpw_window *g, const int8_t *w, int32_t channels, int32_t width,
                                     struct htpw_vnni_taps *t, int32_t *sums) {
    const int32_t count = g->k_h * g->k_w;
    const __mmask64 lanes = htpw_vnni_mask64(channels);
    __m512i s[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    t->steps = (count + 3) / 4;
    t->width = width;
    t->lanes = htpw_vnni_mask16(channels);
    for (int32_t i = 0, ky = 0, kx = 0; i < 4 * t->steps; i++) {
        t->inside[i] = htpw_cell(0, ky * g->dil_h, kx * g->dil_w, 0, g->in_w, g->in_c);
        t->copied[i] = (size_t)(ky * g->k_w + kx) * HTPW_VNNI_LANES;
        if (i + 1 < count &&
            ++kx == g->k_w) { /* taps that fill up the last step repeat the last one; their weight is 0 */
            kx = 0;
            ky++;
        }
    }
    for (int32_t i = 0; i < t->steps; i++) {
        __m512i tap[4], v[4];
        for (int32_t j = 0; j < 4; j++) {
            const int32_t at = 4 * i + j;
            __m512i row =
                at < count ? _mm512_maskz_loadu_epi8(lanes, w + (size_t)at * (size_t)g->in_c) : _mm512_setzero_si512();
            if (width == 16) {
                row = _mm512_broadcast_i32x4(_mm512_castsi512_si128(row));
            } else if (width == 32) {
                row = _mm512_shuffle_i64x2(row, row, 0x44);
            }
            tap[j] = row;
        }
        htpw_vnni_interleave(tap, v);
        for (int32_t j = 0; j < 4; j++) {
            _mm512_store_si512(t->weights + HTPW_VNNI_STEP * i + 64 * j, v[j]);
            s[j] = _mm512_dpbusd_epi32(s[j], _mm512_set1_epi8(1), v[j]);
        }
    }
    for (int32_t j = 0; j < 4; j++) {
        _mm512_store_si512(sums + 16 * j, s[j]);
    }
    htpw_vnni_turn(sums);
}

/* 64, 32 or 16 channels from o on, or fewer if there are no more. */
HTPW_VNNI_INLINE void htpw_vnni_depthwise(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                          const int8_t *x, const int8_t *w, const int32_t *bias, int32_t o,
                                          int32_t channels, int8_t *y, const int width) {
    const int32_t per = HTPW_VNNI_LANES / width, all = g->out_h * g->out_w;
    const int32_t reach_h = (g->k_h - 1) * g->dil_h, reach_w = (g->k_w - 1) * g->dil_w;
    const size_t step = (size_t)g->in_c;
    struct htpw_vnni_taps t;
    struct htpw_vnni_group u HTPW_VNNI_QUAD;
    int32_t sums[HTPW_VNNI_LANES * HTPW_VNNI_BATCH] HTPW_VNNI_QUAD;
    int8_t copy[HTPW_VNNI_TAPS * HTPW_VNNI_LANES];
    htpw_vnni_taps(g, w, channels, width, &t, sums);
    htpw_vnni_begin(&u, q, in_offset, g->k_h * g->k_w, bias, sums, o, channels, width / HTPW_VNNI_BLOCK);
    htpw_vnni_turn(u.first);
    if (u.mode != HTPW_VNNI_SCALAR) {
        htpw_vnni_turn(u.left);
        htpw_vnni_turn(u.multiplier);
        htpw_vnni_turn(u.low);
        htpw_vnni_turn(u.round);
        htpw_vnni_turn(u.right);
    }
    for (int32_t n = 0; n < g->n; n++, x += htpw_cell(1, 0, 0, g->in_h, g->in_w, g->in_c)) {
        int32_t filled = 0, cells = 0;
        for (int32_t cell = 0, oy = 0, ox = 0; cell < all; cell += per) {
            const int32_t count = all - cell < per ? all - cell : per;
            struct htpw_vnni_cell c;
            int32_t y0 = 0, x0 = 0;
            int inside = 1;
            for (int32_t j = 0; j < per; j++) {
                if (j < count) { /* else the last cell is repeated, and its sums are dropped */
                    y0 = oy * g->stride_h - g->pad_top;
                    x0 = ox * g->stride_w - g->pad_left;
                    if (++ox == g->out_w) {
                        ox = 0;
                        oy++;
                    }
                }
                c.y0[j] = y0;
                c.x0[j] = x0;
                inside &= y0 >= 0 && y0 + reach_h < g->in_h && x0 >= 0 && x0 + reach_w < g->in_w;
            }
            if (inside) {
                for (int32_t j = 0; j < per; j++) {
                    c.at[j] = x + htpw_cell(0, c.y0[j], c.x0[j], 0, g->in_w, g->in_c);
                }
                htpw_vnni_steps(&t, &c, t.inside, u.first, sums + HTPW_VNNI_LANES * filled, width);
            } else {
                htpw_vnni_window(g, in_offset, x, per, &c, width, channels, copy);
                c.at[0] = copy;
                htpw_vnni_steps(&t, &c, t.copied, u.first, sums + HTPW_VNNI_LANES * filled, HTPW_VNNI_LANES);
            }
            cells += count;
            if (++filled == HTPW_VNNI_BATCH || cell + per >= all) {
                htpw_vnni_finish_turned(&u, cells, sums, width, step, y);
                y += (size_t)cells * step;
                filled = cells = 0;
            }
        }
    }
}

static HTPW_VNNI void htpw_vnni_depthwise64(const struct htpw_window *g, const struct htpw_requant *q,
                                            int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias,
                                            int32_t o, int8_t *y) {
    htpw_vnni_depthwise(g, q, in_offset, x, w, bias, o, 64, y, 64);
}

static HTPW_VNNI void htpw_vnni_depthwise32(const struct htpw_window *g, const struct htpw_requant *q,
                                            int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias,
                                            int32_t o, int8_t *y) {
    htpw_vnni_depthwise(g, q, in_offset, x, w, bias, o, 32, y, 32);
}

static HTPW_VNNI void htpw_vnni_depthwise16(const struct htpw_window *g, const struct htpw_requant *q,
                                            int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias,
                                            int32_t o, int32_t channels, int8_t *y) {
    htpw_vnni_depthwise(g, q, in_offset, x, w, bias, o, channels, y, 16);
}

HTPW_VNNI void htpw_depthwise_s8_vnni(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                      const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    (void)scratch;
    if (g->out_c != g->in_c || g->k_h > HTPW_VNNI_TAPS || g->k_w > HTPW_VNNI_TAPS || g->k_h * g->k_w > HTPW_VNNI_TAPS) {
        htpw_depthwise_s8_ref(g, q, in_offset, x, w, bias, y);
        return;
    }
    int32_t o = 0;
    for (; g->in_c - o >= 64; o += 64) {
        htpw_vnni_depthwise64(g, q, in_offset, x + o, w + o, bias, o, y + o);
    }
    for (; g->in_c - o >= 32; o += 32) {
        htpw_vnni_depthwise32(g, q, in_offset, x + o, w + o, bias, o, y + o);
    }
    for (; o < g->in_c; o += HTPW_VNNI_BLOCK) {
        const int32_t left = g->in_c - o;
        const int32_t c = left < HTPW_VNNI_BLOCK && o > 0 ? g->in_c - HTPW_VNNI_BLOCK : o; /* the last block overlaps */
        const int32_t channels = left < HTPW_VNNI_BLOCK && o == 0 ? left : HTPW_VNNI_BLOCK;
        htpw_vnni_depthwise16(g, q, in_offset, x + c, w + c, bias, c, channels, y + c);
    }
}

/* Element-wise sum and pools. */

/* A shift of `left` and a factor with shift <= 0. */
HTPW_VNNI_INLINE struct htpw_vnni_factor htpw_vnni_factor(int32_t left, int32_t multiplier, int32_t shift,
                                                          const int narrow) {
    const __m512i m = _mm512_set1_epi32(multiplier), r = _mm512_set1_epi32(-shift);
    const struct htpw_vnni_factor f = {_mm512_set1_epi32(left + 2), m, htpw_vnni_low(m, r, narrow), htpw_vnni_round(r),
                                       _mm512_add_epi32(r, _mm512_set1_epi32(1))};
    return f;
}

HTPW_VNNI_INLINE void htpw_vnni_add(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b,
                                    int8_t *y, const int narrow) {
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
            y[c + j] =
                (int8_t)htpw_clamp((sums[j] > 0 ? sums[j] + half : sums[j] - half) / cells->count, act_min, act_max);
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
