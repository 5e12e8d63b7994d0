/* htpw_layers_s4.c - the linear layers with packed 4-bit weights; the numbers are those of the int8 layers. */
#include "htpw_requantise.h"
#include "htpw_s4.h"
#include "htpw_window.h"

/* One output cell of a convolution; as htpw_conv_s8_cell, with weights addressed by index. */
static void htpw_conv_s4_cell(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                              const int8_t *x, const uint8_t *w, const int32_t *bias, int8_t *y, int32_t y0,
                              int32_t x0) {
    const struct htpw_taps ty = htpw_clip(y0, g->k_h, g->dil_h, g->in_h), tx = htpw_clip(x0, g->k_w, g->dil_w, g->in_w);
    const int32_t in_g = g->in_c / g->groups, out_g = g->out_c / g->groups;
    const int32_t step = g->dil_w == 1 && g->groups == 1 ? tx.end - tx.first : 1;
    for (int32_t o = 0; o < g->out_c; o++) {
        const size_t from = (size_t)(o / out_g) * (size_t)in_g;
        uint32_t sum = htpw_bias(bias, o);
        for (int32_t ky = ty.first; ky < ty.end; ky++) {
            for (int32_t kx = tx.first; kx < tx.end; kx += step) {
                const size_t xi = htpw_cell(0, y0 + ky * g->dil_h, x0 + kx * g->dil_w, 0, g->in_w, g->in_c) + from;
                const size_t tap = ((size_t)o * (size_t)g->k_h + (size_t)ky) * (size_t)g->k_w +
                                   (size_t)kx; /* no htpw_cell: o counts */
                sum += htpw_s4_dot(step * in_g, in_offset, x + xi, w, tap * (size_t)in_g);
            }
        }
        y[o] = htpw_output_s8(q, o, sum);
    }
}

/* One output cell of a depthwise convolution. */
static void htpw_depthwise_s4_cell(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                   const int8_t *x, const uint8_t *w, const int32_t *bias, int8_t *y, int32_t y0,
                                   int32_t x0) {
    const struct htpw_taps ty = htpw_clip(y0, g->k_h, g->dil_h, g->in_h), tx = htpw_clip(x0, g->k_w, g->dil_w, g->in_w);
    const int32_t times = g->out_c / g->in_c;
    for (int32_t o = 0; o < g->out_c; o++) {
        const size_t from = (size_t)(o / times);
        uint32_t sum = htpw_bias(bias, o);
        for (int32_t ky = ty.first; ky < ty.end; ky++) {
            for (int32_t kx = tx.first; kx < tx.end; kx++) {
                const size_t xi = htpw_cell(0, y0 + ky * g->dil_h, x0 + kx * g->dil_w, 0, g->in_w, g->in_c) + from;
                const size_t wi = htpw_cell(0, ky, kx, 0, g->k_w, g->out_c) + (size_t)o;
                sum += (uint32_t)((x[xi] + in_offset) * htpw_s4_at(w, wi));
            }
        }
        y[o] = htpw_output_s8(q, o, sum);
    }
}

void htpw_conv_s4_ref(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                      const uint8_t *w, const int32_t *bias, int8_t *y) {
    for (int32_t n = 0; n < g->n; n++) {
        for (int32_t oy = 0; oy < g->out_h; oy++) {
            for (int32_t ox = 0; ox < g->out_w; ox++) {
                htpw_conv_s4_cell(g, q, in_offset, x + htpw_cell(n, 0, 0, g->in_h, g->in_w, g->in_c), w, bias,
                                  y + htpw_cell(n, oy, ox, g->out_h, g->out_w, g->out_c), oy * g->stride_h - g->pad_top,
                                  ox * g->stride_w - g->pad_left);
            }
        }
    }
}

void htpw_depthwise_s4_ref(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                           const int8_t *x, const uint8_t *w, const int32_t *bias, int8_t *y) {
    for (int32_t n = 0; n < g->n; n++) {
        for (int32_t oy = 0; oy < g->out_h; oy++) {
            for (int32_t ox = 0; ox < g->out_w; ox++) {
                htpw_depthwise_s4_cell(g, q, in_offset, x + htpw_cell(n, 0, 0, g->in_h, g->in_w, g->in_c), w, bias,
                                       y + htpw_cell(n, oy, ox, g->out_h, g->out_w, g->out_c),
                                       oy * g->stride_h - g->pad_top, ox * g->stride_w - g->pad_left);
            }
        }
    }
}

void htpw_fully_connected_s4_ref(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                 int32_t in_offset, const int8_t *x, const uint8_t *w, const int32_t *bias, int8_t *y) {
    for (int32_t r = 0; r < rows; r++) {
        for (int32_t o = 0; o < out_c; o++) {
            const int8_t *xr = x + (size_t)r * (size_t)in_c;
            const uint32_t sum = htpw_s4_dot(in_c, in_offset, xr, w, (size_t)o * (size_t)in_c);
            y[(size_t)r * (size_t)out_c + (size_t)o] = htpw_output_s8(q, o, sum + htpw_bias(bias, o));
        }
    }
}

/* A dense layer over every cell: 4-bit weights are unpacked as they are used, so there is nothing to share between
 * rows. */
void htpw_conv1x1_s4_ref(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                         const int8_t *x, const uint8_t *w, const int32_t *bias, int8_t *y) {
    htpw_fully_connected_s4_ref(rows, in_c, out_c, q, in_offset, x, w, bias, y);
}
