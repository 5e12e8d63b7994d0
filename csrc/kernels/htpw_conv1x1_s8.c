/* htpw_conv1x1_s8.c - pointwise convolution: the kernel that most multiplications of a network go through. */
#include "htpw_requantise.h"
#include "htpw_window.h"

#if HTPW_SMALL /* a convolution of one tap */

void htpw_conv1x1_s8_ref(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                         const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y) {
    const struct htpw_window g = {1, 1, rows, in_c, 1, rows, out_c, 1, 1, 1, 1, 0, 0, 1, 1, 1};
    htpw_conv_s8_ref(&g, q, in_offset, x, w, bias, y);
}

#else

/* Output channels per block. Two rows of x against four of w make eight sums, which a PC vectorises and a Cortex-M spills: there
 * two against two leave registers for the pointers. */
#if defined(__arm__) || defined(__ARM_ARCH)
#define HTPW_BLOCK 2
#else
#define HTPW_BLOCK HTPW_LANES
#endif

#if HTPW_BLOCK == 2

/* Sums of rows 0, 1 of x with the block's rows of w, from `folded`, into a and b. Four pointers that only move forward, four
 * sums and an end are all that a loop keeps: with indices or with more unrolling GCC spills. */
static void htpw_conv1x1_s8_block(int32_t in_c, const int8_t *x, const int8_t *w, const size_t lane[HTPW_BLOCK],
                                  const uint32_t folded[HTPW_BLOCK], uint32_t a[HTPW_BLOCK], uint32_t b[HTPW_BLOCK]) {
    const int8_t *xa = x, *xb = x + in_c, *w0 = w + lane[0], *w1 = w + lane[1];
    const int8_t *const end = xb;
    uint32_t a0 = folded[0], a1 = folded[1], b0 = a0, b1 = a1;
    do {
        const int32_t va = *xa++, vb = *xb++, u = *w0++, v = *w1++;
        a0 += (uint32_t)(va * u);
        a1 += (uint32_t)(va * v);
        b0 += (uint32_t)(vb * u);
        b1 += (uint32_t)(vb * v);
    } while (xa != end);
    a[0] = a0;
    a[1] = a1;
    b[0] = b0;
    b[1] = b1;
}

#else

/* Sums of rows 0, 1 of x with the block's rows of w, from `folded`, into a and b: six loads for eight products. */
static void htpw_conv1x1_s8_block(int32_t in_c, const int8_t *x, const int8_t *w, const size_t lane[HTPW_BLOCK],
                                  const uint32_t folded[HTPW_BLOCK], uint32_t a[HTPW_BLOCK], uint32_t b[HTPW_BLOCK]) {
    const int8_t *xa = x, *xb = x + in_c;
    const int8_t *w0 = w + lane[0], *w1 = w + lane[1], *w2 = w + lane[2], *w3 = w + lane[3];
    uint32_t a0 = folded[0], a1 = folded[1], a2 = folded[2], a3 = folded[3];
    uint32_t b0 = a0, b1 = a1, b2 = a2, b3 = a3;
    for (int32_t i = 0; i < in_c; i++) {
        const int16_t va = xa[i], vb = xb[i];
        a0 += (uint32_t)(va * w0[i]);
        b0 += (uint32_t)(vb * w0[i]);
        a1 += (uint32_t)(va * w1[i]);
        b1 += (uint32_t)(vb * w1[i]);
        a2 += (uint32_t)(va * w2[i]);
        b2 += (uint32_t)(vb * w2[i]);
        a3 += (uint32_t)(va * w3[i]);
        b3 += (uint32_t)(vb * w3[i]);
    }
    const uint32_t sums_a[HTPW_BLOCK] = {a0, a1, a2, a3}, sums_b[HTPW_BLOCK] = {b0, b1, b2, b3};
    for (int32_t j = 0; j < HTPW_BLOCK; j++) {
        a[j] = sums_a[j];
        b[j] = sums_b[j];
    }
}

#endif

/* All pairs of rows. No offset is added to x in the inner loop, because sum (x + in_offset) * w = sum x * w + in_offset * sum w,
 * and `folded` holds the last term and the bias. */
static void htpw_conv1x1_s8_pairs(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                  int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y) {
    for (int32_t o = 0; o < out_c; o += HTPW_BLOCK) {
        const int32_t count = out_c - o < HTPW_BLOCK ? out_c - o : HTPW_BLOCK;
        const int8_t *wo = w + (size_t)o * (size_t)in_c;
        uint32_t folded[HTPW_BLOCK], a[HTPW_BLOCK], b[HTPW_BLOCK];
        struct htpw_finish finish[HTPW_BLOCK];
        size_t lane[HTPW_BLOCK];
        for (int32_t j = 0; j < HTPW_BLOCK; j++) { /* beyond `count` the last row again: computed and dropped */
            uint32_t sum = 0;
            lane[j] = (size_t)in_c * (size_t)(j < count ? j : count - 1);
            for (int32_t i = 0; i < in_c; i++) {
                const int32_t weight = wo[lane[j] + (size_t)i];
                sum += (uint32_t)weight;
            }
            folded[j] = sum * (uint32_t)in_offset + (j < count ? htpw_bias(bias, o + j) : 0u);
            finish[j] = htpw_finish_of(q, j < count ? o + j : o);
        }
        for (int32_t r = 0; r + 1 < rows; r += 2) {
            int8_t *to = y + (size_t)r * (size_t)out_c + o;
            htpw_conv1x1_s8_block(in_c, x + (size_t)r * (size_t)in_c, wo, lane, folded, a, b);
            for (int32_t j = 0; j < count; j++) {
                to[j] = htpw_finish_s8(&finish[j], a[j]);
                to[j + out_c] = htpw_finish_s8(&finish[j], b[j]);
            }
        }
    }
}

/* One row: the weights are read once, so the offset is added to x instead of summing them first. */
static void htpw_conv1x1_s8_row(int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                                const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y) {
    for (int32_t o = 0; o < out_c; o += HTPW_LANES) {
        const int32_t count = out_c - o < HTPW_LANES ? out_c - o : HTPW_LANES;
        uint32_t sum[HTPW_LANES];
        size_t lane[HTPW_LANES];
        htpw_lane_rows(count, (size_t)in_c, lane);
        for (int32_t j = 0; j < HTPW_LANES; j++) {
            sum[j] = j < count ? htpw_bias(bias, o + j) : 0u;
        }
        htpw_dot_lanes(in_c, in_offset, x, w + (size_t)o * (size_t)in_c, lane, sum);
        for (int32_t j = 0; j < count; j++) {
            y[o + j] = htpw_output_s8(q, o + j, sum[j]);
        }
    }
}

void htpw_conv1x1_s8_ref(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                         const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y) {
    const int32_t paired = rows & ~1;
    if (paired != 0) {
        htpw_conv1x1_s8_pairs(paired, in_c, out_c, q, in_offset, x, w, bias, y);
    }
    if (rows & 1) {
        htpw_conv1x1_s8_row(in_c, out_c, q, in_offset, x + (size_t)paired * (size_t)in_c, w, bias,
                            y + (size_t)paired * (size_t)out_c);
    }
}

#endif
