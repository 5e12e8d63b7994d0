/* htpw_vnni.h - what the files of the AVX-512 VNNI backend share: when it is built, and requantisation.
 *
 * Words used here: a block is 16 output channels, one register of sums; a group is the 1, 2 or 4 blocks that share the
 * loads of x; a quad is 4 registers of sums, which make 64 bytes of output. Why all of it is exact: README.md.
 */
#ifndef HTPW_VNNI_H
#define HTPW_VNNI_H

#include "../htpw_backend.h"

/* The functions name their instruction set themselves, so that the files need no flags. */
#if defined(__x86_64__) && defined(__GNUC__) && !HTPW_SMALL && !defined(HTPW_CONFIG_NO_X86_AVX512VNNI)
#define HTPW_HAS_X86_AVX512VNNI

#include <immintrin.h>

#include "../../kernels/htpw_requantise.h"
#include "../htpw_x86.h"

#define HTPW_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define HTPW_VNNI_INLINE static inline HTPW_VNNI __attribute__((always_inline))
#define HTPW_VNNI_QUAD __attribute__((aligned(64)))

enum {
    HTPW_VNNI_BLOCK = 16,
    HTPW_VNNI_FLIP = -128,
    HTPW_VNNI_LANES = 64,      /* of a quad */
    HTPW_VNNI_ROWS = 12,       /* of x in scratch, at most; with 64 rows of w that is the rule's 2 * row_block = 76 */
    HTPW_VNNI_DOTS = 3,        /* for so few rows, packing weights costs more than it saves */
    HTPW_VNNI_TAPS = 128,      /* of a depthwise kernel; the portable code takes larger ones */
    HTPW_VNNI_PRODUCTS = 16384 /* in a sum that the vector code requantises: 16384 * 255 * 128 < 2^29 */
};

/* How a group is requantised. */
enum htpw_vnni_mode {
    HTPW_VNNI_NARROW, /* all multipliers are m << 16, as in every image: 16-bit products */
    HTPW_VNNI_WIDE,   /* any multipliers: 64-bit products */
    HTPW_VNNI_SCALAR  /* a sum or shift may be too large for the vector code */
};

/* Constants of a group, one entry for each lane of a quad: those of a small group are repeated. */
struct htpw_vnni_group {
    int32_t first[HTPW_VNNI_LANES]; /* sums begin with bias and corrections */
    int32_t left[HTPW_VNNI_LANES], multiplier[HTPW_VNNI_LANES], low[HTPW_VNNI_LANES];
    int32_t round[HTPW_VNNI_LANES], right[HTPW_VNNI_LANES];
    const struct htpw_requant *q;
    enum htpw_vnni_mode mode;
    int32_t o, count, blocks; /* channels o .. o + count - 1 */
};

/* What the rows of a matrix product are made of. */
struct htpw_vnni_source {
    const int8_t *x;
    int32_t products;            /* columns */
    const struct htpw_window *g; /* rows are patches of x; NULL: x is the matrix */
    int32_t group;               /* of the channels of a patch */
    int8_t padding;              /* the value of x that counts as 0 */
    int8_t flip;                 /* every byte of a copy is xored with it: HTPW_VNNI_FLIP makes x + 128 */
};

HTPW_VNNI_INLINE __mmask64 htpw_vnni_mask64(int32_t n) { return n >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1u; }

HTPW_VNNI_INLINE __mmask16 htpw_vnni_mask16(int32_t n) { return (__mmask16)(n >= 16 ? 0xFFFFu : (1u << n) - 1u); }

/* x + 128 as unsigned bytes, and back. */
HTPW_VNNI_INLINE __m512i htpw_vnni_flip(__m512i x) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }

/* Requantisation. */

/* floor(v * multiplier / 2^30), from y = 4 * v. */
HTPW_VNNI_INLINE __m512i htpw_vnni_high(__m512i y, __m512i multiplier) {
    const __m512i even = _mm512_mul_epi32(y, multiplier);
    const __m512i odd = _mm512_mul_epi32(_mm512_srli_epi64(y, 32), _mm512_srli_epi64(multiplier, 32));
    return _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
}

/* rq of docs/SPEC.md section 2, from y = 4 * (v << L). `low` is the pair (m or 0, 2 or 0), see htpw_vnni_low. */
HTPW_VNNI_INLINE __m512i htpw_vnni_requantise(__m512i y, __m512i multiplier, __m512i low, __m512i round, __m512i right,
                                              const int narrow) {
    const __m512i pair = _mm512_set1_epi32(-0x1FFFF); /* (1, -2) */
    const __m512i t =
        narrow ? _mm512_dpwssd_epi32(round, y, multiplier) : _mm512_add_epi32(round, htpw_vnni_high(y, multiplier));
    return _mm512_srav_epi32(_mm512_dpwssd_epi32(t, _mm512_mulhi_epu16(y, low), pair), right);
}

/* The other constants from the multiplier and the right shift R. */
HTPW_VNNI_INLINE __m512i htpw_vnni_low(__m512i multiplier, __m512i r, const int narrow) {
    const __m512i low = narrow ? _mm512_srli_epi32(multiplier, 16) : _mm512_setzero_si512();
    return _mm512_mask_add_epi32(low, _mm512_test_epi32_mask(r, r), low, _mm512_set1_epi32(2 << 16));
}

HTPW_VNNI_INLINE __m512i htpw_vnni_round(__m512i r) { /* 2^R + 1, but 1 for R = 0 */
    const __m512i one = _mm512_set1_epi32(1);
    return _mm512_add_epi32(_mm512_maskz_sllv_epi32(_mm512_test_epi32_mask(r, r), one, r), one);
}

/* What follows a requantisation. Kept out of memory: y may alias anything, so the compiler would load it again and again. */
struct htpw_vnni_output {
    __m512i offset, low, high;
};

HTPW_VNNI_INLINE struct htpw_vnni_output htpw_vnni_output(int32_t out_offset, int32_t act_min, int32_t act_max) {
    const struct htpw_vnni_output t = {_mm512_set1_epi16((int16_t)out_offset), _mm512_set1_epi8((int8_t)act_min),
                                       _mm512_set1_epi8((int8_t)act_max)};
    return t;
}

/* Four registers of int32 as 64 bytes in the same order. */
HTPW_VNNI_INLINE __m512i htpw_vnni_narrow(const __m512i v[4], const struct htpw_vnni_output *t) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i a = _mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), t->offset);
    const __m512i b = _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), t->offset);
    const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
    return _mm512_min_epi8(_mm512_max_epi8(bytes, t->low), t->high);
}

/* Constants of one register of a quad. */
struct htpw_vnni_factor {
    __m512i left, multiplier, low, round, right;
};

HTPW_VNNI_INLINE __m512i htpw_vnni_scale(__m512i v, const struct htpw_vnni_factor *f, const int narrow) {
    return htpw_vnni_requantise(_mm512_sllv_epi32(v, f->left), f->multiplier, f->low, f->round, f->right, narrow);
}

HTPW_VNNI_INLINE struct htpw_vnni_factor htpw_vnni_factor_of(const struct htpw_vnni_group *u, int32_t at,
                                                             const int narrow) {
    const __m512i low = _mm512_load_si512(u->low + at), sign = _mm512_set1_epi32(2 << 16);
    const struct htpw_vnni_factor f = {_mm512_load_si512(u->left + at), _mm512_load_si512(u->multiplier + at),
                                       narrow ? low : _mm512_and_si512(low, sign), _mm512_load_si512(u->round + at),
                                       _mm512_load_si512(u->right + at)};
    return f;
}

/* Prepares a group of `blocks` blocks; `sums` are those of its rows of weights. */
void htpw_vnni_begin(struct htpw_vnni_group *u, const struct htpw_requant *q, int32_t in_offset, int32_t products,
                     const int32_t *bias, const int32_t *sums, int32_t o, int32_t count, int32_t blocks);

/* Requantises sums[rows][16 * blocks], filled up to whole quads, into rows of y that are `stride` apart. */
void htpw_vnni_finish(const struct htpw_vnni_group *u, int32_t rows, const int32_t *sums, size_t stride, int8_t *y);

/* Copies rows row .. row + rows - 1, each filled up to whole steps of 4 products. */
void htpw_vnni_rows(const struct htpw_vnni_source *s, int32_t row, int32_t rows, uint8_t *to);

/* One block of row-major weights into the cache layout, with the rows' sums; rows beyond `rows` are 0. */
void htpw_vnni_pack(const int8_t *w, int32_t products, int32_t rows, int8_t *packed, int32_t *sums);

void htpw_depthwise_s8_vnni(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                            const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y);
void htpw_add_s8_vnni(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y);
void htpw_avgpool_s8_vnni(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);
void htpw_maxpool_s8_vnni(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);

extern const struct htpw_backend htpw_backend_x86_avx512vnni;

#endif

#endif
