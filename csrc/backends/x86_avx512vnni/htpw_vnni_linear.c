/* htpw_vnni_linear.c - matrix products with AVX-512 VNNI: pointwise, general convolution, fully connected.
 *
 * A step is 4 products of each channel; other words as in htpw_vnni.h.
 */
#include "htpw_vnni.h"

#ifdef HTPW_HAS_X86_AVX512VNNI

HTPW_VNNI void htpw_vnni_begin(struct htpw_vnni_group *u, const struct htpw_requant *q, int32_t in_offset,
                               int32_t products, const int32_t *bias, const int32_t *sums, int32_t o, int32_t count,
                               int32_t blocks) {
    const __m512i none = _mm512_setzero_si512(), correction = _mm512_set1_epi32(in_offset - 128);
    const int32_t fits = products <= HTPW_VNNI_PRODUCTS;
    const __m512i largest = _mm512_set1_epi32(fits ? products * 255 * 128 : 0);
    __mmask16 bad = fits ? 0 : 0xFFFF, wide = 0;
    for (int32_t b = 0; b < blocks; b++) {
        const __mmask16 k = htpw_vnni_mask16(count - HTPW_VNNI_BLOCK * b);
        const int32_t c = o + HTPW_VNNI_BLOCK * b;
        const __m512i m =
            q->per_channel ? _mm512_maskz_loadu_epi32(k, q->multiplier + c) : _mm512_set1_epi32(*q->multiplier);
        const __m512i s = q->per_channel ? _mm512_maskz_loadu_epi32(k, q->shift + c) : _mm512_set1_epi32(*q->shift);
        const __m512i start = bias != NULL ? _mm512_maskz_loadu_epi32(k, bias + c) : none;
        const __m512i l = _mm512_max_epi32(s, none), r = _mm512_sub_epi32(l, s);
        const __m512i sum = _mm512_mullo_epi32(_mm512_loadu_si512(sums + HTPW_VNNI_BLOCK * b), correction);
        /* The vector code holds for |v << L| < 2^29 and R < 30. Sums reach 2^14, which leaves room for L < 15. */
        const __m512i bound = _mm512_add_epi32(_mm512_abs_epi32(start), largest);
        const __m512i over = _mm512_srlv_epi32(bound, _mm512_sub_epi32(_mm512_set1_epi32(29), l));
        bad |= _mm512_test_epi32_mask(over, over) | _mm512_cmplt_epi32_mask(m, none);
        bad |= _mm512_cmpgt_epi32_mask(l, _mm512_set1_epi32(14)) | _mm512_cmpgt_epi32_mask(r, _mm512_set1_epi32(29));
        wide |= _mm512_test_epi32_mask(m, _mm512_set1_epi32(0xFFFF));
        for (int32_t at = HTPW_VNNI_BLOCK * b; at < HTPW_VNNI_LANES; at += HTPW_VNNI_BLOCK * blocks) {
            _mm512_store_si512(u->first + at, _mm512_add_epi32(start, sum));
            _mm512_store_si512(u->left + at, _mm512_add_epi32(l, _mm512_set1_epi32(2)));
            _mm512_store_si512(u->multiplier + at, m);
            _mm512_store_si512(u->low + at, htpw_vnni_low(m, r, 1));
            _mm512_store_si512(u->round + at, htpw_vnni_round(r));
            _mm512_store_si512(u->right + at, _mm512_add_epi32(r, _mm512_set1_epi32(1)));
        }
    }
    u->q = q;
    u->mode = bad ? HTPW_VNNI_SCALAR : wide ? HTPW_VNNI_WIDE : HTPW_VNNI_NARROW;
    u->o = o;
    u->count = count;
    u->blocks = blocks;
}

/* Requantises sums[rows][16 * blocks], filled up to whole quads, into rows of y that are `stride` apart. */
HTPW_VNNI_INLINE void htpw_vnni_finish_as(const struct htpw_vnni_group *u, int32_t rows, const int32_t *sums,
                                          size_t stride, int8_t *y, const int narrow) {
    const struct htpw_vnni_factor f0 = htpw_vnni_factor_of(u, 0, narrow), f1 = htpw_vnni_factor_of(u, 16, narrow);
    const struct htpw_vnni_factor f2 = htpw_vnni_factor_of(u, 32, narrow), f3 = htpw_vnni_factor_of(u, 48, narrow);
    const struct htpw_vnni_output t = htpw_vnni_output(u->q->out_offset, u->q->act_min, u->q->act_max);
    const __mmask64 k = htpw_vnni_mask64(u->count);
    const int32_t blocks = u->blocks;
    for (int32_t r = 0; r < rows; sums += HTPW_VNNI_LANES) {
        const __m512i v[4] = {htpw_vnni_scale(_mm512_load_si512(sums), &f0, narrow),
                              htpw_vnni_scale(_mm512_load_si512(sums + 16), &f1, narrow),
                              htpw_vnni_scale(_mm512_load_si512(sums + 32), &f2, narrow),
                              htpw_vnni_scale(_mm512_load_si512(sums + 48), &f3, narrow)};
        __m512i bytes = htpw_vnni_narrow(v, &t);
        if (blocks == 4) {
            _mm512_mask_storeu_epi8(y, k, bytes);
            y += stride;
            r++;
            continue;
        }
        for (int32_t part = 0; part < 4 && r < rows; part += blocks, r++, y += stride) {
            _mm256_mask_storeu_epi8(y, (__mmask32)k, _mm512_castsi512_si256(bytes));
            bytes = blocks == 1 ? _mm512_alignr_epi32(bytes, bytes, 4) : _mm512_alignr_epi32(bytes, bytes, 8);
        }
    }
}

HTPW_VNNI void htpw_vnni_finish(const struct htpw_vnni_group *u, int32_t rows, const int32_t *sums, size_t stride,
                                int8_t *y) {
    if (u->mode == HTPW_VNNI_NARROW) {
        htpw_vnni_finish_as(u, rows, sums, stride, y, 1);
    } else if (u->mode == HTPW_VNNI_WIDE) {
        htpw_vnni_finish_as(u, rows, sums, stride, y, 0);
    } else {
        for (int32_t r = 0; r < rows; r++, sums += HTPW_VNNI_BLOCK * u->blocks, y += stride) {
            for (int32_t c = 0; c < u->count; c++) {
                y[c] = htpw_output_s8(u->q, u->o + c, (uint32_t)sums[c]);
            }
        }
    }
}

/* Matrix products. */

struct htpw_vnni_row {
    __m512i a, b, c, d;
};

HTPW_VNNI_INLINE struct htpw_vnni_row htpw_vnni_load(const void *p, size_t apart, const int blocks) {
    const int8_t *at = (const int8_t *)p;
    struct htpw_vnni_row v;
    v.a = _mm512_loadu_si512(at);
    v.b = blocks > 1 ? _mm512_loadu_si512(at + apart) : v.a;
    v.c = blocks > 2 ? _mm512_loadu_si512(at + 2 * apart) : v.a;
    v.d = blocks > 2 ? _mm512_loadu_si512(at + 3 * apart) : v.a;
    return v;
}

HTPW_VNNI_INLINE void htpw_vnni_store(const struct htpw_vnni_row *s, int32_t *sums, const int blocks) {
    _mm512_store_si512(sums, s->a);
    if (blocks > 1) {
        _mm512_store_si512(sums + HTPW_VNNI_BLOCK, s->b);
    }
    if (blocks > 2) {
        _mm512_store_si512(sums + 2 * HTPW_VNNI_BLOCK, s->c);
        _mm512_store_si512(sums + 3 * HTPW_VNNI_BLOCK, s->d);
    }
}

/* Four products for each channel of a group. */
HTPW_VNNI_INLINE void htpw_vnni_step(struct htpw_vnni_row *s, const uint8_t *x, const struct htpw_vnni_row *w,
                                     const int blocks) {
    const __m512i v = _mm512_broadcastd_epi32(_mm_loadu_si32(x));
    s->a = _mm512_dpbusd_epi32(s->a, v, w->a);
    s->b = blocks > 1 ? _mm512_dpbusd_epi32(s->b, v, w->b) : s->b;
    s->c = blocks > 2 ? _mm512_dpbusd_epi32(s->c, v, w->c) : s->c;
    s->d = blocks > 2 ? _mm512_dpbusd_epi32(s->d, v, w->d) : s->d;
}

/* sums[rows][16 * blocks] of one tile. The rows have names instead of indices: compilers keep named structs in
 * registers, arrays only sometimes. */
#define HTPW_VNNI_EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

HTPW_VNNI_INLINE void htpw_vnni_tile(const int rows, const int blocks, int32_t steps, const uint8_t *x, size_t pitch,
                                     const int8_t *w, const int32_t *first, int32_t *sums) {
    const size_t block = (size_t)steps * 64;
    const struct htpw_vnni_row start = htpw_vnni_load(first, 64, blocks);
#define HTPW_VNNI_START(r) struct htpw_vnni_row s##r = start;
    HTPW_VNNI_EACH_ROW(HTPW_VNNI_START)
    for (int32_t i = 0; i < steps; i++, x += 4, w += 64) {
        const struct htpw_vnni_row v = htpw_vnni_load(w, block, blocks);
#define HTPW_VNNI_ADD(r)                                                                                               \
    if ((r) < rows) {                                                                                                  \
        htpw_vnni_step(&s##r, x + (r) * pitch, &v, blocks);                                                            \
    }
        HTPW_VNNI_EACH_ROW(HTPW_VNNI_ADD)
    }
#define HTPW_VNNI_STORE(r)                                                                                             \
    if ((r) < rows) {                                                                                                  \
        htpw_vnni_store(&s##r, sums + (r) * HTPW_VNNI_BLOCK * blocks, blocks);                                         \
    }
    HTPW_VNNI_EACH_ROW(HTPW_VNNI_STORE)
}

/* Tile heights that exist for 4, 2 and 1 blocks: whole quads, and no more than 24 registers of sums. */
#define HTPW_VNNI_TILES(X)                                                                                             \
    X(4, 1) X(4, 2) X(4, 4) X(4, 5) X(4, 6) X(2, 2) X(2, 4) X(2, 8) X(2, 12) X(1, 4) X(1, 8) X(1, 12)

/* The lowest tile of at least `rows` rows. */
static int32_t htpw_vnni_height(int32_t blocks, int32_t rows) {
    int32_t height = HTPW_VNNI_ROWS;
#define HTPW_VNNI_LOWER(b, r)                                                                                          \
    if (blocks == (b) && rows <= (r) && (r) < height) {                                                                \
        height = (r);                                                                                                  \
    }
    HTPW_VNNI_TILES(HTPW_VNNI_LOWER)
    return height;
}

static HTPW_VNNI void htpw_vnni_run_tile(int32_t rows, int32_t blocks, int32_t steps, const uint8_t *x, size_t pitch,
                                         const int8_t *w, const int32_t *first, int32_t *sums) {
    switch (16 * blocks + rows) {
#define HTPW_VNNI_CASE(b, r)                                                                                           \
    case 16 * (b) + (r):                                                                                               \
        htpw_vnni_tile(r, b, steps, x, pitch, w, first, sums);                                                         \
        break;
        HTPW_VNNI_TILES(HTPW_VNNI_CASE)
    default:
        break;
    }
}

/* n bytes of x, `flip` applied; with `filled` up to 3 more, of any value, so that the last step is whole. */
HTPW_VNNI_INLINE void htpw_vnni_copy(const int8_t *x, int32_t n, int filled, int8_t flip, uint8_t *to) {
    for (int32_t i = 0; i < n; i += 64) {
        const __m512i v =
            _mm512_xor_si512(_mm512_maskz_loadu_epi8(htpw_vnni_mask64(n - i), x + i), _mm512_set1_epi8(flip));
        _mm512_mask_storeu_epi8(to + i, htpw_vnni_mask64(filled ? (n - i + 3) & ~3 : n - i), v);
    }
}

static HTPW_VNNI void htpw_vnni_fill(int32_t n, int8_t value, uint8_t *to) {
    for (int32_t i = 0; i < n; i += 64) {
        _mm512_mask_storeu_epi8(to + i, htpw_vnni_mask64(n - i), _mm512_set1_epi8(value));
    }
}

/* All that one output cell of a convolution reads, in the order of its weights. */
static HTPW_VNNI void htpw_vnni_patch(const struct htpw_vnni_source *s, struct htpw_row row, uint8_t *to) {
    const int8_t *from = htpw_patch_inside(s->g, row, s->x);
    if (from != NULL) {
        const int32_t n = s->g->k_w * s->g->in_c;
        const size_t line = (size_t)s->g->dil_h * (size_t)s->g->in_w * (size_t)s->g->in_c;
        if (s->g->k_h == 1 && (-n & 15) < 4) { /* whole stores: what loads of 4 bytes want at once is not held up */
            for (int32_t i = 0; i < n; i += 16) {
                const __m128i v = _mm_maskz_loadu_epi8(htpw_vnni_mask16(n - i), from + i);
                _mm_storeu_si128((void *)(to + i), _mm_xor_si128(v, _mm_set1_epi8(s->flip)));
            }
            return;
        }
        for (int32_t ky = 0; ky < s->g->k_h; ky++, to += n) {
            htpw_vnni_copy(from + (size_t)ky * line, n, 0, s->flip, to);
        }
        htpw_vnni_fill(-s->products & 3, 0, to);
        return;
    }
    struct htpw_patch p = htpw_patch_begin(s->g, s->group, row, s->x);
    for (int32_t n; (n = htpw_patch_next(&p, &from)) > 0; to += n) {
        if (from != NULL) {
            htpw_vnni_copy(from, n, 0, s->flip, to);
        } else {
            htpw_vnni_fill(n, (int8_t)(s->padding ^ s->flip), to);
        }
    }
    htpw_vnni_fill(-s->products & 3, 0, to);
}

HTPW_VNNI void htpw_vnni_rows(const struct htpw_vnni_source *s, int32_t row, int32_t rows, uint8_t *to) {
    const size_t pitch = ((size_t)s->products + 3u) & ~(size_t)3u;
    const int8_t *x = s->x + (size_t)row * (size_t)s->products;
    if (s->g == NULL && s->products % 4 == 0) {
        htpw_vnni_copy(x, rows * s->products, 0, s->flip, to);
        return;
    }
    if (s->g == NULL) {
        for (int32_t r = 0; r < rows; r++, to += pitch) {
            htpw_vnni_copy(x + (size_t)r * (size_t)s->products, s->products, 1, s->flip, to);
        }
        return;
    }
    struct htpw_row at = htpw_row_at(s->g, row);
    for (int32_t r = 0; r < rows; r++, to += pitch, htpw_row_next(s->g, &at)) {
        htpw_vnni_patch(s, at, to);
    }
}

HTPW_VNNI void htpw_vnni_pack(const int8_t *w, int32_t products, int32_t rows, int8_t *packed, int32_t *sums) {
    __m512i sum = _mm512_setzero_si512();
    for (int32_t i = 0; i < products; i += 64, packed += 16 * 64) {
        const __mmask64 k = htpw_vnni_mask64(products - i);
        const int32_t steps = products - i >= 64 ? 16 : (products - i + 3) / 4;
        for (int32_t o = 0; o < HTPW_VNNI_BLOCK; o += 4) { /* 4 x 4 words are transposed in each quarter */
            __m512i v[4];
            int32_t words[4][16] HTPW_VNNI_QUAD;
            for (int32_t j = 0; j < 4; j++) {
                v[j] = o + j < rows ? _mm512_maskz_loadu_epi8(k, w + (size_t)(o + j) * (size_t)products + i)
                                    : _mm512_setzero_si512();
            }
            const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
            const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
            _mm512_store_si512(words[0], _mm512_unpacklo_epi64(a, c));
            _mm512_store_si512(words[1], _mm512_unpackhi_epi64(a, c));
            _mm512_store_si512(words[2], _mm512_unpacklo_epi64(b, d));
            _mm512_store_si512(words[3], _mm512_unpackhi_epi64(b, d));
            for (int32_t j = 0; j < steps; j++) {
                const int32_t *quarter = words[j % 4] + (j & ~3);
                _mm_storeu_si128((void *)(packed + 64 * j + 4 * o), _mm_load_si128((const void *)quarter));
            }
        }
        for (int32_t j = 0; j < steps; j++) {
            sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_loadu_si512(packed + 64 * j));
        }
    }
    _mm512_storeu_si512(sums, sum);
}

/* y[rows][out_c], rows `stride` apart. Weights are `packed` with their sums, or row-major in `w`. */
static HTPW_VNNI void htpw_vnni_matmul(const struct htpw_vnni_source *s, int32_t rows, int32_t out_c,
                                       const struct htpw_requant *q, int32_t in_offset, const int8_t *packed,
                                       const int8_t *w, const int32_t *bias, void *scratch, size_t stride, int8_t *y) {
    const int32_t steps = (s->products + 3) / 4, total = (out_c + HTPW_VNNI_BLOCK - 1) / HTPW_VNNI_BLOCK;
    const size_t pitch = 4 * (size_t)steps, block_bytes = HTPW_VNNI_BLOCK * pitch;
    uint8_t *xs = (uint8_t *)scratch;
    int8_t *ws = (int8_t *)scratch + HTPW_VNNI_ROWS * pitch;
    struct htpw_vnni_group u HTPW_VNNI_QUAD;
    int32_t sums[HTPW_VNNI_LANES * 6] HTPW_VNNI_QUAD, own[HTPW_VNNI_LANES];
    for (int32_t block = 0; block < total; block += u.blocks) {
        const int32_t left = total - block, blocks = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        const int32_t o = block * HTPW_VNNI_BLOCK, most = blocks * HTPW_VNNI_BLOCK;
        const int8_t *weights = ws;
        const int32_t *weight_sums = own;
        if (packed != NULL) {
            weights = packed + (size_t)block * block_bytes;
            weight_sums = (const int32_t *)(const void *)(packed + (size_t)total * block_bytes) + o;
        } else {
            for (int32_t b = 0; b < blocks; b++) {
                const int32_t c = o + b * HTPW_VNNI_BLOCK;
                htpw_vnni_pack(w + (size_t)c * (size_t)s->products, s->products, out_c - c,
                               ws + (size_t)b * block_bytes, own + HTPW_VNNI_BLOCK * b);
            }
        }
        htpw_vnni_begin(&u, q, in_offset, s->products, bias, weight_sums, o, out_c - o < most ? out_c - o : most,
                        blocks);

        const int32_t highest = blocks == 4 ? 6 : HTPW_VNNI_ROWS, tiles = (rows + highest - 1) / highest;
        for (int32_t r = 0, t = 0, n; t < tiles; t++, r += n) { /* tiles of about equal height */
            n = (rows - r + tiles - t - 1) / (tiles - t);
            const int32_t height = htpw_vnni_height(blocks, n);
            n = rows - r < height ? rows - r : height;
            if (n <= 0) {
                break;
            }
            htpw_vnni_rows(s, r, n, xs);
            for (int32_t j = n; j < height; j++) { /* sums of repeated rows are dropped */
                for (size_t i = 0; i < pitch; i++) {
                    xs[(size_t)j * pitch + i] = xs[i];
                }
            }
            htpw_vnni_run_tile(height, blocks, steps, xs, pitch, weights, u.first, sums);
            htpw_vnni_finish(&u, n, sums, stride, y + (size_t)r * stride + o);
        }
    }
}

/* A few rows by row-major weights: dot products along the rows of both, in 16 bits. */
static HTPW_VNNI void htpw_vnni_dots(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                     int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias,
                                     int16_t *xs, int8_t *y) {
    const __m512i offset = _mm512_set1_epi16((int16_t)in_offset);
    for (int32_t r = 0; r < rows; r++, x += in_c, y += out_c) {
        for (int32_t i = 0; i < in_c; i += 32) {
            const __mmask32 k = (__mmask32)htpw_vnni_mask64(in_c - i);
            const __m512i v = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(k, x + i));
            _mm512_mask_storeu_epi16(xs + i, k, _mm512_add_epi16(v, offset));
        }
        for (int32_t o = 0; o < out_c; o++) {
            const int8_t *row = w + (size_t)o * (size_t)in_c;
            __m512i sum = _mm512_setzero_si512();
            for (int32_t i = 0; i < in_c; i += 32) {
                const __mmask32 k = (__mmask32)htpw_vnni_mask64(in_c - i);
                const __m512i v = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(k, row + i));
                sum = _mm512_dpwssd_epi32(sum, v, _mm512_maskz_loadu_epi16(k, xs + i));
            }
            y[o] = htpw_output_s8(q, o, (uint32_t)_mm512_reduce_add_epi32(sum) + htpw_bias(bias, o));
        }
    }
}

static HTPW_VNNI void htpw_packed_s8_vnni(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                          int32_t in_offset, const int8_t *x, const void *packed, const int32_t *bias,
                                          void *scratch, int8_t *y) {
    const struct htpw_vnni_source s = {x, in_c, NULL, 0, 0, HTPW_VNNI_FLIP};
    htpw_vnni_matmul(&s, rows, out_c, q, in_offset, (const int8_t *)packed, NULL, bias, scratch, (size_t)out_c, y);
}

static HTPW_VNNI void htpw_conv1x1_s8_vnni(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                           int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias,
                                           void *scratch, int8_t *y) {
    const struct htpw_vnni_source s = {x, in_c, NULL, 0, 0, HTPW_VNNI_FLIP};
    if (rows <= HTPW_VNNI_DOTS) {
        htpw_vnni_dots(rows, in_c, out_c, q, in_offset, x, w, bias, (int16_t *)scratch, y);
    } else {
        htpw_vnni_matmul(&s, rows, out_c, q, in_offset, NULL, w, bias, scratch, (size_t)out_c, y);
    }
}

static HTPW_VNNI void htpw_conv_s8_vnni(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                        const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch,
                                        int8_t *y) {
    for (int32_t group = 0; group < g->groups; group++) {
        const struct htpw_group part = htpw_group_of(g, q, group, w, bias);
        const struct htpw_vnni_source s = {x, part.products, g, group, (int8_t)-in_offset, HTPW_VNNI_FLIP};
        htpw_vnni_matmul(&s, g->n * g->out_h * g->out_w, part.out_c, &part.q, in_offset, NULL, part.w, part.bias,
                         scratch, (size_t)g->out_c, y + part.o);
    }
}

const struct htpw_backend htpw_backend_x86_avx512vnni = {HTPW_BACKEND_X86_AVX512VNNI, htpw_conv_s8_vnni,
                                                         htpw_depthwise_s8_vnni,      htpw_conv1x1_s8_vnni,
                                                         htpw_packed_s8_vnni,         htpw_add_s8_vnni,
                                                         htpw_avgpool_s8_vnni,        htpw_maxpool_s8_vnni,
                                                         htpw_conv1x1_s4_plain,       NULL};

#else

typedef int htpw_vnni_linear_is_not_built; /* C99 asks for at least one declaration */

#endif
