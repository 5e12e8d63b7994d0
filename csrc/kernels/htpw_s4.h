/* htpw_s4.h - the one place that knows how two 4-bit weights share a byte. Not part of the contract. */
#ifndef HTPW_S4_H
#define HTPW_S4_H

#include "htpw_kernels.h"

/* The even-indexed (low) and the odd-indexed (high) weight of a byte, [-8, 7]. */
static inline int32_t htpw_s4_low(uint8_t byte) { return ((byte & 15) ^ 8) - 8; }

static inline int32_t htpw_s4_high(uint8_t byte) { return ((byte >> 4) ^ 8) - 8; }

/* Weight i of a packed array. */
static inline int32_t htpw_s4_at(const uint8_t *w, size_t i) {
    return i & 1u ? htpw_s4_high(w[i >> 1]) : htpw_s4_low(w[i >> 1]);
}

/* sum_i (x[i] + offset) * weight[first + i] modulo 2^32; whole bytes go two weights at a time. */
static inline uint32_t htpw_s4_dot(int32_t n, int32_t offset, const int8_t *x, const uint8_t *w, size_t first) {
    uint32_t sum = 0;
    int32_t i = 0;
    if (first & 1u && n > 0) {
        sum = (uint32_t)((x[i++] + offset) * htpw_s4_high(w[first >> 1]));
    }
    for (const uint8_t *p = w + ((first + 1) >> 1); i + 1 < n; i += 2, p++) {
        sum += (uint32_t)((x[i] + offset) * htpw_s4_low(*p));
        sum += (uint32_t)((x[i + 1] + offset) * htpw_s4_high(*p));
    }
    if (i < n) {
        sum += (uint32_t)((x[i] + offset) * htpw_s4_at(w, first + (size_t)i));
    }
    return sum;
}

#endif
