/* htpw_mve_pool.c - pooling with Helium, channels in lanes.
 *
 * Sums of up to 256 cells fit 16 bits. The division of the mean is a multiplication with floor(2^32 / cells) and one
 * correction, which is exact (htpw_mve_mean).
 */
#include "htpw_mve.h"

#ifdef HTPW_HAS_ARMV81M_MVE

/* The in-bounds cells of one window: rows and columns of them, and the first one's channel 0. */
struct htpw_mve_cells {
    const int8_t *x;
    int32_t rows, columns;
    size_t row, column; /* distances */
};

/* t / cells to nearest, ties away from zero; |t| < 2^30, cells in [2, 2^23), reciprocal = floor(2^32 / cells).
 * With m = |t| + cells/2 < 2^31, m / cells - m * reciprocal / 2^32 < m / 2^32 < 1, so that the upper half of the product is
 * the quotient or 1 less. */
HTPW_MVE_INLINE int32x4_t htpw_mve_mean(int32x4_t t, int32_t cells, uint32_t reciprocal) {
    const uint32x4_t m = vaddq_n_u32(vreinterpretq_u32_s32(vabsq_s32(t)), (uint32_t)cells / 2u);
    uint32x4_t mean = vmulhq_u32(m, vdupq_n_u32(reciprocal));
    const uint32x4_t rest = vsubq_u32(m, vmulq_n_u32(mean, (uint32_t)cells));
    mean = vaddq_m_n_u32(mean, mean, 1, vcmpcsq_n_u32(rest, (uint32_t)cells));
    const int32x4_t v = vreinterpretq_s32_u32(mean);
    return vnegq_m_s32(v, v, vcmpltq_n_s32(t, 0));
}

/* The same for 16-bit lanes; one cell needs no division. */
HTPW_MVE_INLINE int16x8_t htpw_mve_mean_s16(int16x8_t t, int32_t cells, uint32_t reciprocal) {
    if (cells == 1) {
        return t;
    }
    const int32x4_t even = htpw_mve_mean(vmovlbq_s16(t), cells, reciprocal);
    const int32x4_t odd = htpw_mve_mean(vmovltq_s16(t), cells, reciprocal);
    return vmovntq_s32(vmovnbq_s32(t, even), odd);
}

HTPW_MVE_INLINE int16x8_t htpw_mve_clamp_s16(int16x8_t v, int32_t act_min, int32_t act_max) {
    return vminq_s16(vmaxq_s16(v, vdupq_n_s16((int16_t)act_min)), vdupq_n_s16((int16_t)act_max));
}

/* Up to 256 cells: 16 channels at a time, the rest 8 at a time. */
HTPW_MVE_INLINE void htpw_mve_average_few(const struct htpw_mve_cells *w, int32_t channels, uint32_t reciprocal,
                                          int32_t act_min, int32_t act_max, int8_t *y) {
    const int32_t cells = w->rows * w->columns;
    int32_t c = 0;
    for (; c + 16 <= channels; c += 16) {
        int16x8_t low = vdupq_n_s16(0), high = vdupq_n_s16(0);
        for (int32_t i = 0; i < w->rows; i++) {
            const int8_t *x = w->x + c + (size_t)i * w->row;
            for (int32_t j = w->columns; j > 0; j--, x += w->column) {
                low = vaddq_s16(low, vldrbq_s16(x));
                high = vaddq_s16(high, vldrbq_s16(x + 8));
            }
        }
        low = htpw_mve_clamp_s16(htpw_mve_mean_s16(low, cells, reciprocal), act_min, act_max);
        high = htpw_mve_clamp_s16(htpw_mve_mean_s16(high, cells, reciprocal), act_min, act_max);
        vstrbq_s16(y + c, low);
        vstrbq_s16(y + c + 8, high);
    }
    for (; c < channels; c += 8) {
        const mve_pred16_t p = vctp16q((uint32_t)(channels - c));
        int16x8_t t = vdupq_n_s16(0);
        for (int32_t i = 0; i < w->rows; i++) {
            const int8_t *x = w->x + c + (size_t)i * w->row;
            for (int32_t j = w->columns; j > 0; j--, x += w->column) {
                t = vaddq_s16(t, vldrbq_z_s16(x, p));
            }
        }
        vstrbq_p_s16(y + c, htpw_mve_clamp_s16(htpw_mve_mean_s16(t, cells, reciprocal), act_min, act_max), p);
    }
}

/* Any number of cells, 4 channels at a time. */
HTPW_MVE_INLINE void htpw_mve_average_many(const struct htpw_mve_cells *w, int32_t channels, uint32_t reciprocal,
                                           int32_t act_min, int32_t act_max, int8_t *y) {
    const int32_t cells = w->rows * w->columns;
    for (int32_t c = 0; c < channels; c += 4) {
        const mve_pred16_t p = vctp32q((uint32_t)(channels - c));
        int32x4_t t = vdupq_n_s32(0);
        for (int32_t i = 0; i < w->rows; i++) {
            const int8_t *x = w->x + c + (size_t)i * w->row;
            for (int32_t j = w->columns; j > 0; j--, x += w->column) {
                t = vaddq_s32(t, vldrbq_z_s32(x, p));
            }
        }
        t = htpw_mve_mean(t, cells, reciprocal);
        vstrbq_p_s32(y + c, vminq_s32(vmaxq_s32(t, vdupq_n_s32(act_min)), vdupq_n_s32(act_max)), p);
    }
}

HTPW_MVE_INLINE void htpw_mve_average(const struct htpw_mve_cells *w, int32_t channels, int32_t act_min,
                                      int32_t act_max, int8_t *y) {
    const uint32_t cells = (uint32_t)(w->rows * w->columns);
    const uint32_t reciprocal =
        UINT32_MAX / cells + (UINT32_MAX % cells == cells - 1u); /* floor(2^32 / cells), cells > 1 */
    if (cells <= 256) {
        htpw_mve_average_few(w, channels, reciprocal, act_min, act_max, y);
    } else {
        htpw_mve_average_many(w, channels, reciprocal, act_min, act_max, y);
    }
}

HTPW_MVE_INLINE void htpw_mve_largest(const struct htpw_mve_cells *w, int32_t channels, int32_t act_min,
                                      int32_t act_max, int8_t *y) {
    for (int32_t c = 0; c < channels; c += 16) {
        const mve_pred16_t p = vctp8q((uint32_t)(channels - c));
        int8x16_t t = vdupq_n_s8((int8_t)act_min);
        for (int32_t i = 0; i < w->rows; i++) {
            const int8_t *x = w->x + c + (size_t)i * w->row;
            for (int32_t j = w->columns; j > 0; j--, x += w->column) {
                t = vmaxq_s8(t, vldrbq_z_s8(x, p));
            }
        }
        vstrbq_p_s8(y + c, vminq_s8(t, vdupq_n_s8((int8_t)act_max)), p);
    }
}

HTPW_MVE_INLINE void htpw_mve_pool(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x,
                                   int8_t *y, int want_mean) {
    const size_t column = (size_t)g->in_c, row = (size_t)g->in_w * column;
    for (int32_t n = 0; n < g->n; n++) {
        for (int32_t oy = 0; oy < g->out_h; oy++) {
            const int32_t y0 = oy * g->stride_h - g->pad_top;
            const struct htpw_taps ty = htpw_clip(y0, g->k_h, 1, g->in_h);
            for (int32_t ox = 0; ox < g->out_w; ox++, y += g->in_c) {
                const int32_t x0 = ox * g->stride_w - g->pad_left;
                const struct htpw_taps tx = htpw_clip(x0, g->k_w, 1, g->in_w);
                const size_t first = htpw_cell(n, y0 + ty.first, x0 + tx.first, g->in_h, g->in_w, g->in_c);
                const struct htpw_mve_cells cells = {x + first, ty.end - ty.first, tx.end - tx.first, row, column};
                if (want_mean) {
                    htpw_mve_average(&cells, g->in_c, act_min, act_max, y);
                } else {
                    htpw_mve_largest(&cells, g->in_c, act_min, act_max, y);
                }
            }
        }
    }
}

void htpw_mve_avgpool(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y) {
    htpw_mve_pool(g, act_min, act_max, x, y, 1);
}

void htpw_mve_maxpool(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y) {
    htpw_mve_pool(g, act_min, act_max, x, y, 0);
}

#endif
