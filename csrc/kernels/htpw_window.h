/* htpw_window.h - sliding windows and dot products shared by the convolutions and pools. Not part of the contract.
 *
 * Padding is never read: each window is cut to the input once, in front of the inner loops.
 */
#ifndef HTPW_WINDOW_H
#define HTPW_WINDOW_H

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

/* Index of channel 0 of cell (h, w) of batch n. Walks are made with indices, so that no pointer leaves its array. */
static inline size_t htpw_cell(int32_t n, int32_t h, int32_t w, int32_t height, int32_t width, int32_t channels) {
    const size_t row = (size_t)n * (size_t)height + (size_t)h;
    return (row * (size_t)width + (size_t)w) * (size_t)channels;
}

/* Distances from weight row 0 to the rows of HTPW_LANES neighbouring outputs, the last repeated beyond `count`: the
 * repeated sums are computed and dropped, which is cheaper than a loop of its own for the remainder. */
static inline void htpw_lane_rows(int32_t count, size_t row, size_t lane[HTPW_LANES]) {
    for (int32_t j = 0; j < HTPW_LANES; j++) {
        lane[j] = row * (size_t)(j < count ? j : count - 1);
    }
}

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
