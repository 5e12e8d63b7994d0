/* htpw_pool_s8.c - average and maximum pooling over the cells of a window that lie inside the input. */
#include "htpw_requantise.h"
#include "htpw_window.h"

/* Both reductions of one window and channel cost one more addition than one of them; the caller keeps what it needs. */
struct htpw_reduced {
    int32_t sum, top;
};

static struct htpw_reduced htpw_pool_s8_reduce(const int8_t *x, struct htpw_taps ty, struct htpw_taps tx, int32_t in_w,
                                               int32_t in_c) {
    struct htpw_reduced r = {0, INT8_MIN};
    for (int32_t iy = ty.first; iy < (HTPW_WITH(PLANES) ? ty.end : ty.first + 1); iy++) {
        size_t i = htpw_cell(0, iy, tx.first, 0, in_w, in_c);
        for (int32_t ix = tx.first; ix < tx.end; ix++, i += (size_t)in_c) {
            r.sum += x[i];
            r.top = x[i] > r.top ? x[i] : r.top;
        }
    }
    return r;
}

static void htpw_pool_s8(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y,
                         int32_t want_mean) {
    for (int32_t n = 0; n < HTPW_ROWS(g->n); n++, x += htpw_cell(1, 0, 0, g->in_h, g->in_w, g->in_c)) {
        for (int32_t oy = 0; oy < HTPW_ROWS(g->out_h); oy++) {
            for (int32_t ox = 0; ox < g->out_w; ox++) {
                const int32_t y0 = oy * g->stride_h - g->pad_top, x0 = ox * g->stride_w - g->pad_left;
                struct htpw_taps ty = htpw_clip_rows(y0, g->k_h, 1, g->in_h), tx = htpw_clip(x0, g->k_w, 1, g->in_w);
                const int32_t cells = HTPW_ROWS(ty.end - ty.first) * (tx.end - tx.first), half = cells / 2;
                ty.first += y0;
                ty.end += y0;
                tx.first += x0;
                tx.end += x0;
                for (int32_t c = 0; c < g->in_c; c++) {
                    const struct htpw_reduced r = htpw_pool_s8_reduce(x + c, ty, tx, g->in_w, g->in_c);
                    const int32_t v =
                        !HTPW_WITH(MAXPOOL) || want_mean ? (r.sum > 0 ? r.sum + half : r.sum - half) / cells : r.top;
                    *y++ = (int8_t)htpw_clamp(v, act_min, act_max);
                }
            }
        }
    }
}

void htpw_avgpool_s8_ref(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y) {
    htpw_pool_s8(g, act_min, act_max, x, y, 1);
}

void htpw_maxpool_s8_ref(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y) {
    htpw_pool_s8(g, act_min, act_max, x, y, 0);
}
