/* htpw_mve_depthwise.c - depthwise convolution with Helium, channels in lanes.
 *
 * Windows inside the input, 16 channels at a time: VMULLB and VMULLT give 16-bit products of the even and the odd channels.
 * Two products fit 16 bits together unless both are -128 * -128, so taps go in pairs where the block has no weight of -128, and
 * singly where it has. The input offset is in the bias, as in_offset * sum w.
 *
 * Windows over the edge, channels that are left over and kernels of many taps: 8 channels at a time, with 32-bit products.
 */
#include "htpw_mve.h"

#ifdef HTPW_HAS_ARMV81M_MVE

#define HTPW_MVE_TAPS 32 /* most taps of the faster way, whose weights are copied to the stack */

/* Taps of a window that lie inside the input, and where the first one's channel 0 is. */
struct htpw_mve_view {
    const int8_t *x, *w;
    int32_t taps_h, taps_w;
    size_t x_row, x_step, w_row, w_step; /* distances of taps */
};

/* Words c .. c + n - 1 of p, or its only one, or 0 without p; lanes beyond n are 0. */
HTPW_MVE_INLINE void htpw_mve_spread(const int32_t *p, int32_t many, int32_t c, int32_t n, int32_t *words, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        words[i] = p == NULL || i >= n ? 0 : p[many ? c + i : 0];
    }
}

/* Requantises even and odd channels, and joins them as 16-bit lanes with the zero point added. Saturating to 16 bits first
 * changes nothing that a clamp to 8 bits would let through. */
HTPW_MVE_INLINE int16x8_t htpw_mve_join(int32x4_t even, int32x4_t odd, const struct htpw_mve_scale *even_scale,
                                        const struct htpw_mve_scale *odd_scale, const struct htpw_requant *q) {
    even = htpw_mve_requantise(even, even_scale);
    odd = htpw_mve_requantise(odd, odd_scale);
    const int16x8_t v = vqmovntq_s32(vqmovnbq_s32(vdupq_n_s16(0), even), odd);
    return vqaddq_n_s16(v, (int16_t)q->out_offset);
}

/* One position, channels c .. c + n - 1, n <= 8. */
static void htpw_mve_cell(const struct htpw_mve_view *view, const struct htpw_requant *q, int32_t in_offset,
                          const int32_t *bias, int32_t c, int32_t n, int8_t *y) {
    const mve_pred16_t p = vctp16q((uint32_t)n);
    int32_t words[3][8];
    htpw_mve_spread(bias, 1, c, n, words[0], 8);
    htpw_mve_spread(q->multiplier, q->per_channel, c, n, words[1], 8);
    htpw_mve_spread(q->shift, q->per_channel, c, n, words[2], 8);
    const int32x4x2_t first = vld2q_s32(words[0]), multiplier = vld2q_s32(words[1]), shift = vld2q_s32(words[2]);
    int32x4_t even = first.val[0], odd = first.val[1];
    for (int32_t ky = 0; ky < view->taps_h; ky++) {
        const int8_t *x = view->x + (size_t)ky * view->x_row + c, *w = view->w + (size_t)ky * view->w_row + c;
        for (int32_t kx = view->taps_w; kx > 0; kx--, x += view->x_step, w += view->w_step) {
            const int16x8_t v = vaddq_n_s16(vldrbq_z_s16(x, p), (int16_t)in_offset), m = vldrbq_z_s16(w, p);
            even = vaddq_s32(even, vmullbq_int_s16(v, m));
            odd = vaddq_s32(odd, vmulltq_int_s16(v, m));
        }
    }
    const struct htpw_mve_scale even_scale = htpw_mve_split(multiplier.val[0], shift.val[0]);
    const struct htpw_mve_scale odd_scale = htpw_mve_split(multiplier.val[1], shift.val[1]);
    const int16x8_t v = htpw_mve_join(even, odd, &even_scale, &odd_scale, q);
    const int16x8_t low = vdupq_n_s16((int16_t)q->act_min), high = vdupq_n_s16((int16_t)q->act_max);
    vstrbq_p_s16(y + c, vminq_s16(vmaxq_s16(v, low), high), p);
}

/* A position the slower way, channels c .. end - 1. */
static void htpw_mve_slow(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                          const int8_t *w, const int32_t *bias, int32_t y0, int32_t x0, int32_t c, int32_t end,
                          int8_t *y) {
    const struct htpw_taps ty = htpw_clip(y0, g->k_h, g->dil_h, g->in_h), tx = htpw_clip(x0, g->k_w, g->dil_w, g->in_w);
    struct htpw_mve_view view = {x, w, ty.end - ty.first, tx.end - tx.first, 0, 0, 0, (size_t)g->in_c};
    if (view.taps_h > 0 && view.taps_w > 0) {
        view.x += htpw_cell(0, y0 + ty.first * g->dil_h, x0 + tx.first * g->dil_w, 0, g->in_w, g->in_c);
        view.w += htpw_cell(0, ty.first, tx.first, 0, g->k_w, g->in_c);
        view.x_row = (size_t)g->dil_h * (size_t)g->in_w * (size_t)g->in_c;
        view.x_step = (size_t)g->dil_w * (size_t)g->in_c;
        view.w_row = (size_t)g->k_w * (size_t)g->in_c;
    } else {
        view.taps_h = 0; /* wholly in the padding */
    }
    for (; c < end; c += 8) {
        htpw_mve_cell(&view, q, in_offset, bias, c, end - c < 8 ? end - c : 8, y);
    }
}

/* What 16 channels have in common for all positions, and a run of positions whose windows are inside the input. Vector k of each
 * four has the channels k, k + 4, k + 8 and k + 12, as VLD4 parts them. The assembly knows the offsets. */
struct htpw_mve_run {
    int32_t folded[4][4];                   /* 0: bias + in_offset * sum w */
    int32_t scale[4][3][4];                 /* 64: left shift, multiplier, right shift */
    int8_t low[16], high[16];               /* 256, 272 */
    int32_t taps_h, paired, single;         /* 288, 292, 296: rows of taps; in each, pairs of taps and taps for themselves */
    int32_t out_offset;                     /* 300 */
    size_t x_step, x_row, x_next, channels; /* 304, 308, 312, 316: from tap to tap, row to row, position to position, in y */
    const int8_t *x;                        /* 320 */
    int8_t *y;                              /* 324 */
    int32_t count;                          /* 328: positions, >= 1 */
    int8_t w[HTPW_MVE_TAPS][16];            /* 332 */
};

typedef char htpw_mve_run_offsets[offsetof(struct htpw_mve_run, low) == 256 && offsetof(struct htpw_mve_run, x) == 320 &&
                                          offsetof(struct htpw_mve_run, w) == 332
                                      ? 1
                                      : -1];

/* The requantisation of one vector, as htpw_mve_requantise, with the offsets of its scale. */
#define HTPW_MVE_REQUANTISE(q, left, multiplier, right)                                                                \
    "vldrw.32 q4, [r0, #" #left "]\n\t"                                                                                \
    "vldrw.32 q5, [r0, #" #multiplier "]\n\t"                                                                          \
    "vshl.s32 " #q ", " #q ", q4\n\t"                                                                                  \
    "vldrw.32 q6, [r0, #" #right "]\n\t"                                                                               \
    "vqrdmulh.s32 " #q ", " #q ", q5\n\t"                                                                              \
    "vand    q7, " #q ", q6\n\t"                                                                                       \
    "vshr.s32 q7, q7, #31\n\t"                                                                                         \
    "vadd.i32 " #q ", " #q ", q7\n\t"                                                                                  \
    "vrshl.s32 " #q ", " #q ", q6\n\t"

/* Widens the 16-bit products of even channels in q6 and of odd ones in q4, and adds them to the sums in q0 .. q3. */
#define HTPW_MVE_ACCUMULATE                                                                                            \
    "vmovlb.s16 q5, q6\n\t"                                                                                            \
    "vmovlt.s16 q6, q6\n\t"                                                                                            \
    "vadd.i32 q0, q0, q5\n\t"                                                                                          \
    "vmovlb.s16 q5, q4\n\t"                                                                                            \
    "vadd.i32 q2, q2, q6\n\t"                                                                                          \
    "vmovlt.s16 q4, q4\n\t"                                                                                            \
    "vadd.i32 q1, q1, q5\n\t"                                                                                          \
    "vadd.i32 q3, q3, q4\n\t"

/* Compilers keep part of the sums in memory, which takes more instructions than the multiplications. */
__attribute__((naked, noinline)) static void htpw_mve_positions(__attribute__((unused)) const struct htpw_mve_run *run) {
    __asm__ volatile("push    {r4-r11, lr}\n\t"
                     "vpush   {d8-d15}\n\t"
                     "ldrd    r3, r4, [r0, #304]\n\t"
                     "ldrd    r5, r6, [r0, #312]\n\t"
                     "ldrd    r1, r2, [r0, #320]\n\t"
                     "ldr     r7, [r0, #328]\n"
                     "1:\n\t" /* a position: x in r1, y in r2 */
                     "vldrw.32 q0, [r0]\n\t"
                     "vldrw.32 q1, [r0, #16]\n\t"
                     "vldrw.32 q2, [r0, #32]\n\t"
                     "vldrw.32 q3, [r0, #48]\n\t"
                     "add     r12, r0, #332\n\t"
                     "ldr     r8, [r0, #288]\n\t"
                     "mov     r10, r1\n"
                     "2:\n\t" /* a row of taps: x in r10 */
                     "mov     r11, r10\n\t"
                     "ldr     r9, [r0, #292]\n\t"
                     "wls     lr, r9, 4f\n"
                     "3:\n\t" /* a pair; its second x is loaded twice, for want of a register */
                     "vldrb.8 q4, [r11]\n\t"
                     "vldrb.8 q5, [r12], #16\n\t"
                     "vmullb.s8 q6, q4, q5\n\t"
                     "add     r11, r3\n\t"
                     "vmullt.s8 q4, q4, q5\n\t"
                     "vldrb.8 q5, [r11]\n\t"
                     "vldrb.8 q7, [r12], #16\n\t"
                     "vmullb.s8 q5, q5, q7\n\t"
                     "vadd.i16 q6, q6, q5\n\t"
                     "vldrb.8 q5, [r11]\n\t"
                     "vmullt.s8 q5, q5, q7\n\t"
                     "add     r11, r3\n\t"
                     "vadd.i16 q4, q4, q5\n\t" HTPW_MVE_ACCUMULATE "le      lr, 3b\n"
                     "4:\n\t"
                     "ldr     r9, [r0, #296]\n\t"
                     "wls     lr, r9, 6f\n"
                     "5:\n\t" /* one tap */
                     "vldrb.8 q4, [r11]\n\t"
                     "vldrb.8 q5, [r12], #16\n\t"
                     "vmullb.s8 q6, q4, q5\n\t"
                     "add     r11, r3\n\t"
                     "vmullt.s8 q4, q4, q5\n\t" HTPW_MVE_ACCUMULATE "le      lr, 5b\n"
                     "6:\n\t"
                     "add     r10, r4\n\t"
                     "subs    r8, #1\n\t"
                     "bne     2b\n\t" HTPW_MVE_REQUANTISE(q0, 64, 80, 96) HTPW_MVE_REQUANTISE(q1, 112, 128, 144)
                         HTPW_MVE_REQUANTISE(q2, 160, 176, 192) HTPW_MVE_REQUANTISE(q3, 208, 224, 240)
                     "ldr     r9, [r0, #300]\n\t"
                     "vqmovnb.s32 q0, q0\n\t" /* as htpw_mve_join */
                     "vqmovnb.s32 q1, q1\n\t"
                     "vqmovnt.s32 q0, q2\n\t"
                     "vqmovnt.s32 q1, q3\n\t"
                     "vqadd.s16 q0, q0, r9\n\t"
                     "vqadd.s16 q1, q1, r9\n\t"
                     "vldrw.32 q2, [r0, #256]\n\t"
                     "vldrw.32 q3, [r0, #272]\n\t"
                     "vqmovnb.s16 q0, q0\n\t"
                     "vqmovnt.s16 q0, q1\n\t"
                     "vmax.s8 q0, q0, q2\n\t"
                     "vmin.s8 q0, q0, q3\n\t"
                     "vstrb.8 q0, [r2]\n\t"
                     "add     r1, r5\n\t"
                     "add     r2, r6\n\t"
                     "subs    r7, #1\n\t"
                     "bne     1b\n\t"
                     "vpop    {d8-d15}\n\t"
                     "pop     {r4-r11, pc}");
}

/* Fills in what depends on the channels c .. c + 15. */
static void htpw_mve_run_open(struct htpw_mve_run *run, const struct htpw_window *g, const struct htpw_requant *q,
                              int32_t in_offset, const int8_t *w, const int32_t *bias, int32_t c) {
    int32_t words[16];
    int32_t least = 0;
    htpw_mve_spread(bias, 1, c, 16, words, 16);
    for (int32_t tap = 0; tap < g->k_h * g->k_w; tap++) {
        const int8_t *from = w + (size_t)tap * (size_t)g->in_c + c;
        for (int32_t i = 0; i < 16; i++) {
            run->w[tap][i] = from[i];
            words[i] += in_offset * from[i];
            least = from[i] < least ? from[i] : least;
        }
    }
    run->paired = least == INT8_MIN ? 0 : g->k_w / 2;
    run->single = g->k_w - 2 * run->paired;
    const int32x4x4_t folded = vld4q_s32(words);
    htpw_mve_spread(q->multiplier, q->per_channel, c, 16, words, 16);
    const int32x4x4_t multiplier = vld4q_s32(words);
    htpw_mve_spread(q->shift, q->per_channel, c, 16, words, 16);
    const int32x4x4_t shift = vld4q_s32(words);
    for (int32_t k = 0; k < 4; k++) {
        const struct htpw_mve_scale scale = htpw_mve_split(multiplier.val[k], shift.val[k]);
        vstrwq_s32(run->folded[k], folded.val[k]);
        vstrwq_s32(run->scale[k][0], scale.left);
        vstrwq_s32(run->scale[k][1], scale.multiplier);
        vstrwq_s32(run->scale[k][2], scale.right);
    }
}

void htpw_mve_depthwise(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                        const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    (void)scratch;
    const int32_t channels = g->in_c;
    if (channels != g->out_c) {
        htpw_depthwise_s8_ref(g, q, in_offset, x, w, bias, y);
        return;
    }
    const struct htpw_taps rows = htpw_mve_inside(g->out_h, g->k_h, g->dil_h, g->stride_h, g->pad_top, g->in_h);
    const struct htpw_taps columns = htpw_mve_inside(g->out_w, g->k_w, g->dil_w, g->stride_w, g->pad_left, g->in_w);
    const int32_t fast = g->k_h * g->k_w <= HTPW_MVE_TAPS && columns.first < columns.end ? channels & ~15 : 0;
    struct htpw_mve_run run;
    vstrbq_s8(run.low, vdupq_n_s8((int8_t)q->act_min));
    vstrbq_s8(run.high, vdupq_n_s8((int8_t)q->act_max));
    run.taps_h = g->k_h;
    run.out_offset = q->out_offset;
    run.channels = (size_t)channels;
    run.x_step = (size_t)g->dil_w * run.channels;
    run.x_row = (size_t)g->dil_h * (size_t)g->in_w * run.channels;
    run.x_next = (size_t)g->stride_w * run.channels;
    run.count = columns.end - columns.first;
    for (int32_t c = 0, end; c < channels; c = end) {
        end = c < fast ? c + 16 : channels;
        if (c < fast) {
            htpw_mve_run_open(&run, g, q, in_offset, w, bias, c);
        }
        int8_t *at = y;
        for (int32_t n = 0; n < g->n; n++) {
            const int8_t *xn = x + htpw_cell(n, 0, 0, g->in_h, g->in_w, channels);
            for (int32_t oy = 0; oy < g->out_h; oy++) {
                const int32_t y0 = oy * g->stride_h - g->pad_top, inside = c < fast && oy >= rows.first && oy < rows.end;
                for (int32_t ox = 0; ox < g->out_w; ox++, at += channels) {
                    const int32_t x0 = ox * g->stride_w - g->pad_left;
                    if (inside && ox == columns.first) {
                        run.x = xn + htpw_cell(0, y0, x0, 0, g->in_w, channels) + c;
                        run.y = at + c;
                        htpw_mve_positions(&run);
                        ox = columns.end - 1;
                        at += (size_t)(run.count - 1) * run.channels;
                    } else {
                        htpw_mve_slow(g, q, in_offset, xn, w, bias, y0, x0, c, end, at);
                    }
                }
            }
        }
    }
}

#endif
