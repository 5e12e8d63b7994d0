/* htpw_dsp_depthwise.c - depthwise convolution of the Armv7E-M backend: four channels, then all their positions.
 *
 * A tap of four channels is one word of x, widened to (x0, x2) and (x1, x3) with the offset added, and four multiply-adds of
 * halves with weights that were widened once for the four channels. Pairing taps for SMLAD would take as many
 * instructions to shuffle as it saves in products.
 */
#include "../../kernels/htpw_requantise.h"
#include "../../kernels/htpw_window.h"
#include "htpw_dsp.h"

#ifdef HTPW_HAS_ARMV7EM_DSP

/* Everything of four channels from channel o on. */
HTPW_DSP_SHORT static void htpw_dsp_line_start(struct htpw_dsp_line *line, const struct htpw_dsp_output *k,
                                               const struct htpw_window *g, int32_t in_offset, const int8_t *w,
                                               const int32_t *bias, int32_t o) {
    line->stride = (size_t)g->stride_w * (size_t)g->in_c;
    line->y_pitch = (size_t)g->out_c;
    line->step = (size_t)g->dil_w * (size_t)g->in_c;
    line->offset = (uint16_t)in_offset * UINT32_C(0x10001);
    line->clamps = !k->is_full;
    line->low = k->low;
    line->high = k->high;
    for (int32_t j = 0; j < 4; j++) {
        const int32_t i = k->q->per_channel ? o + j : 0, right = -k->q->shift[i];
        line->bias2[j] = (int32_t)(htpw_bias(bias, o + j) * 2u);
        line->out[j].multiplier = k->q->multiplier[i];
        line->out[j].rounding = k->is_quick ? htpw_dsp_rounding(k->q, right) : 0;
        line->out[j].right = right;
    }
    w += o;
    for (int32_t t = 0; t < HTPW_ROWS(g->k_h) * g->k_w; t++, w += g->out_c) {
        const uint32_t four = htpw_dsp_load(w);
        line->w[2 * t] = htpw_sxtab16(htpw_sxtab16(0, four), four);
        line->w[2 * t + 1] = htpw_sxtab16_ror8(htpw_sxtab16_ror8(0, four), four);
    }
}

/* One output cell anywhere, any requantisation. x: cell (0, 0) of the batch; y0, x0: input position of tap (0, 0). */
HTPW_DSP_ONCE void htpw_dsp_anywhere(const struct htpw_dsp_line *line, const struct htpw_dsp_output *k,
                                     const struct htpw_window *g, int32_t o, const int8_t *x, int32_t y0, int32_t x0,
                                     int8_t *y) {
    const struct htpw_taps ty = htpw_clip_rows(y0, g->k_h, g->dil_h, g->in_h),
                           tx = htpw_clip(x0, g->k_w, g->dil_w, g->in_w);
    int32_t s0 = line->bias2[0], s1 = line->bias2[1], s2 = line->bias2[2], s3 = line->bias2[3];
    for (int32_t ky = ty.first; ky < (HTPW_WITH(PLANES) ? ty.end : 1) && tx.first < tx.end; ky++) {
        const size_t at = htpw_cell(0, y0 + ky * g->dil_h, x0 + tx.first * g->dil_w, 0, g->in_w, g->in_c);
        const int8_t *xp = x + at + (size_t)o;
        const uint32_t *w = line->w + 2 * (ky * g->k_w + tx.first);
        for (int32_t kx = tx.first; kx < tx.end; kx++, xp += line->step, w += 2) {
            const uint32_t four = htpw_dsp_load(xp);
            const int32_t even = (int32_t)htpw_sxtab16(line->offset, four);
            const int32_t odd = (int32_t)htpw_sxtab16_ror8(line->offset, four);
            s0 = __smlabb(even, (int32_t)w[0], s0);
            s1 = __smlabb(odd, (int32_t)w[1], s1);
            s2 = __smlatt(even, (int32_t)w[0], s2);
            s3 = __smlatt(odd, (int32_t)w[1], s3);
        }
    }
    y[0] = htpw_dsp_output_any(k->q, o, s0);
    y[1] = htpw_dsp_output_any(k->q, o + 1, s1);
    y[2] = htpw_dsp_output_any(k->q, o + 2, s2);
    y[3] = htpw_dsp_output_any(k->q, o + 3, s3);
}

/* n neighbouring output cells whose windows have the taps `taps`, all inside the input. x: the first tap of the first. */
static void htpw_dsp_cells(struct htpw_dsp_line *line, struct htpw_taps taps, int32_t n, const int8_t *x, int8_t *y) {
    const int32_t count = taps.end > taps.first ? taps.end - taps.first : 0;
    line->x = x;
    line->y = y;
    line->y_end = y + (size_t)n * line->y_pitch;
    line->taps = line->w + 2 * taps.first;
    line->skipped = (uintptr_t)(HTPW_DSP_LINE_TAPS - count);
    htpw_dsp_line(line);
}

/* One row of outputs, channels o .. o + 3. */
static void htpw_dsp_row(struct htpw_dsp_line *line, const struct htpw_dsp_output *k, const struct htpw_window *g,
                         int32_t o, const int8_t *x, int32_t oy, int8_t *y) {
    const int32_t y0 = oy * g->stride_h - g->pad_top;
    const int is_line = k->is_quick && g->k_h == 1 && g->k_w <= HTPW_DSP_LINE_TAPS && y0 >= 0 && y0 < g->in_h;
    for (int32_t ox = 0, n; ox < g->out_w; ox += n) {
        int8_t *to = y + htpw_cell(0, 0, ox, 0, g->out_w, g->out_c) + o;
        const int32_t x0 = ox * g->stride_w - g->pad_left;
        n = 1;
        if (is_line) {
            const struct htpw_taps taps = htpw_clip(x0, g->k_w, g->dil_w, g->in_w);
            if (taps.first == 0 && taps.end == g->k_w) { /* and so are they for all cells whose last tap is inside */
                const int32_t cells = (g->in_w - 1 - (g->k_w - 1) * g->dil_w - x0) / g->stride_w + 1;
                n = cells < g->out_w - ox ? cells : g->out_w - ox;
            }
            const int32_t first =
                taps.end > taps.first ? x0 + taps.first * g->dil_w : 0; /* without taps x is not read */
            htpw_dsp_cells(line, taps, n, x + htpw_cell(0, y0, first, 0, g->in_w, g->in_c) + o, to);
        } else {
            htpw_dsp_anywhere(line, k, g, o, x, y0, x0, to);
        }
    }
}

HTPW_DSP_SHORT void htpw_depthwise_s8_dsp(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                          const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch,
                                          int8_t *y) {
    struct htpw_dsp_output k;
    struct htpw_dsp_line line;
    (void)scratch;
    if (HTPW_WITH(ODD) && (g->out_c != g->in_c || g->out_c < 4 || g->k_h > HTPW_DSP_TAPS || g->k_w > HTPW_DSP_TAPS ||
                           g->k_h * g->k_w > HTPW_DSP_TAPS)) {
        htpw_depthwise_s8_ref(g, q, in_offset, x, w, bias, y);
        return;
    }
    htpw_dsp_output_start(&k, q, g->out_c);
    for (int32_t o = 0; o < g->out_c; o += 4) {
        o = o <= g->out_c - 4 ? o : g->out_c - 4; /* some channels are made a second time, to the same values */
        htpw_dsp_line_start(&line, &k, g, in_offset, w, bias, o);
        for (int32_t n = 0; n < HTPW_ROWS(g->n); n++) {
            for (int32_t oy = 0; oy < HTPW_ROWS(g->out_h); oy++) {
                htpw_dsp_row(&line, &k, g, o, x + htpw_cell(n, 0, 0, g->in_h, g->in_w, g->in_c), oy,
                             y + htpw_cell(n, oy, 0, g->out_h, g->out_w, g->out_c));
            }
        }
    }
}

#endif
