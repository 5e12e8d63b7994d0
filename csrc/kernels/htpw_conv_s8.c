/* htpw_conv_s8.c - general int8 convolution: stride, dilation, groups, padding on any side. */
#include "htpw_requantise.h"
#include "htpw_window.h"

#if HTPW_SMALL

/* One output cell. x: cell (0, 0) of the batch; y0, x0: input position of tap (0, 0); y: channel 0 of the output. What is left of
 * four output channels goes one by one. */
static void htpw_conv_s8_cell(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                              const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y, int32_t y0,
                              int32_t x0) {
    const struct htpw_taps ty = htpw_clip_rows(y0, g->k_h, g->dil_h, g->in_h),
                           tx = htpw_clip(x0, g->k_w, g->dil_w, g->in_w);
    const int32_t groups = HTPW_WITH(ODD) ? g->groups : 1, in_g = g->in_c / groups, out_g = g->out_c / groups;
    const size_t row = (size_t)HTPW_ROWS(g->k_h) * (size_t)g->k_w * (size_t)in_g;
    const int32_t step = g->dil_w == 1 && groups == 1 ? tx.end - tx.first : 1, n = step * in_g; /* as below */
    const size_t x_step = (size_t)g->dil_w * (size_t)g->in_c;

    for (int32_t o = 0, count; o < g->out_c; o += count, w += row * (size_t)count) {
        const int32_t group = HTPW_WITH(ODD) ? o / out_g : 0, left = (group + 1) * out_g - o;
        uint32_t sum[HTPW_LANES];
        htpw_small_start(sum);
        count = left < HTPW_LANES ? 1 : HTPW_LANES;
        for (int32_t ky = ty.first; ky < (HTPW_WITH(PLANES) ? ty.end : 1); ky++) {
            size_t xi = htpw_cell(0, y0 + ky * g->dil_h, x0 + tx.first * g->dil_w, 0, g->in_w, g->in_c);
            size_t wi = htpw_cell(0, ky, tx.first, 0, g->k_w, in_g);
            for (int32_t kx = tx.first; kx < tx.end;
                 kx += step, xi += x_step, wi += (size_t)in_g) { /* once, if step is not 1 */
                htpw_small_dot(n, in_offset, x + xi + (size_t)group * (size_t)in_g, w + wi, count == 1 ? 0u : row, sum);
            }
        }
        htpw_small_finish(q, o, count, bias, sum, y + o);
    }
}

#else

/* One output cell. x: cell (0, 0) of the batch; y0, x0: input position of tap (0, 0); y: channel 0 of the output. */
static void htpw_conv_s8_cell(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                              const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y, int32_t y0,
                              int32_t x0) {
    const struct htpw_taps ty = htpw_clip_rows(y0, g->k_h, g->dil_h, g->in_h),
                           tx = htpw_clip(x0, g->k_w, g->dil_w, g->in_w);
    const int32_t groups = HTPW_WITH(ODD) ? g->groups : 1, in_g = g->in_c / groups, out_g = g->out_c / groups;
    const size_t row = (size_t)HTPW_ROWS(g->k_h) * (size_t)g->k_w * (size_t)in_g;
    /* The taps of one row are one stretch of memory, in x as in w, unless dilation or groups leave gaps in x. */
    const int32_t step = g->dil_w == 1 && groups == 1 ? tx.end - tx.first : 1;

    for (int32_t o = 0, count; o < g->out_c; o += count) {
        const int32_t group = HTPW_WITH(ODD) ? o / out_g : 0, left = (group + 1) * out_g - o;
        uint32_t sum[HTPW_LANES] = {0, 0, 0, 0};
        size_t lane[HTPW_LANES];
        count = left < HTPW_LANES ? left : HTPW_LANES;
        htpw_lane_rows(count, row, lane);
        for (int32_t ky = ty.first; ky < ty.end; ky++) {
            for (int32_t kx = tx.first; kx < tx.end; kx += step) {
                const int8_t *xp = x + htpw_cell(0, y0 + ky * g->dil_h, x0 + kx * g->dil_w, 0, g->in_w, g->in_c);
                const int8_t *wp = w + row * (size_t)o + ((size_t)ky * (size_t)g->k_w + (size_t)kx) * (size_t)in_g;
                htpw_dot_lanes(step * in_g, in_offset, xp + (size_t)group * (size_t)in_g, wp, lane, sum);
            }
        }
        for (int32_t j = 0; j < count; j++) {
            y[o + j] = htpw_output_s8(q, o + j, sum[j] + htpw_bias(bias, o + j));
        }
    }
}

#endif

void htpw_conv_s8_ref(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                      const int8_t *w, const int32_t *bias, int8_t *y) {
    for (int32_t n = 0; n < HTPW_ROWS(g->n); n++) {
        for (int32_t oy = 0; oy < HTPW_ROWS(g->out_h); oy++) {
            for (int32_t ox = 0; ox < g->out_w; ox++) {
                htpw_conv_s8_cell(g, q, in_offset, x + htpw_cell(n, 0, 0, g->in_h, g->in_w, g->in_c), w, bias,
                                  y + htpw_cell(n, oy, ox, g->out_h, g->out_w, g->out_c), oy * g->stride_h - g->pad_top,
                                  ox * g->stride_w - g->pad_left);
            }
        }
    }
}
