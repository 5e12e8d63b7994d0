/* htpw_conv1x1_s8.c - pointwise convolution: the kernel that most multiplications of a network go through. */
#include "htpw_requantise.h"
#include "htpw_window.h"

/* Two rows of x, four rows of w: six loads for eight products, and no offset to add, because
 * sum (x + in_offset) * w = sum x * w + in_offset * sum w, and `folded` already holds the last term and the bias. */
static void htpw_conv1x1_s8_pair(int32_t in_c, int32_t out_c, const struct htpw_requant *q, const int8_t *x,
                                 const int8_t *w, const size_t lane[HTPW_LANES], const uint32_t folded[HTPW_LANES],
                                 int32_t o, int32_t count, int8_t *y) {
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
    const uint32_t a[HTPW_LANES] = {a0, a1, a2, a3}, b[HTPW_LANES] = {b0, b1, b2, b3};
    for (int32_t j = 0; j < count; j++) {
        y[j] = htpw_output_s8(q, o + j, a[j]);
        y[j + out_c] = htpw_output_s8(q, o + j, b[j]);
    }
}

void htpw_conv1x1_s8_ref(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                         const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y) {
    for (int32_t o = 0; o < out_c; o += HTPW_LANES) {
        const int32_t count = out_c - o < HTPW_LANES ? out_c - o : HTPW_LANES;
        const int8_t *wo = w + (size_t)o * (size_t)in_c;
        uint32_t folded[HTPW_LANES];
        size_t lane[HTPW_LANES];
        htpw_lane_rows(count, (size_t)in_c, lane);
        for (int32_t j = 0; j < HTPW_LANES; j++) {
            uint32_t sum = 0;
            for (int32_t i = 0; i < in_c; i++) {
                const int32_t weight = wo[lane[j] + (size_t)i];
                sum += (uint32_t)weight;
            }
            folded[j] = sum * (uint32_t)in_offset + (j < count ? htpw_bias(bias, o + j) : 0u);
        }

        int32_t r = 0;
        for (; r + 1 < rows; r += 2) {
            htpw_conv1x1_s8_pair(in_c, out_c, q, x + (size_t)r * (size_t)in_c, wo, lane, folded, o, count,
                                 y + (size_t)r * (size_t)out_c + o);
        }
        if (r < rows) {
            htpw_dot_lanes(in_c, 0, x + (size_t)r * (size_t)in_c, wo, lane, folded);
            for (int32_t j = 0; j < count; j++) {
                y[(size_t)r * (size_t)out_c + (size_t)(o + j)] = htpw_output_s8(q, o + j, folded[j]);
            }
        }
    }
}
