/* htpw_x86.h - what the x86 backends share: convolutions as matrix products of patches. */
#ifndef HTPW_X86_H
#define HTPW_X86_H

#include "../kernels/htpw_window.h"

/* A walk over all that one output cell of a convolution reads, in the order of its weights. */
struct htpw_patch {
    const struct htpw_window *g;
    const int8_t *x; /* channel 0 of the group in batch n, cell (0, 0) */
    struct htpw_taps ty, tx;
    int32_t y0, x0, in_g, ky, kx; /* in_g: channels of a group; (ky, kx): the next tap */
};

/* An output cell. Rows of a product of patches count them; a division for each row would cost more than the row. */
struct htpw_row {
    int32_t n, oy, ox;
};

static inline struct htpw_row htpw_row_at(const struct htpw_window *g, int32_t row) {
    const int32_t line = row / g->out_w, n = line / g->out_h;
    const struct htpw_row at = {n, line - n * g->out_h, row - line * g->out_w};
    return at;
}

static inline void htpw_row_next(const struct htpw_window *g, struct htpw_row *at) {
    if (++at->ox == g->out_w) {
        at->ox = 0;
        if (++at->oy == g->out_h) {
            at->oy = 0;
            at->n++;
        }
    }
}

static inline struct htpw_patch htpw_patch_begin(const struct htpw_window *g, int32_t group, struct htpw_row row,
                                                 const int8_t *x) {
    const int32_t y0 = row.oy * g->stride_h - g->pad_top, x0 = row.ox * g->stride_w - g->pad_left;
    const int32_t in_g = g->in_c / g->groups;
    const struct htpw_patch p = {g,
                                 x + htpw_cell(row.n, 0, 0, g->in_h, g->in_w, g->in_c) + (size_t)group * (size_t)in_g,
                                 htpw_clip(y0, g->k_h, g->dil_h, g->in_h),
                                 htpw_clip(x0, g->k_w, g->dil_w, g->in_w),
                                 y0,
                                 x0,
                                 in_g,
                                 0,
                                 0};
    return p;
}

/* The first of k_h stretches of k_w * in_c bytes, dil_h lines of x apart, that are all of a patch; NULL if some of it is
 * padding, or not in one stretch. */
static inline const int8_t *htpw_patch_inside(const struct htpw_window *g, struct htpw_row row, const int8_t *x) {
    const int32_t y0 = row.oy * g->stride_h - g->pad_top, x0 = row.ox * g->stride_w - g->pad_left;
    if (g->dil_w != 1 || g->groups != 1 || x0 < 0 || x0 > g->in_w - g->k_w || y0 < 0 ||
        y0 + (g->k_h - 1) * g->dil_h >= g->in_h) {
        return NULL;
    }
    return x + htpw_cell(row.n, y0, x0, g->in_h, g->in_w, g->in_c);
}

/* Length of the next stretch, 0 at the end; `from` is where it lies, or NULL for padding. */
static inline int32_t htpw_patch_next(struct htpw_patch *p, const int8_t **from) {
    const struct htpw_window *g = p->g;
    const int32_t kx = p->kx;
    int32_t end = g->k_w;
    *from = NULL;
    if (p->ky == g->k_h) {
        return 0;
    }
    if (p->ky >= p->ty.first && p->ky < p->ty.end && p->tx.first < p->tx.end) {
        if (kx < p->tx.first) {
            end = p->tx.first;
        } else if (kx < p->tx.end) {
            end = g->dil_w == 1 && g->groups == 1 ? p->tx.end : kx + 1; /* taps in one stretch of x */
            *from = p->x + htpw_cell(0, p->y0 + p->ky * g->dil_h, p->x0 + kx * g->dil_w, 0, g->in_w, g->in_c);
        }
    }
    p->ky += end == g->k_w;
    p->kx = end == g->k_w ? 0 : end;
    return (end - kx) * p->in_g;
}

/* The matrix product of one group of a convolution: its channels o .. o + out_c - 1 as if they were all. */
struct htpw_group {
    struct htpw_requant q;
    int32_t products, out_c, o;
    const int8_t *w;
    const int32_t *bias;
};

static inline struct htpw_group htpw_group_of(const struct htpw_window *g, const struct htpw_requant *q, int32_t group,
                                              const int8_t *w, const int32_t *bias) {
    const int32_t out_c = g->out_c / g->groups, products = g->k_h * g->k_w * (g->in_c / g->groups), o = group * out_c;
    const int32_t c = q->per_channel ? o : 0;
    const struct htpw_group part = {
        {q->multiplier + c, q->shift + c, q->per_channel, q->out_offset, q->act_min, q->act_max},
        products,
        out_c,
        o,
        w + (size_t)o * (size_t)products,
        bias != NULL ? bias + o : NULL};
    return part;
}

#endif
