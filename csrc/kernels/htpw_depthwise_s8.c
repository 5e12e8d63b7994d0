/* htpw_depthwise_s8.c - depthwise int8 convolution: stride, dilation, padding on any side, channel multiplier. */
#include "htpw_requantise.h"
#include "htpw_window.h"

/* One output cell. x: cell (0, 0) of the batch; y0, x0: input position of tap (0, 0); y: channel 0 of the output. */
static void htpw_depthwise_s8_cell(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                   const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y, int32_t y0,
                                   int32_t x0) {
    const struct htpw_taps ty = htpw_clip_rows(y0, g->k_h, g->dil_h, g->in_h),
                           tx = htpw_clip(x0, g->k_w, g->dil_w, g->in_w);
    const int32_t times = HTPW_WITH(ODD) ? g->out_c / g->in_c : 1;
    const size_t x_step = (size_t)g->dil_w * (size_t)g->in_c, w_step = (size_t)g->out_c;
    int32_t o = 0;

#ifdef HTPW_SMALL_DSP /* the last four channels begin where four are left; images with fewer are ODD */
    const uint32_t offset2 = (uint16_t)in_offset * UINT32_C(0x10001);
    for (; (!HTPW_WITH(ODD) || (times == 1 && g->out_c >= HTPW_LANES)) && o < g->out_c; o += HTPW_LANES) {
        uint32_t sum[HTPW_LANES];
        htpw_small_start(sum);
        o = o + HTPW_LANES <= g->out_c ? o : g->out_c - HTPW_LANES;
        for (int32_t ky = ty.first; ky < ty.end; ky++) {
            htpw_small_taps(tx.end - tx.first, offset2,
                            x + htpw_cell(0, y0 + ky * g->dil_h, x0 + tx.first * g->dil_w, 0, g->in_w, g->in_c) + o,
                            x_step, w + htpw_cell(0, ky, tx.first, 0, g->k_w, g->out_c) + o, w_step, sum);
        }
        htpw_small_finish(q, o, HTPW_LANES, bias, sum, y + o);
    }
    if (!HTPW_WITH(ODD)) {
        return;
    }
#endif
    for (; !HTPW_SMALL && times == 1 && o + HTPW_LANES <= g->out_c; o += HTPW_LANES) {
        uint32_t s0 = htpw_bias(bias, o), s1 = htpw_bias(bias, o + 1);
        uint32_t s2 = htpw_bias(bias, o + 2), s3 = htpw_bias(bias, o + 3);
        for (int32_t ky = ty.first; ky < ty.end; ky++) {
            size_t xi = htpw_cell(0, y0 + ky * g->dil_h, x0 + tx.first * g->dil_w, 0, g->in_w, g->in_c) + (size_t)o;
            size_t wi = htpw_cell(0, ky, tx.first, 0, g->k_w, g->out_c) + (size_t)o;
            for (int32_t kx = tx.first; kx < tx.end; kx++, xi += x_step, wi += w_step) {
                const int8_t *xp = x + xi, *wp = w + wi;
                s0 += (uint32_t)((xp[0] + in_offset) * wp[0]);
                s1 += (uint32_t)((xp[1] + in_offset) * wp[1]);
                s2 += (uint32_t)((xp[2] + in_offset) * wp[2]);
                s3 += (uint32_t)((xp[3] + in_offset) * wp[3]);
            }
        }
        y[o] = htpw_output_s8(q, o, s0);
        y[o + 1] = htpw_output_s8(q, o + 1, s1);
        y[o + 2] = htpw_output_s8(q, o + 2, s2);
        y[o + 3] = htpw_output_s8(q, o + 3, s3);
    }
    for (; o < g->out_c; o++) {
        uint32_t sum = htpw_bias(bias, o);
        for (int32_t ky = ty.first; ky < ty.end; ky++) {
            size_t xi = htpw_cell(0, y0 + ky * g->dil_h, x0 + tx.first * g->dil_w, 0, g->in_w, g->in_c);
            size_t wi = htpw_cell(0, ky, tx.first, 0, g->k_w, g->out_c);
            xi += (size_t)(o / times);
            wi += (size_t)o;
            for (int32_t kx = tx.first; kx < tx.end; kx++, xi += x_step, wi += w_step) {
                sum += (uint32_t)((x[xi] + in_offset) * w[wi]);
            }
        }
        y[o] = htpw_output_s8(q, o, sum);
    }
}

void htpw_depthwise_s8_ref(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                           const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y) {
    for (int32_t n = 0; n < HTPW_ROWS(g->n); n++) {
        for (int32_t oy = 0; oy < HTPW_ROWS(g->out_h); oy++) {
            for (int32_t ox = 0; ox < g->out_w; ox++) {
                htpw_depthwise_s8_cell(g, q, in_offset, x + htpw_cell(n, 0, 0, g->in_h, g->in_w, g->in_c), w, bias,
                                       y + htpw_cell(n, oy, ox, g->out_h, g->out_w, g->out_c),
                                       oy * g->stride_h - g->pad_top, ox * g->stride_w - g->pad_left);
            }
        }
    }
}
