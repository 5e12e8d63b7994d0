/* htpw_avx2.h - what the files of the AVX2 backend share: when it is built, and requantisation.
 *
 * Words used here: a block is 8 output channels, one register of sums; a group is the 1 or 2 blocks that share the loads of
 * x; a quad is 4 registers of sums, which make 32 bytes of output. Why all of it is exact: README.md.
 */
#ifndef HTPW_AVX2_H
#define HTPW_AVX2_H

#include "../htpw_backend.h"

/* The functions name their instruction set themselves, so that the files need no flags. */
#if defined(__x86_64__) && defined(__GNUC__) && !HTPW_SMALL && !defined(HTPW_CONFIG_NO_X86_AVX2)
#define HTPW_HAS_X86_AVX2

#include <immintrin.h>

#include "../../kernels/htpw_requantise.h"
#include "../htpw_x86.h"

#define HTPW_AVX2 __attribute__((target("avx2")))
#define HTPW_AVX2_INLINE static inline HTPW_AVX2 __attribute__((always_inline))
#define HTPW_AVX2_ALIGNED __attribute__((aligned(32)))

enum {
    HTPW_AVX2_BLOCK = 8,
    HTPW_AVX2_LANES = 32,      /* of a quad */
    HTPW_AVX2_ROWS = 4,        /* of x in scratch; with 16 rows of w that is the rule's row_block of 20 */
    HTPW_AVX2_DOTS = 3,        /* for so few rows, packing weights costs more than it saves */
    HTPW_AVX2_CHANNELS = 16,   /* of a depthwise kernel at one time */
    HTPW_AVX2_TAPS = 128,      /* of a depthwise kernel; the portable code takes larger ones */
    HTPW_AVX2_PRODUCTS = 16384 /* in a sum that the vector code requantises: 16384 * 255 * 128 < 2^29 */
};

/* How a group is requantised. */
enum htpw_avx2_mode {
    HTPW_AVX2_NARROW, /* all multipliers are m << 16, as in every image: 16-bit products */
    HTPW_AVX2_WIDE,   /* any multipliers: 64-bit products */
    HTPW_AVX2_SCALAR  /* a sum or shift may be too large for the vector code */
};

/* Constants of a group, one entry for each lane of a quad: those of a small group are repeated. */
struct htpw_avx2_group {
    int32_t first[HTPW_AVX2_LANES]; /* sums begin with the bias */
    int32_t left[HTPW_AVX2_LANES], multiplier[HTPW_AVX2_LANES], low[HTPW_AVX2_LANES];
    int32_t round[HTPW_AVX2_LANES], right[HTPW_AVX2_LANES];
    const struct htpw_requant *q;
    enum htpw_avx2_mode mode;
    int32_t o, count, blocks; /* channels o .. o + count - 1 */
};

HTPW_AVX2_INLINE __m256i htpw_avx2_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

HTPW_AVX2_INLINE void htpw_avx2_store(void *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }

HTPW_AVX2_INLINE __m256i htpw_avx2_widen(const int8_t *p) { /* 16 bytes to int16 */
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)p));
}

static inline void htpw_avx2_bytes(int32_t n, const int8_t *from, int8_t *to) {
    for (int32_t i = 0; i < n; i++) {
        to[i] = from[i];
    }
}

/* Requantisation. */

/* floor(v * multiplier / 2^30), from y = 4 * v. */
HTPW_AVX2_INLINE __m256i htpw_avx2_high(__m256i y, __m256i multiplier) {
    const __m256i even = _mm256_mul_epi32(y, multiplier);
    const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(y, 32), _mm256_srli_epi64(multiplier, 32));
    return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}

/* rq of docs/SPEC.md section 2, from y = 4 * (v << L). `low` is the pair (m or 0, 2 or 0), see htpw_avx2_low. */
HTPW_AVX2_INLINE __m256i htpw_avx2_requantise(__m256i y, __m256i multiplier, __m256i low, __m256i round, __m256i right,
                                              const int narrow) {
    const __m256i pair = _mm256_set1_epi32(-0x1FFFF); /* (1, -2) */
    const __m256i high = narrow ? _mm256_madd_epi16(y, multiplier) : htpw_avx2_high(y, multiplier);
    const __m256i rest = _mm256_madd_epi16(_mm256_mulhi_epu16(y, low), pair);
    return _mm256_srav_epi32(_mm256_add_epi32(_mm256_add_epi32(round, high), rest), right);
}

/* The other constants from the multiplier and the right shift R. */
HTPW_AVX2_INLINE __m256i htpw_avx2_low(__m256i multiplier, __m256i r, const int narrow) {
    const __m256i sign = _mm256_and_si256(_mm256_cmpgt_epi32(r, _mm256_setzero_si256()), _mm256_set1_epi32(2 << 16));
    return narrow ? _mm256_or_si256(_mm256_srli_epi32(multiplier, 16), sign) : sign;
}

HTPW_AVX2_INLINE __m256i htpw_avx2_round(__m256i r) { /* 2^R + 1, but 1 for R = 0 */
    const __m256i one = _mm256_set1_epi32(1);
    const __m256i half = _mm256_and_si256(_mm256_sllv_epi32(one, r), _mm256_cmpgt_epi32(r, _mm256_setzero_si256()));
    return _mm256_add_epi32(half, one);
}

/* What follows a requantisation. Kept out of memory: y may alias anything, so the compiler would load it again and again. */
struct htpw_avx2_output {
    __m256i offset, low, high;
};

HTPW_AVX2_INLINE struct htpw_avx2_output htpw_avx2_output(int32_t out_offset, int32_t act_min, int32_t act_max) {
    const struct htpw_avx2_output t = {_mm256_set1_epi16((int16_t)out_offset), _mm256_set1_epi8((int8_t)act_min),
                                       _mm256_set1_epi8((int8_t)act_max)};
    return t;
}

/* Four registers of int32 as 32 bytes in the same order. */
HTPW_AVX2_INLINE __m256i htpw_avx2_narrow(const __m256i v[4], const struct htpw_avx2_output *t) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i a = _mm256_adds_epi16(_mm256_packs_epi32(v[0], v[1]), t->offset);
    const __m256i b = _mm256_adds_epi16(_mm256_packs_epi32(v[2], v[3]), t->offset);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);
    return _mm256_min_epi8(_mm256_max_epi8(bytes, t->low), t->high);
}

/* Constants of one register of a quad. */
struct htpw_avx2_factor {
    __m256i left, multiplier, low, round, right;
};

HTPW_AVX2_INLINE __m256i htpw_avx2_scale(__m256i v, const struct htpw_avx2_factor *f, const int narrow) {
    return htpw_avx2_requantise(_mm256_sllv_epi32(v, f->left), f->multiplier, f->low, f->round, f->right, narrow);
}

/* Prepares a group of `blocks` blocks. `extra` is added to the biases, one per channel; NULL: nothing. */
void htpw_avx2_begin(struct htpw_avx2_group *u, const struct htpw_requant *q, int32_t products, const int32_t *bias,
                     const int32_t *extra, int32_t o, int32_t count, int32_t blocks);

/* Requantises sums[rows][8 * blocks], filled up to whole quads, into rows of y that are `stride` apart. */
void htpw_avx2_finish(const struct htpw_avx2_group *u, int32_t rows, const int32_t *sums, size_t stride, int8_t *y);

void htpw_depthwise_s8_avx2(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                            const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y);
void htpw_add_s8_avx2(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y);
void htpw_avgpool_s8_avx2(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);
void htpw_maxpool_s8_avx2(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);

extern const struct htpw_backend htpw_backend_x86_avx2;

#endif

#endif
