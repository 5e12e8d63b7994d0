/* htpw_mve.h - what the files of the Helium backend share: when it is built, and requantisation of four lanes. */
#ifndef HTPW_MVE_H
#define HTPW_MVE_H

#include "../htpw_backend.h"

/* Armv8.1-M with integer Helium, little-endian, compiled by GCC or clang. */
#if defined(__ARM_FEATURE_MVE) && !defined(__ARM_BIG_ENDIAN) && defined(__GNUC__) && !HTPW_SMALL &&                    \
    !defined(HTPW_CONFIG_NO_ARMV81M_MVE)
#if __ARM_FEATURE_MVE & 1
#define HTPW_HAS_ARMV81M_MVE 1
#endif
#endif

#ifdef HTPW_HAS_ARMV81M_MVE

#include <arm_mve.h>

#include "../../kernels/htpw_window.h"

extern const struct htpw_backend htpw_backend_armv81m_mve;

#define HTPW_MVE_INLINE static inline __attribute__((always_inline))

/* Requantisation of four channels. */
struct htpw_mve_scale {
    int32x4_t multiplier, left, right; /* shift, split: left >= 0, right <= 0 */
};

HTPW_MVE_INLINE struct htpw_mve_scale htpw_mve_split(int32x4_t multiplier, int32x4_t shift) {
    const int32x4_t zero = vdupq_n_s32(0);
    const struct htpw_mve_scale s = {multiplier, vmaxq_s32(shift, zero), vminq_s32(shift, zero)};
    return s;
}

/* v / 2^-right to nearest, ties away from zero; right <= 0. VRSHL rounds ties up; a negative v made 1 smaller gives the other
 * neighbour for a tie and the same one for all else. Where right is 0, nothing is taken away. */
HTPW_MVE_INLINE int32x4_t htpw_mve_round_shift(int32x4_t v, int32x4_t right) {
    return vrshlq_s32(vaddq_s32(v, vshrq_n_s32(vandq_s32(v, right), 31)), right);
}

/* SPEC section 2 without the zero point. VQRDMULH is its step 2, except for -2^31 times -2^31, which section 7 excludes. */
HTPW_MVE_INLINE int32x4_t htpw_mve_requantise(int32x4_t v, const struct htpw_mve_scale *s) {
    return htpw_mve_round_shift(vqrdmulhq_s32(vshlq_s32(v, s->left), s->multiplier), s->right);
}

/* Four words as one vector. Compilers set lane by lane, which takes twice as many instructions. */
HTPW_MVE_INLINE int32x4_t htpw_mve_gather(int32_t a, int32_t b, int32_t c, int32_t d) {
    int32x4_t v;
    __asm__("vmov %q0[2], %q0[0], %1, %2\n\tvmov %q0[3], %q0[1], %3, %4" : "=&w"(v) : "r"(a), "r"(c), "r"(b), "r"(d));
    return v;
}

/* The outputs first .. end - 1 of one axis whose windows are inside the input; none if first >= end. */
HTPW_MVE_INLINE struct htpw_taps htpw_mve_inside(int32_t out, int32_t taps, int32_t dilation, int32_t stride,
                                                 int32_t pad, int32_t size) {
    const int32_t room =
        size - 1 - (taps - 1) * dilation + pad; /* position of the last window, from that of the first */
    struct htpw_taps t = {(pad + stride - 1) / stride, room < 0 ? 0 : room / stride + 1};
    t.end = t.end < out ? t.end : out;
    return t;
}

/* Zero point and clamp, then n bytes to y. */
HTPW_MVE_INLINE void htpw_mve_store(int8_t *y, int32x4_t v, const struct htpw_requant *q, mve_pred16_t lanes) {
    v = vaddq_n_s32(v, q->out_offset);
    v = vminq_s32(vmaxq_s32(v, vdupq_n_s32(q->act_min)), vdupq_n_s32(q->act_max));
    vstrbq_p_s32(y, v, lanes);
}

void htpw_mve_conv(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                   const int8_t *w, const int32_t *bias, void *scratch, int8_t *y);
void htpw_mve_depthwise(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                        const int8_t *w, const int32_t *bias, void *scratch, int8_t *y);
void htpw_mve_conv1x1(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                      const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y);
void htpw_mve_packed(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                     const int8_t *x, const void *packed, const int32_t *bias, void *scratch, int8_t *y);
void htpw_mve_add(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y);
void htpw_mve_avgpool(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);
int htpw_mve_synth(struct htpw_synth_job *job, uint32_t tile, uint32_t tiles, int8_t **y, uint32_t step);
void htpw_mve_put_rows(uint32_t in_c, uint32_t count, const int8_t *w, int8_t *packed);
void htpw_mve_row_sums(uint32_t blocks, uint32_t steps, const int8_t *w, int32_t *sums);
void htpw_mve_maxpool(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);

#endif
#endif
