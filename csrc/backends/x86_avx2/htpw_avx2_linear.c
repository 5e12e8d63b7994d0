/* htpw_avx2_linear.c - matrix products with AVX2: pointwise, general convolution, fully connected.
 *
 * A step is 2 products of each channel; other words as in htpw_avx2.h.
 */
#include "htpw_avx2.h"

#ifdef HTPW_HAS_X86_AVX2

/* What the rows of a matrix product are made of. */
struct htpw_avx2_source {
    const int8_t *x;
    int32_t products;            /* columns */
    const struct htpw_window *g; /* rows are patches of x; NULL: x is the matrix */
    int32_t group;               /* of the channels of a patch */
    int32_t in_offset;
};

/* Entries of one block, which ends after `count` channels, of a per-channel array. */
HTPW_AVX2_INLINE __m256i htpw_avx2_channels(const int32_t *p, int32_t count) {
    const __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_maskload_epi32((const void *)p, lanes);
}

HTPW_AVX2 void htpw_avx2_begin(struct htpw_avx2_group *u, const struct htpw_requant *q, int32_t products,
                               const int32_t *bias, const int32_t *extra, int32_t o, int32_t count, int32_t blocks) {
    const __m256i none = _mm256_setzero_si256();
    const int32_t fits = products <= HTPW_AVX2_PRODUCTS;
    const __m256i largest = _mm256_set1_epi32(fits ? products * 255 * 128 : 0);
    __m256i bad = _mm256_set1_epi32(fits ? 0 : -1), wide = none;
    for (int32_t b = 0; b < blocks; b++) {
        const int32_t c = o + HTPW_AVX2_BLOCK * b, left = count - HTPW_AVX2_BLOCK * b;
        const __m256i m =
            q->per_channel ? htpw_avx2_channels(q->multiplier + c, left) : _mm256_set1_epi32(*q->multiplier);
        const __m256i s = q->per_channel ? htpw_avx2_channels(q->shift + c, left) : _mm256_set1_epi32(*q->shift);
        const __m256i start = bias != NULL ? htpw_avx2_channels(bias + c, left) : none;
        const __m256i more = extra != NULL ? htpw_avx2_load(extra + HTPW_AVX2_BLOCK * b) : none;
        const __m256i l = _mm256_max_epi32(s, none), r = _mm256_sub_epi32(l, s);
        /* The vector code holds for |v << L| < 2^29 and R < 30. Sums reach 2^14, which leaves room for L < 15. */
        const __m256i bound = _mm256_add_epi32(_mm256_abs_epi32(start), largest);
        const __m256i over = _mm256_srlv_epi32(bound, _mm256_sub_epi32(_mm256_set1_epi32(29), l));
        bad = _mm256_or_si256(bad, _mm256_or_si256(over, _mm256_cmpgt_epi32(none, m)));
        bad = _mm256_or_si256(bad, _mm256_cmpgt_epi32(l, _mm256_set1_epi32(14)));
        bad = _mm256_or_si256(bad, _mm256_cmpgt_epi32(r, _mm256_set1_epi32(29)));
        wide = _mm256_or_si256(wide, _mm256_and_si256(m, _mm256_set1_epi32(0xFFFF)));
        for (int32_t at = HTPW_AVX2_BLOCK * b; at < HTPW_AVX2_LANES; at += HTPW_AVX2_BLOCK * blocks) {
            htpw_avx2_store(u->first + at, _mm256_add_epi32(start, more));
            htpw_avx2_store(u->left + at, _mm256_add_epi32(l, _mm256_set1_epi32(2)));
            htpw_avx2_store(u->multiplier + at, m);
            htpw_avx2_store(u->low + at, htpw_avx2_low(m, r, 1));
            htpw_avx2_store(u->round + at, htpw_avx2_round(r));
            htpw_avx2_store(u->right + at, _mm256_add_epi32(r, _mm256_set1_epi32(1)));
        }
    }
    u->q = q;
    u->mode = !_mm256_testz_si256(bad, bad)     ? HTPW_AVX2_SCALAR
              : !_mm256_testz_si256(wide, wide) ? HTPW_AVX2_WIDE
                                                : HTPW_AVX2_NARROW;
    u->o = o;
    u->count = count;
    u->blocks = blocks;
}

HTPW_AVX2_INLINE struct htpw_avx2_factor htpw_avx2_factor_of(const struct htpw_avx2_group *u, int32_t at,
                                                             const int narrow) {
    const __m256i low = htpw_avx2_load(u->low + at), sign = _mm256_set1_epi32(2 << 16);
    const struct htpw_avx2_factor f = {htpw_avx2_load(u->left + at), htpw_avx2_load(u->multiplier + at),
                                       narrow ? low : _mm256_and_si256(low, sign), htpw_avx2_load(u->round + at),
                                       htpw_avx2_load(u->right + at)};
    return f;
}

/* Requantises sums[rows][8 * blocks], filled up to whole quads, into rows of y that are `stride` apart. */
HTPW_AVX2_INLINE void htpw_avx2_finish_as(const struct htpw_avx2_group *u, int32_t rows, const int32_t *sums,
                                          size_t stride, int8_t *y, const int narrow) {
    const struct htpw_avx2_output t = htpw_avx2_output(u->q->out_offset, u->q->act_min, u->q->act_max);
    const int32_t width = HTPW_AVX2_BLOCK * u->blocks, count = u->count;
    for (int32_t r = 0; r < rows; sums += HTPW_AVX2_LANES) {
        int8_t bytes[HTPW_AVX2_LANES] HTPW_AVX2_ALIGNED;
        __m256i v[4];
        for (int32_t b = 0; b < 4; b++) {
            const struct htpw_avx2_factor f = htpw_avx2_factor_of(u, HTPW_AVX2_BLOCK * b, narrow);
            v[b] = htpw_avx2_scale(htpw_avx2_load(sums + HTPW_AVX2_BLOCK * b), &f, narrow);
        }
        htpw_avx2_store(bytes, htpw_avx2_narrow(v, &t));
        for (const int8_t *at = bytes; at < bytes + HTPW_AVX2_LANES && r < rows; at += width, r++, y += stride) {
            if (count == 16) {
                _mm_storeu_si128((void *)y, _mm_load_si128((const void *)at));
            } else if (count >= 8) {
                _mm_storel_epi64((void *)y, _mm_loadl_epi64((const void *)at));
                htpw_avx2_bytes(count - 8, at + 8, y + 8);
            } else {
                htpw_avx2_bytes(count, at, y);
            }
        }
    }
}

HTPW_AVX2 void htpw_avx2_finish(const struct htpw_avx2_group *u, int32_t rows, const int32_t *sums, size_t stride,
                                int8_t *y) {
    if (u->mode == HTPW_AVX2_NARROW) {
        htpw_avx2_finish_as(u, rows, sums, stride, y, 1);
    } else if (u->mode == HTPW_AVX2_WIDE) {
        htpw_avx2_finish_as(u, rows, sums, stride, y, 0);
    } else {
        for (int32_t r = 0; r < rows; r++, sums += HTPW_AVX2_BLOCK * u->blocks, y += stride) {
            for (int32_t c = 0; c < u->count; c++) {
                y[c] = htpw_output_s8(u->q, u->o + c, (uint32_t)sums[c]);
            }
        }
    }
}

/* Matrix products. */

struct htpw_avx2_row {
    __m256i a, b;
};

HTPW_AVX2_INLINE struct htpw_avx2_row htpw_avx2_load_row(const void *p, size_t apart, const int blocks) {
    struct htpw_avx2_row v;
    v.a = htpw_avx2_load(p);
    v.b = blocks > 1 ? htpw_avx2_load((const uint8_t *)p + apart) : v.a;
    return v;
}

/* Two products for each channel of a group. */
HTPW_AVX2_INLINE void htpw_avx2_step(struct htpw_avx2_row *s, const int16_t *x, const struct htpw_avx2_row *w,
                                     const int blocks) {
    const __m256i v = _mm256_broadcastd_epi32(_mm_loadu_si32(x));
    s->a = _mm256_add_epi32(s->a, _mm256_madd_epi16(v, w->a));
    s->b = blocks > 1 ? _mm256_add_epi32(s->b, _mm256_madd_epi16(v, w->b)) : s->b;
}

/* sums[rows][8 * blocks] of one tile. The rows have names instead of indices: compilers keep named structs in
 * registers, arrays only sometimes. */
#define HTPW_AVX2_EACH_ROW(X) X(0) X(1) X(2) X(3)

HTPW_AVX2_INLINE void htpw_avx2_tile(const int rows, const int blocks, int32_t steps, const int16_t *x, const int8_t *w,
                                     const int32_t *first, int32_t *sums) {
    const size_t pitch = 2 * (size_t)steps, block = (size_t)steps * 32;
    const struct htpw_avx2_row start = htpw_avx2_load_row(first, 32, blocks);
#define HTPW_AVX2_START(r) struct htpw_avx2_row s##r = start;
    HTPW_AVX2_EACH_ROW(HTPW_AVX2_START)
    for (int32_t i = 0; i < steps; i++, x += 2, w += 32) {
        const struct htpw_avx2_row v = htpw_avx2_load_row(w, block, blocks);
#define HTPW_AVX2_ADD(r)                                                                                               \
    if ((r) < rows) {                                                                                                  \
        htpw_avx2_step(&s##r, x + (r) * pitch, &v, blocks);                                                            \
    }
        HTPW_AVX2_EACH_ROW(HTPW_AVX2_ADD)
    }
#define HTPW_AVX2_STORE(r)                                                                                             \
    htpw_avx2_store(sums + (r) * HTPW_AVX2_BLOCK * blocks, s##r.a);                                                    \
    if (blocks > 1) {                                                                                                  \
        htpw_avx2_store(sums + (r) * HTPW_AVX2_BLOCK * blocks + HTPW_AVX2_BLOCK, s##r.b);                              \
    }
    HTPW_AVX2_EACH_ROW(HTPW_AVX2_STORE)
}

static HTPW_AVX2 void htpw_avx2_run_tile(int32_t rows, int32_t blocks, int32_t steps, const int16_t *x, const int8_t *w,
                                         const int32_t *first, int32_t *sums) {
    if (blocks == 2) {
        if (rows == 1) {
            htpw_avx2_tile(1, 2, steps, x, w, first, sums);
        } else {
            htpw_avx2_tile(HTPW_AVX2_ROWS, 2, steps, x, w, first, sums);
        }
    } else {
        htpw_avx2_tile(HTPW_AVX2_ROWS, 1, steps, x, w, first, sums);
    }
}

/* n values of x + in_offset. */
static HTPW_AVX2 void htpw_avx2_copy(const int8_t *x, int32_t n, int32_t in_offset, int16_t *to) {
    const __m256i offset = _mm256_set1_epi16((int16_t)in_offset);
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        htpw_avx2_store(to + i, _mm256_add_epi16(htpw_avx2_widen(x + i), offset));
    }
    if (i + 8 <= n) {
        const __m128i v = _mm_cvtepi8_epi16(_mm_loadl_epi64((const void *)(x + i)));
        _mm_storeu_si128((void *)(to + i), _mm_add_epi16(v, _mm256_castsi256_si128(offset)));
        i += 8;
    }
    for (; i < n; i++) {
        to[i] = (int16_t)(x[i] + in_offset);
    }
}

static int16_t *htpw_avx2_zeros(int32_t n, int16_t *to) {
    for (int32_t i = 0; i < n; i++) {
        to[i] = 0;
    }
    return to + n;
}

/* All that one output cell of a convolution reads, in the order of its weights. */
static HTPW_AVX2 void htpw_avx2_patch(const struct htpw_avx2_source *s, struct htpw_row row, int16_t *to) {
    const int8_t *from = htpw_patch_inside(s->g, row, s->x);
    if (from != NULL) {
        const int32_t n = s->g->k_w * s->g->in_c;
        const size_t line = (size_t)s->g->dil_h * (size_t)s->g->in_w * (size_t)s->g->in_c;
        for (int32_t ky = 0; ky < s->g->k_h; ky++, to += n) {
            htpw_avx2_copy(from + (size_t)ky * line, n, s->in_offset, to);
        }
        htpw_avx2_zeros(s->products & 1, to);
        return;
    }
    struct htpw_patch p = htpw_patch_begin(s->g, s->group, row, s->x);
    for (int32_t n; (n = htpw_patch_next(&p, &from)) > 0; to += n) {
        if (from != NULL) {
            htpw_avx2_copy(from, n, s->in_offset, to);
        } else {
            htpw_avx2_zeros(n, to);
        }
    }
    htpw_avx2_zeros(s->products & 1, to);
}

/* Rows row .. row + rows - 1, each filled up to whole steps. */
static HTPW_AVX2 void htpw_avx2_rows(const struct htpw_avx2_source *s, int32_t row, int32_t rows, int16_t *to) {
    const int32_t odd = s->products & 1;
    const int8_t *x = s->x + (size_t)row * (size_t)s->products;
    if (s->g == NULL && !odd) {
        htpw_avx2_copy(x, rows * s->products, s->in_offset, to);
        return;
    }
    if (s->g == NULL) {
        for (int32_t r = 0; r < rows; r++, to += s->products + odd) {
            htpw_avx2_copy(x + (size_t)r * (size_t)s->products, s->products, s->in_offset, to);
            htpw_avx2_zeros(odd, to + s->products);
        }
        return;
    }
    struct htpw_row at = htpw_row_at(s->g, row);
    for (int32_t r = 0; r < rows; r++, to += s->products + odd, htpw_row_next(s->g, &at)) {
        htpw_avx2_patch(s, at, to);
    }
}

/* One block of row-major weights into the cache layout; rows beyond `rows` are 0. */
static HTPW_AVX2 void htpw_avx2_pack(const int8_t *w, int32_t products, int32_t rows, int8_t *packed) {
    for (int32_t i = 0; i < products; i += 16, packed += 8 * 32) {
        const int32_t left = products - i, steps = left >= 16 ? 8 : (left + 1) / 2;
        for (int32_t o = 0; o < HTPW_AVX2_BLOCK; o += 4) { /* 4 x 4 pairs are transposed in each half */
            __m256i v[4];
            int32_t words[4][8];
            for (int32_t j = 0; j < 4; j++) {
                const int8_t *from = w + (size_t)(o + j) * (size_t)products + i;
                int8_t bytes[16] = {0};
                if (o + j < rows && left < 16) {
                    htpw_avx2_bytes(left, from, bytes);
                }
                v[j] = htpw_avx2_widen(o + j < rows && left >= 16 ? from : bytes);
            }
            const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
            const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
            htpw_avx2_store(words[0], _mm256_unpacklo_epi64(a, c));
            htpw_avx2_store(words[1], _mm256_unpackhi_epi64(a, c));
            htpw_avx2_store(words[2], _mm256_unpacklo_epi64(b, d));
            htpw_avx2_store(words[3], _mm256_unpackhi_epi64(b, d));
            for (int32_t j = 0; j < steps; j++) {
                const int32_t *quarter = words[j % 4] + (j & ~3);
                _mm_storeu_si128((void *)(packed + 32 * j + 4 * o), _mm_loadu_si128((const void *)quarter));
            }
        }
    }
}

/* y[rows][out_c], rows `stride` apart. Weights are `packed`, or row-major in `w`. */
static HTPW_AVX2 void htpw_avx2_matmul(const struct htpw_avx2_source *s, int32_t rows, int32_t out_c,
                                       const struct htpw_requant *q, const int8_t *packed, const int8_t *w,
                                       const int32_t *bias, void *scratch, size_t stride, int8_t *y) {
    const int32_t steps = (s->products + 1) / 2, total = (out_c + HTPW_AVX2_BLOCK - 1) / HTPW_AVX2_BLOCK;
    const size_t pitch = 2 * (size_t)steps, block_bytes = 32 * (size_t)steps;
    int16_t *xs = (int16_t *)scratch;
    int8_t *ws = (int8_t *)(xs + HTPW_AVX2_ROWS * pitch);
    struct htpw_avx2_group u HTPW_AVX2_ALIGNED;
    int32_t sums[2 * HTPW_AVX2_LANES] HTPW_AVX2_ALIGNED;
    for (int32_t block = 0; block < total; block += u.blocks) {
        const int32_t blocks = total - block >= 2 ? 2 : 1, o = block * HTPW_AVX2_BLOCK, most = blocks * HTPW_AVX2_BLOCK;
        const int8_t *weights = packed != NULL ? packed + (size_t)block * block_bytes : ws;
        for (int32_t b = 0; packed == NULL && b < blocks; b++) {
            const int32_t c = o + b * HTPW_AVX2_BLOCK;
            htpw_avx2_pack(w + (size_t)c * (size_t)s->products, s->products, out_c - c, ws + (size_t)b * block_bytes);
        }
        htpw_avx2_begin(&u, q, s->products, bias, NULL, o, out_c - o < most ? out_c - o : most, blocks);
        for (int32_t r = 0; r < rows; r += HTPW_AVX2_ROWS) {
            const int32_t n = rows - r < HTPW_AVX2_ROWS ? rows - r : HTPW_AVX2_ROWS;
            htpw_avx2_rows(s, r, n, xs);
            /* sums of missing rows are dropped */
            htpw_avx2_zeros((HTPW_AVX2_ROWS - n) * (int32_t)pitch, xs + (size_t)n * pitch);
            htpw_avx2_run_tile(n, blocks, steps, xs, weights, u.first, sums);
            htpw_avx2_finish(&u, n, sums, stride, y + (size_t)r * stride + o);
        }
    }
}

/* A few rows by row-major weights: dot products along the rows of both. */
static HTPW_AVX2 void htpw_avx2_dots(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                     int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias,
                                     int16_t *xs, int8_t *y) {
    for (int32_t r = 0; r < rows; r++, x += in_c, y += out_c) {
        htpw_avx2_copy(x, in_c, in_offset, xs);
        for (int32_t o = 0; o < out_c; o++) {
            const int8_t *row = w + (size_t)o * (size_t)in_c;
            __m256i v = _mm256_setzero_si256();
            int32_t i = 0;
            for (; i + 16 <= in_c; i += 16) {
                v = _mm256_add_epi32(v, _mm256_madd_epi16(htpw_avx2_widen(row + i), htpw_avx2_load(xs + i)));
            }
            __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
            half = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
            uint32_t sum = (uint32_t)_mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 1)));
            for (; i < in_c; i++) {
                sum += (uint32_t)(xs[i] * row[i]);
            }
            y[o] = htpw_output_s8(q, o, sum + htpw_bias(bias, o));
        }
    }
}

static HTPW_AVX2 void htpw_packed_s8_avx2(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                          int32_t in_offset, const int8_t *x, const void *packed, const int32_t *bias,
                                          void *scratch, int8_t *y) {
    const struct htpw_avx2_source s = {x, in_c, NULL, 0, in_offset};
    htpw_avx2_matmul(&s, rows, out_c, q, (const int8_t *)packed, NULL, bias, scratch, (size_t)out_c, y);
}

static HTPW_AVX2 void htpw_conv1x1_s8_avx2(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                           int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias,
                                           void *scratch, int8_t *y) {
    const struct htpw_avx2_source s = {x, in_c, NULL, 0, in_offset};
    if (rows <= HTPW_AVX2_DOTS) {
        htpw_avx2_dots(rows, in_c, out_c, q, in_offset, x, w, bias, (int16_t *)scratch, y);
    } else {
        htpw_avx2_matmul(&s, rows, out_c, q, NULL, w, bias, scratch, (size_t)out_c, y);
    }
}

static HTPW_AVX2 void htpw_conv_s8_avx2(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                        const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch,
                                        int8_t *y) {
    for (int32_t group = 0; group < g->groups; group++) {
        const struct htpw_group part = htpw_group_of(g, q, group, w, bias);
        const struct htpw_avx2_source s = {x, part.products, g, group, in_offset};
        htpw_avx2_matmul(&s, g->n * g->out_h * g->out_w, part.out_c, &part.q, NULL, part.w, part.bias, scratch,
                         (size_t)g->out_c, y + part.o);
    }
}

const struct htpw_backend htpw_backend_x86_avx2 = {
    HTPW_BACKEND_X86_AVX2, htpw_conv_s8_avx2,    htpw_depthwise_s8_avx2, htpw_conv1x1_s8_avx2,  htpw_packed_s8_avx2,
    htpw_add_s8_avx2,      htpw_avgpool_s8_avx2, htpw_maxpool_s8_avx2,   htpw_conv1x1_s4_plain, NULL};

#else

typedef int htpw_avx2_linear_is_not_built; /* C99 asks for at least one declaration */

#endif
