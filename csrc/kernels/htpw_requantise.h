/* htpw_requantise.h - the arithmetic that every kernel shares: one rounding rule, one clamp. Not part of the contract.
 *
 * Sums are uint32_t: unsigned arithmetic is defined modulo 2^32, so offsets may be folded and products added in any
 * order. Two conversions rest on what C99 leaves to the implementation and every two's-complement compiler does: a
 * uint32_t above 2^31 - 1 becomes negative, and >> of a negative number is the floor shift.
 */
#ifndef HTPW_REQUANTISE_H
#define HTPW_REQUANTISE_H

#include "../htpw_config.h"
#include "htpw_kernels.h"

/* Divides by 2^exponent, to nearest, ties away from zero; exponent in [0, 31]. */
static inline int32_t htpw_round_shift(int32_t v, int32_t exponent) {
    const int32_t mask = (int32_t)((UINT32_C(1) << exponent) - 1u);
    return (v >> exponent) + ((v & mask) > (mask >> 1) + (v < 0) ? 1 : 0);
}

/* round(a * b / 2^31), ties up. Fits int32 unless a = b = -2^31, which wraps to -2^31. */
static inline int32_t htpw_high_multiply(int32_t a, int32_t b) {
    return (int32_t)(((int64_t)a * b + (INT64_C(1) << 30)) >> 31);
}

/* htpw_requantise for use inside kernels; the two roundings are both observable and never merged. */
static inline int32_t htpw_requantise_inline(int32_t v, int32_t multiplier, int32_t shift) {
    const int32_t left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
    return htpw_round_shift(htpw_high_multiply((int32_t)((uint32_t)v << left), multiplier), right);
}

/* v limited to [low, high], max first, so that low > high gives high. */
static inline int32_t htpw_clamp(int32_t v, int32_t low, int32_t high) {
    v = v < low ? low : v;
    return v > high ? high : v;
}

#if HTPW_SMALL
#define HTPW_OUTPUT_STORAGE
#else
#define HTPW_OUTPUT_STORAGE static inline
#endif

/* Finishes one output of channel c from its sum, modulo 2^32. */
#if HTPW_SMALL && !defined(HTPW_REQUANTISE_HERE)
int8_t htpw_output_s8(const struct htpw_requant *q, int32_t c, uint32_t sum); /* one copy, in htpw_requantise.c */
#else
HTPW_OUTPUT_STORAGE int8_t htpw_output_s8(const struct htpw_requant *q, int32_t c, uint32_t sum) {
    const int32_t i = q->per_channel ? c : 0;
    const int32_t v = htpw_requantise_inline((int32_t)sum, q->multiplier[i], q->shift[i]);
    return (int8_t)htpw_clamp((int32_t)((uint32_t)v + (uint32_t)q->out_offset), q->act_min, q->act_max);
}
#endif

/* What finishes the outputs of one channel, fetched once: a store to y may change anything q points to, for all a compiler
 * knows, so a loop over rows that asked q each time would load it all again. */
struct htpw_finish {
    int32_t multiplier, left, right, out_offset, act_min, act_max;
};

static inline struct htpw_finish htpw_finish_of(const struct htpw_requant *q, int32_t c) {
    const int32_t i = q->per_channel ? c : 0, shift = q->shift[i];
    const struct htpw_finish f = {
        q->multiplier[i], shift > 0 ? shift : 0, shift > 0 ? 0 : -shift, q->out_offset, q->act_min, q->act_max};
    return f;
}

/* htpw_output_s8 with what htpw_finish_of fetched. |h| <= 2^31 - 1 here, since the multiplier is not negative, so h - 1 cannot
 * overflow; (h >> (right - 1)) + 1 is (h + 2^(right-1)) >> (right - 1) without the sum that could; subtracting 1 from negative
 * h first turns "ties up" into "ties away from zero". */
static inline int8_t htpw_finish_s8(const struct htpw_finish *f, uint32_t sum) {
    int32_t h = htpw_high_multiply((int32_t)(sum << f->left), f->multiplier);
    if (f->right > 0) {
        h = (((h - (h < 0)) >> (f->right - 1)) + 1) >> 1;
    }
    return (int8_t)htpw_clamp((int32_t)((uint32_t)h + (uint32_t)f->out_offset), f->act_min, f->act_max);
}

/* bias[c] modulo 2^32, or 0 without biases. */
static inline uint32_t htpw_bias(const int32_t *bias, int32_t c) { return bias ? (uint32_t)bias[c] : 0u; }

#endif
