/* htpw_fully_connected_s8.c - dense layer, int8, with a zero point for the weights. */
#include "htpw_requantise.h"
#include "htpw_window.h"

void htpw_fully_connected_s8_ref(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                 int32_t in_offset, int32_t w_offset, const int8_t *x, const int8_t *w,
                                 const int32_t *bias, int8_t *y) {
    for (int32_t r = 0; r < rows; r++, x += in_c, y += out_c) {
        uint32_t total = 0; /* the part of w_offset, the same for every output */
        if (w_offset != 0) {
            for (int32_t i = 0; i < in_c; i++) {
                total += (uint32_t)((x[i] + in_offset) * w_offset);
            }
        }
        for (int32_t o = 0; o < out_c; o += HTPW_LANES) {
            const int32_t count = out_c - o < HTPW_LANES ? out_c - o : HTPW_LANES;
            uint32_t sum[HTPW_LANES] = {total, total, total, total};
            size_t lane[HTPW_LANES];
            htpw_lane_rows(count, (size_t)in_c, lane);
            htpw_dot_lanes(in_c, in_offset, x, w + (size_t)o * (size_t)in_c, lane, sum);
            for (int32_t j = 0; j < count; j++) {
                y[o + j] = htpw_output_s8(q, o + j, sum[j] + htpw_bias(bias, o + j));
            }
        }
    }
}
