/* htpw_dsp.h - what the files of the Armv7E-M backend share: when it is built, SIMD instructions, and requantisation.
 *
 * Sums are kept doubled: widened x holds 2 * (x + in_offset), which fits int16 easily, biases are doubled when they are
 * loaded, and SPEC section 7 (|sum| < 2^30) keeps the doubled sum inside int32. The doubling makes the instructions that
 * return the upper half of a product return the 31-bit shift of SPEC section 2 without a shift in front of them.
 */
#ifndef HTPW_DSP_H
#define HTPW_DSP_H

#include "../htpw_backend.h"

/* Cortex-M with the DSP extension and without Helium, little-endian, compiled by GCC or clang. */
#if defined(__ARM_FEATURE_DSP) && defined(__ARM_ARCH_PROFILE) && !defined(__ARM_FEATURE_MVE) &&                        \
    !defined(__ARM_BIG_ENDIAN) && defined(__GNUC__) && !HTPW_SMALL && !defined(HTPW_CONFIG_NO_ARMV7EM_DSP)
#if __ARM_ARCH_PROFILE == 'M'
#define HTPW_HAS_ARMV7EM_DSP 1
#endif
#endif

#ifdef HTPW_HAS_ARMV7EM_DSP

#include <arm_acle.h>

extern const struct htpw_backend htpw_backend_armv7em_dsp, htpw_backend_armv7em_dsp_wide;

#define HTPW_DSP_INLINE static inline __attribute__((always_inline))
#if HTPW_WITH(UNROLL) /* compilers copy these to where they are called */
#define HTPW_DSP_SHORT
#define HTPW_DSP_ONCE static
#else
#define HTPW_DSP_SHORT __attribute__((cold, noinline)) /* what is done around assembly, not for every output: made small */
#define HTPW_DSP_ONCE static __attribute__((noinline)) /* one copy for all who call it */
#endif

/* A word at any address; Armv7-M loads and stores it with one instruction. */
struct htpw_dsp_word {
    uint32_t value;
} __attribute__((packed, may_alias));

HTPW_DSP_INLINE uint32_t htpw_dsp_load(const int8_t *p) {
    return ((const struct htpw_dsp_word *)(const void *)p)->value;
}

HTPW_DSP_INLINE void htpw_dsp_store(int8_t *p, uint32_t word) {
    ((struct htpw_dsp_word *)(void *)p)->value = word;
}

/* Instructions that ACLE has no name for, or that compilers do not make of its names. */
HTPW_DSP_INLINE uint32_t htpw_sxtab16(uint32_t a, uint32_t x) { /* a + bytes 0 and 2 of x, by halves */
    uint32_t r;
    __asm__("sxtab16 %0, %1, %2" : "=r"(r) : "r"(a), "r"(x));
    return r;
}

HTPW_DSP_INLINE uint32_t htpw_sxtab16_ror8(uint32_t a, uint32_t x) { /* a + bytes 1 and 3 */
    uint32_t r;
    __asm__("sxtab16 %0, %1, %2, ror #8" : "=r"(r) : "r"(a), "r"(x));
    return r;
}

HTPW_DSP_INLINE uint32_t htpw_pkhbt(uint32_t low, uint32_t high) { /* low half of each */
    uint32_t r;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(r) : "r"(low), "r"(high));
    return r;
}

HTPW_DSP_INLINE uint32_t htpw_pkhtb(uint32_t low, uint32_t high) { /* high half of each */
    uint32_t r;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(r) : "r"(high), "r"(low));
    return r;
}

HTPW_DSP_INLINE int32_t htpw_smmlar(int32_t a, int32_t b, int32_t c) { /* c + (a * b + 2^31 >> 32) */
    int32_t r;
    __asm__("smmlar %0, %1, %2, %3" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

HTPW_DSP_INLINE int32_t htpw_smmulr(int32_t a, int32_t b) {
    int32_t r;
    __asm__("smmulr %0, %1, %2" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

HTPW_DSP_INLINE int32_t htpw_ssat8(int32_t v) { /* limited to int8 */
    int32_t r;
    __asm__("ssat %0, #8, %1" : "=r"(r) : "r"(v) : "cc");
    return r;
}

/* Four int8, each the larger (smaller) of its two. The comparison lives in the GE flags between the two instructions. */
HTPW_DSP_INLINE uint32_t htpw_max4(uint32_t a, uint32_t b) {
    uint32_t r;
    __asm__("ssub8 %0, %1, %2\n\tsel %0, %1, %2" : "=&r"(r) : "r"(a), "r"(b) : "cc");
    return r;
}

HTPW_DSP_INLINE uint32_t htpw_min4(uint32_t a, uint32_t b) {
    uint32_t r;
    __asm__("ssub8 %0, %1, %2\n\tsel %0, %2, %1" : "=&r"(r) : "r"(a), "r"(b) : "cc");
    return r;
}

/* Four int8 in one word, the first lowest; of each only the low byte counts. */
HTPW_DSP_INLINE uint32_t htpw_pack4(int32_t a, int32_t b, int32_t c, int32_t d) {
    __asm__("bfi %0, %1, #8, #8\n\tbfi %0, %2, #16, #8\n\tbfi %0, %3, #24, #8" : "+&r"(a) : "r"(b), "r"(c), "r"(d));
    return (uint32_t)a;
}

/* Requantisation of one call.
 *
 * "Quick" is SPEC section 2 for a channel with R = -shift in [1, HTPW_DSP_QUICK_MAX], from a doubled sum v2 = 2 * v:
 *     quick(v2) = (smmlar(v2, M, c) + (v2 >> 31)) >> R,  c = zp_out * 2^R + 2^(R-1) = (2 * zp_out + 1) << (R - 1)
 * 1. smmlar(v2, M, c) = c + ((2 * v * M + 2^31) >> 32) = c + ((v * M + 2^30) >> 31) = c + h.
 * 2. To nearest with ties away from zero is floor((h + 2^(R-1)) / 2^R) for h >= 0 and floor((h - 1 + 2^(R-1)) / 2^R) for
 *    h < 0: taking 1 off changes the floor only of exact ties, which it moves down. Step 3 of the SPEC is the same rule.
 * 3. v2 >> 31 is -1 where v < 0 and else 0. M >= 0, so h < 0 implies v < 0; and where v < 0 but h = 0 the -1 is harmless:
 *    floor((0 - 1 + 2^(R-1)) / 2^R) = 0 for R >= 1.
 * 4. zp_out * 2^R in front of the shift is zp_out behind it. |h| < 2^30, |c| <= 128 * 2^22 + 2^21 < 2^30: no overflow. */
#define HTPW_DSP_QUICK_MAX 22

struct htpw_dsp_output {
    const struct htpw_requant *q;
    uint32_t low, high;  /* clamp limits, in each byte */
    int32_t is_quick;    /* every channel is */
    int32_t is_full;     /* the clamp is all of int8 */
};

HTPW_DSP_INLINE int32_t htpw_dsp_quick(int32_t v2, int32_t multiplier, int32_t rounding, int32_t right) {
    return htpw_ssat8((htpw_smmlar(v2, multiplier, rounding) + (v2 >> 31)) >> right);
}

HTPW_DSP_INLINE int32_t htpw_dsp_rounding(const struct htpw_requant *q, int32_t right) {
    return (int32_t)((uint32_t)(2 * q->out_offset + 1) << (right - 1));
}

HTPW_DSP_INLINE uint32_t htpw_dsp_clamp4(uint32_t four, const struct htpw_dsp_output *k) {
    return k->is_full ? four : htpw_min4(htpw_max4(four, k->low), k->high);
}

void htpw_dsp_output_start(struct htpw_dsp_output *k, const struct htpw_requant *q, int32_t channels);

/* One output of channel o from its doubled sum, for any multiplier, shift and clamp. */
int8_t htpw_dsp_output_any(const struct htpw_requant *q, int32_t o, int32_t v2);

/* One or two rows of widened x by the weights of groups of four outputs.
 *   x        two rows: per four columns the words a02 b02 a13 b13 (row-major and packed weights) or a01 b01 a23 b23 (wide);
 *            one row: a02 a13 or a01 a23. Doubled, offset included; filled up with zeros
 *   w        the first group's weights
 *   finish   what to do with the four or eight doubled sums: htpw_dsp_store* puts them to `sum` and ends the job;
 *            the others requantise, store to y and take the next group until y = y_end. Each fits routines of its number;
 *            htpw_dsp_rows1 takes NULL for htpw_dsp_tensor1 */
struct htpw_dsp_job {
    const uint32_t *x;
    const int8_t *w;
    const uint32_t *x_middle, *x_end; /* two rows: end of what unrolled loops take, end */
    const int32_t *bias;              /* NULL: 0 */
    uintptr_t scale[3];               /* channels: address of the multiplier, bytes from there to the shift, 2 * zp_out + 1;
                                         tensor: multiplier, rounding, R */
    int8_t *y, *y_end;
    int32_t out_c;                    /* bytes from row a to row b of y */
    void (*finish)(void);
    int32_t clamps;                   /* 0: the clamp is all of int8; 1: its upper limit is 127; 2: neither */
    uint32_t low, high;               /* clamp limits, in each byte */
    size_t pitch;                     /* row-major, 4-bit: bytes of a row of weights */
    uint32_t steps;                   /* one row, row-major: groups of four columns; wide: of two; 4-bit: of eight */
    uint32_t back;                    /* row-major, 4-bit: bytes to take twice for the last columns; 0: all fit */
    int32_t *sum;
    uint32_t unused;                  /* an even number of words, for the copy */
};

void htpw_dsp_rows2(const struct htpw_dsp_job *job);
void htpw_dsp_rows1(const struct htpw_dsp_job *job);
void htpw_dsp_packed2(const struct htpw_dsp_job *job);
void htpw_dsp_packed1(const struct htpw_dsp_job *job);
void htpw_dsp_wide2(const struct htpw_dsp_job *job);
void htpw_dsp_wide1(const struct htpw_dsp_job *job);
void htpw_dsp_s4_2(const struct htpw_dsp_job *job); /* packed 4-bit weights, at most HTPW_DSP_S4_COLUMNS of them in a row; */
void htpw_dsp_s4_1(const struct htpw_dsp_job *job); /* x not doubled, per eight columns the words a04 b04 a15 b15 .. or a04 .. */
#define HTPW_DSP_S4_COLUMNS 256

void htpw_dsp_store2(void);
void htpw_dsp_store1(void);
void htpw_dsp_channels2(void);
void htpw_dsp_channels1(void);
void htpw_dsp_tensor2(void);
void htpw_dsp_tensor1(void);

/* Most taps of a depthwise kernel whose windows have one row; weights of any kernel take that of 8 bytes of stack. */
#define HTPW_DSP_LINE_TAPS 12
#define HTPW_DSP_TAPS 32

/* Four channels of neighbouring output cells of a depthwise convolution. Weights and biases are doubled instead of x:
 * |2w| <= 256 fits a half word. htpw_dsp_line works on cells whose windows have one row of taps, all inside the input. */
struct htpw_dsp_line {
    const int8_t *x;      /* tap 0 of the first cell; advanced */
    size_t stride;        /* from one cell to the next */
    int8_t *y;
    size_t y_pitch;
    int8_t *y_end;
    uintptr_t skipped;    /* HTPW_DSP_LINE_TAPS less the taps; overwritten */
    size_t step;          /* from one tap to the next */
    uint32_t offset;      /* input offset, in each half */
    int32_t clamps;       /* as in htpw_dsp_job */
    uint32_t low, high;
    const uint32_t *taps; /* weights of the first tap, in w */
    int32_t bias2[4];
    struct {
        int32_t multiplier, rounding, right;
    } out[4];
    uint32_t w[2 * HTPW_DSP_TAPS]; /* per tap: channels 0 2 and 1 3 */
};

void htpw_dsp_line(struct htpw_dsp_line *line);

void htpw_dsp_put_rows(uint32_t o, uint32_t in_c, uint32_t rows, const int8_t *w, void *packed);
int htpw_dsp_synth_run(struct htpw_synth_job *job, uint32_t tile, uint32_t tiles, int8_t **y, uint32_t step);
void htpw_depthwise_s8_dsp(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                           const int8_t *w, const int32_t *bias, void *scratch, int8_t *y);
void htpw_add_s8_dsp(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y);
void htpw_avgpool_s8_dsp(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);
void htpw_maxpool_s8_dsp(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);

#endif
#endif
