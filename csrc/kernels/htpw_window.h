/* htpw_window.h - sliding windows and dot products shared by the convolutions and pools. Not part of the contract.
 *
 * Padding is never read: each window is cut to the input once, in front of the inner loops.
 */
#ifndef HTPW_WINDOW_H
#define HTPW_WINDOW_H

#include "../htpw_config.h"
#include "htpw_kernels.h"

#define HTPW_LANES 4 /* output channels per step: as many sums as a Cortex-M keeps in registers */

/* The taps first .. end - 1 of one axis that lie inside the input; none if first >= end. */
struct htpw_taps {
    int32_t first, end;
};

/* Cuts `taps` taps at start, start + dilation, .. to 0 .. size - 1. The interior needs no division. */
static inline struct htpw_taps htpw_clip(int32_t start, int32_t taps, int32_t dilation, int32_t size) {
    struct htpw_taps t = {0, taps};
    if (start < 0) {
        t.first = (dilation - 1 - start) / dilation;
    }
    if (start + (taps - 1) * dilation >= size) {
        t.end = (size - start + dilation - 1) / dilation;
    }
    return t;
}

/* The same for the rows of a window, of which 1-D networks have one, inside. */
static inline struct htpw_taps htpw_clip_rows(int32_t start, int32_t taps, int32_t dilation, int32_t size) {
    const struct htpw_taps one = {0, 1};
    return HTPW_WITH(PLANES) ? htpw_clip(start, taps, dilation, size) : one;
}

/* Index of channel 0 of cell (h, w) of batch n. Walks are made with indices, so that no pointer leaves its array. */
static inline size_t htpw_cell(int32_t n, int32_t h, int32_t w, int32_t height, int32_t width, int32_t channels) {
    const size_t row = HTPW_WITH(PLANES) ? (size_t)n * (size_t)height + (size_t)h : 0u;
    return (row * (size_t)width + (size_t)w) * (size_t)channels;
}

/* Distances from weight row 0 to the rows of HTPW_LANES neighbouring outputs, the last repeated beyond `count`: the
 * repeated sums are computed and dropped, which is cheaper than a loop of its own for the remainder. */
static inline void htpw_lane_rows(int32_t count, size_t row, size_t lane[HTPW_LANES]) {
    for (int32_t j = 0; j < HTPW_LANES; j++) {
        lane[j] = row * (size_t)(j < count ? j : count - 1);
    }
}

/* HTPW_CONFIG_SMALL: short loops, in C, with the DSP extension where a Cortex-M has it. */
#if HTPW_SMALL

static inline void htpw_small_start(uint32_t sum[HTPW_LANES]) { /* an initialiser would call memset */
    sum[0] = 0;
    sum[1] = 0;
    sum[2] = 0;
    sum[3] = 0;
}

/* sum[j] += sum_i (x[i] + offset) * w[j * pitch + i], modulo 2^32. */
void htpw_small_dot(int32_t n, int32_t offset, const int8_t *x, const int8_t *w, size_t pitch,
                    uint32_t sum[HTPW_LANES]);

/* Outputs of channels c .. c + count - 1 from their sums, to y. */
void htpw_small_finish(const struct htpw_requant *q, int32_t c, int32_t count, const int32_t *bias, const uint32_t *sum,
                       int8_t *y);

#if defined(__ARM_FEATURE_SIMD32) && defined(__ARM_FEATURE_UNALIGNED) && defined(__GNUC__) && !defined(__ARM_BIG_ENDIAN)
#define HTPW_SMALL_DSP 1

/* A word of four int8 at any address. */
struct htpw_small_word {
    uint32_t value;
} __attribute__((packed, may_alias));

static inline uint32_t htpw_small_load(const int8_t *p) {
    return ((const struct htpw_small_word *)(const void *)p)->value;
}

/* Instructions that compilers do not make of what ACLE offers: bytes 0 and 2, or 1 and 3, by halves, plus a. */
static inline uint32_t htpw_small_even(uint32_t a, uint32_t x) {
    uint32_t r;
    __asm__("sxtab16 %0, %1, %2" : "=r"(r) : "r"(a), "r"(x));
    return r;
}

static inline uint32_t htpw_small_odd(uint32_t a, uint32_t x) {
    uint32_t r;
    __asm__("sxtab16 %0, %1, %2, ror #8" : "=r"(r) : "r"(a), "r"(x));
    return r;
}

/* Four int8 at p, widened. */
static inline uint32_t htpw_small_even0(uint32_t x) {
    uint32_t r;
    __asm__("sxtb16 %0, %1" : "=r"(r) : "r"(x));
    return r;
}

static inline uint32_t htpw_small_odd0(uint32_t x) {
    uint32_t r;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(x));
    return r;
}

/* sum + products of halves, modulo 2^32: of both, of the low ones, of the high ones. */
#define HTPW_SMALL_PRODUCT(name)                                                                                       \
    static inline uint32_t htpw_small_##name(uint32_t a, uint32_t b, uint32_t sum) {                                   \
        uint32_t r;                                                                                                    \
        __asm__(#name " %0, %1, %2, %3" : "=r"(r) : "r"(a), "r"(b), "r"(sum));                                         \
        return r;                                                                                                      \
    }
HTPW_SMALL_PRODUCT(smlad)
HTPW_SMALL_PRODUCT(smlabb)
HTPW_SMALL_PRODUCT(smlatt)
#undef HTPW_SMALL_PRODUCT

/* Four channels of a window of n taps: sum[j] += sum_k (x[k * x_step + j] + offset) * w[k * w_step + j]. offset2: in each half. */
void htpw_small_taps(int32_t n, uint32_t offset2, const int8_t *x, size_t x_step, const int8_t *w, size_t w_step,
                     uint32_t sum[HTPW_LANES]);

/* a * b / 2^32, to nearest. */
static inline int32_t htpw_small_high(int32_t a, int32_t b) {
    int32_t r;
    __asm__("smmulr %0, %1, %2" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
#endif
#endif

/* sum[j] += sum_i (x[i] + offset) * w[lane[j] + i], modulo 2^32. */
static inline void htpw_dot_lanes(int32_t n, int32_t offset, const int8_t *x, const int8_t *w,
                                  const size_t lane[HTPW_LANES], uint32_t sum[HTPW_LANES]) {
    const int8_t *w0 = w + lane[0], *w1 = w + lane[1], *w2 = w + lane[2], *w3 = w + lane[3];
    uint32_t s0 = sum[0], s1 = sum[1], s2 = sum[2], s3 = sum[3];
    for (int32_t i = 0; i < n; i++) {
        const int16_t v = (int16_t)(x[i] + offset); /* 16 x 16 bit products vectorise best on x86 */
        s0 += (uint32_t)(v * w0[i]);
        s1 += (uint32_t)(v * w1[i]);
        s2 += (uint32_t)(v * w2[i]);
        s3 += (uint32_t)(v * w3[i]);
    }
    sum[0] = s0;
    sum[1] = s1;
    sum[2] = s2;
    sum[3] = s3;
}

#endif
